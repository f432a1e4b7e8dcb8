"""The scan sees what sd-scripts sees: the same files in the same order, the same sizes, the same captions."""

import glob
import os
import struct
from pathlib import Path

import pytest
from PIL import Image

from spyke_kohya.dataset.scan import cached_sizes, captions_in, folder_of, read_captions, scan, scan_folder
from spyke_kohya.presets.resolved import ResolvedDataset, ResolvedSubset

HOSTILE_NAMES = [
    "a.png", "B.PNG", "c.Png", "d.jpg", "e.JPEG", "f.webp", "g.bmp", "h.gif", "i.tiff", "p.jxl", "q.avif",
    ".hidden.png", "._a.png", ".png", "n.png.txt", "o_png", "10.png", "9.png",
    "j k.png", "l[1].png", "m*.png", "Émile.png", "line\nbreak.png",
]  # fmt: skip


def subset(image_dir, **settings):
    return ResolvedSubset("x.toml: datasets[0].subsets[0]", str(image_dir), True, **settings)


def scanned(root, *subsets):
    return scan([ResolvedDataset("x.toml: datasets[0]", (512, 512), subsets)], root).datasets[0].subsets


def images_in(folder, **settings):
    return scanned(folder.parent, subset(folder.name, **settings))[0].images


def save(path, size=(3, 2), kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, kind)


def by_sd_scripts(folder):
    """As train_util.glob_images at v0.10.1 asks glob."""
    extensions = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG", ".JPEG", ".WEBP", ".BMP"]
    patterns = [os.path.join(glob.escape(folder), "*" + end) for end in extensions]  # noqa: PTH118
    return sorted({path for pattern in patterns for path in glob.glob(pattern)})  # noqa: PTH207


@pytest.mark.parametrize("name", ["plain", "10_a b", "[odd] *name*", "ünï"])
def test_the_files_are_those_that_glob_finds_in_the_same_order(tmp_path, name):
    folder = tmp_path / name
    (folder / "sub.png").mkdir(parents=True)
    (folder / "sub.png" / "deep.png").touch()
    (folder / "nowhere.png").symlink_to(folder / "missing")
    for file in HOSTILE_NAMES:
        save(folder / file, kind="PNG")
    found = [image.path for image in images_in(folder)]
    assert found == by_sd_scripts(str(folder))
    assert len(found) == 15


@pytest.mark.parametrize("written", ["a", "./a", "a/", "a//", "b/../a"])
def test_a_path_is_spelt_as_sd_scripts_spells_it(tmp_path, written):
    (tmp_path / "b").mkdir()
    save(tmp_path / "a" / "x.png")
    (image,) = scanned(tmp_path, subset(written))[0].images
    assert [image.path] == by_sd_scripts(f"{tmp_path}/{written}")


def test_home_is_expanded_and_an_absolute_folder_needs_no_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/spyke")
    assert folder_of("~/images", tmp_path) == "/home/spyke/images"
    assert folder_of("/images", tmp_path) == "/images"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_sizes_come_from_the_header_whatever_the_name_says(tmp_path, kind):
    save(tmp_path / "a" / "x.png", (37, 21), kind)
    (image,) = images_in(tmp_path / "a")
    assert (image.size, image.problem) == ((37, 21), "")


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "a" / "x.jpg", exif=exif)
    assert images_in(tmp_path / "a")[0].size == (40, 20)


BROKEN = {
    "text": b"this is text",
    "empty": b"",
    "cut png": b"\x89PNG\r\n\x1a\n",
    "cut jpeg": b"\xff\xd8\xff\xe0",
    "cut webp": b"RIFF\0\0\0\0WEBPVP8L",
    "cut tiff": b"II*\0\xff\xff\xff\x7f",
    "cut big tiff": b"II+\0\x07\0\0\0" + b"\xff" * 8,
    "huge offset": b"II+\0\x08\0\0\0" + b"\xff" * 8,
    "netpbm": b"P6 many",
    "svg": b"<svg width='1'",
    "svg with a size": b'<svg width="10" height="10">',
    "no height": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">LL", 10, 0) + b"\0" * 8,
    "no width": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">LL", 0, 10) + b"\0" * 8,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_recorded_with_a_reason_and_never_raises(tmp_path, kind):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(BROKEN[kind])
    (image,) = images_in(tmp_path / "a")
    assert image.size is None
    assert image.problem


def test_what_is_no_file_is_recorded_and_not_opened(tmp_path):
    (tmp_path / "a" / "folder.png").mkdir(parents=True)
    (tmp_path / "a" / "link.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert [image.problem for image in images_in(tmp_path / "a")] == [
        "it is a folder",
        "it is no file, or a link to nowhere",
        "it is no file, or a link to nowhere",
    ]


def test_a_folder_that_is_none_has_a_problem(tmp_path):
    (tmp_path / "file").touch()
    found = scanned(tmp_path, subset("missing"), subset("file"), subset(""))
    assert [folder.problem for folder in found] == ["there is no such folder", "it is a file", "image_dir is empty"]


def test_a_folder_that_no_preset_names_is_read_as_a_subset_s(tmp_path):
    save(tmp_path / "a" / "x.png", (37, 21))
    (tmp_path / "a" / "x.txt").write_text("spyke")
    found = scan_folder("a", ".txt", tmp_path)
    assert found.images == images_in(tmp_path / "a")
    assert [caption.text for caption in captions_in(found)] == ["spyke"]
    assert scan_folder("", ".txt", tmp_path).problem == "image_dir is empty"
    assert scan_folder("b", ".txt", tmp_path).problem == "there is no such folder"


def test_cached_latents_decide_the_size_as_they_do_for_sd_scripts(tmp_path):
    save(tmp_path / "a" / "x.png", (30, 20))
    save(tmp_path / "a" / "y.png", (30, 20))
    (tmp_path / "a" / "x_0064x0032_sd.npz").touch()
    first, second = images_in(tmp_path / "a")
    assert (first.size, first.trained_size) == ((30, 20), (64, 32))
    assert second.trained_size == (30, 20)


def test_cached_latents_are_matched_by_how_names_begin():
    latents = ["ab_0064x0064_sd.npz", "c_0128x0064_sd.npz"]
    assert cached_sizes(["a.png", "ab.png", "b.png", "c.png", "d.png"], latents) == {
        "a.png": (64, 64),
        "ab.png": (64, 64),
        "c.png": (128, 64),
    }


def captions_of(folder, **settings):
    found = scan([ResolvedDataset("d", (512, 512), (subset(folder.name, **settings),))], folder.parent)
    return [(caption.text, caption.problem) for caption in read_captions(found)]


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "a" / "x.png")
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"  spyke, blue \nsecond\n", ("spyke, blue", "")),
        (b"\nsecond", ("", "")),
        (b"spyke\r\n", ("spyke", "")),
        (b"", ("", "empty")),
        (b"\xff\xfe", ("", "not-utf8")),
    ],
)
def test_a_caption_is_the_first_line_without_blanks_around_it(folder, written, expected):
    (folder / "x.txt").write_bytes(written)
    assert captions_of(folder, caption_extension=".txt") == [expected]


def test_with_wildcards_a_caption_is_all_its_lines(folder):
    (folder / "x.txt").write_text(" a \n\nb\n", encoding="utf-8")
    assert captions_of(folder, caption_extension=".txt", enable_wildcard=True) == [("a\nb", "")]


def test_without_a_caption_file_the_class_tokens_stand_in(folder):
    assert captions_of(folder) == [("", "missing")]
    assert captions_of(folder, class_tokens="a girl") == [("a girl", "")]


def test_a_face_s_place_in_a_file_s_name_is_not_needed_in_the_caption_s(tmp_path):
    save(tmp_path / "a" / "x_1_2_3_4.png")
    (tmp_path / "a" / "x.txt").write_text("face", encoding="utf-8")
    assert captions_of(tmp_path / "a", caption_extension=".txt") == [("face", "")]


def test_a_folder_of_two_subsets_is_read_for_both(tmp_path):
    save(tmp_path / "a" / "x.png")
    first, second = scanned(tmp_path, subset("a"), subset("a", is_reg=True))
    assert first.images == second.images
    assert Path(first.folder) == tmp_path / "a"
