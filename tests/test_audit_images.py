"""The audit of images and folders: each fault on a real file, named once, and nothing said of sound ones."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from workplace import make_workplace

from spyke_kohya.audit.examine import AuditTools, examine
from spyke_kohya.dataset import picture_cache
from spyke_kohya.dataset.copies import Alike, alike, look_of
from spyke_kohya.dataset.decoding import decode, decode_all
from spyke_kohya.dataset.picture_cache import PictureCache, cache_directory
from spyke_kohya.dataset.scan import header_size
from spyke_kohya.presets.loading import load

ORIENTATION = 0x0112


def picture(size=(64, 64), seed=0):
    """A picture that looks like no other, and not like its own mirror image."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def place(tmp_path):
    made = make_workplace(tmp_path)
    for index in range(4):
        picture(seed=index).save(made.images / f"{index}.png")
    made.change("tiny", expect={"total_steps": None, "trigger": None})
    return made


def findings_of(place, name="tiny", *settings, cache=None):
    tools = AuditTools(look=lambda paths: PictureCache(cache).look(paths, lambda count: lambda done: None))
    return list(examine(load(name, place.root, settings), place.root, tools=tools).findings)


def codes(place, *settings):
    return [finding.code for finding in findings_of(place, "tiny", *settings)]


def only(place, code):
    (finding,) = [finding for finding in findings_of(place) if finding.code == code]
    return finding


def add(place, name, image=None, **how):
    (image or picture(seed=99)).save(place.images / name, **how)
    (place.images / name).with_suffix(".txt").write_text(f"spyke, added {name}")


def use_buckets(place, resolution=64):
    place.change("data", general={"enable_bucket": True, "min_bucket_reso": 64, "resolution": resolution})
    file = place.root / "presets/data.toml"
    file.write_text(file.read_text().replace("resolution = 64\nbatch", "batch"))


def test_sound_pictures_have_no_faults(place):
    assert codes(place) == []


def test_a_picture_cut_short_is_found_although_its_header_is_whole(place):
    file = place.images / "1.png"
    file.write_bytes(file.read_bytes()[:-40])
    finding = only(place, "images.broken")
    assert (finding.severity, finding.where) == ("error", str(file))
    assert "sd-scripts stops when it comes to it" in finding.message


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_told_once(place, data):
    (place.images / "1.png").write_bytes(data)
    assert codes(place) == ["images.unreadable"]


def test_many_broken_pictures_are_one_finding(place):
    for index in range(4):
        (place.images / f"{index}.png").write_bytes(b"no picture")
    (finding,) = findings_of(place)
    assert finding.where.endswith("0.png")
    assert finding.message.endswith("(and 3 more: 1.png, 2.png, 3.png)")


def test_a_small_picture_is_enlarged_and_a_long_one_cropped(place):
    use_buckets(place, 128)
    for name, size in (("small", (64, 64)), ("long", (900, 100)), ("fine", (128, 128))):
        add(place, f"{name}.png", picture(size, seed=7 + size[0]))
    for index in range(4):
        picture((130, 130), seed=index).save(place.images / f"{index}.png")
    by_code = {finding.code: finding for finding in findings_of(place)}
    assert set(by_code) == {"images.upscaled", "images.cropped"}
    assert "enlarged 2.0 x: 64x64 in a bucket of 128x128" in by_code["images.upscaled"].message
    assert "the crop loses 56% of it (900x100 in a bucket of 256x64)" in by_code["images.cropped"].message


def test_without_buckets_and_cached_latents_a_picture_must_have_the_resolution(place):
    add(place, "wide.png", picture((80, 64), seed=8))
    finding = only(place, "images.needs-bucket")
    assert (finding.severity, finding.where) == ("error", str(place.images / "wide.png"))
    assert codes(place, "train_network.cache_latents=true") == []
    assert [f.severity for f in findings_of(place, "data")] == ["warning"]


def test_a_picture_that_exif_turns_is_named(place):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    add(place, "turned.jpg", exif=exif)
    assert "orientation 6" in only(place, "images.exif-rotated").message
    exif[ORIENTATION] = 1
    add(place, "turned.jpg", exif=exif)
    assert codes(place) == []


@pytest.mark.parametrize(
    ("beneath", "words"), [((0, 0, 0), "trains as black"), ((200, 10, 10), "trains as red 200"), ((255, 255, 255), "")]
)
def test_transparency_is_told_with_the_colour_beneath(place, beneath, words):
    image = picture(seed=5).convert("RGBA")
    image.paste((*beneath, 0), (0, 0, 32, 64))
    add(place, "clear.png", image)
    told = [f.message for f in findings_of(place) if f.code == "images.transparent"]
    assert len(told) == (1 if words else 0)
    assert all("50% of it is transparent" in message and words in message for message in told)


def test_transparency_that_is_the_mask_is_no_fault(place):
    image = picture(seed=5)
    image.putalpha(0)
    add(place, "clear.png", image)
    file = place.root / "presets/data.toml"
    file.write_text(file.read_text().replace("num_repeats = 2", "num_repeats = 2\nalpha_mask = true"))
    assert codes(place) == []


def test_sixteen_bits_four_inks_and_animations_are_named(place):
    grey = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    assert np.array(grey.convert("RGB")).mean() > 250  # what sd-scripts would train: nearly white
    add(place, "deep.png", grey)
    add(place, "inks.jpg", picture(seed=3).convert("CMYK").transpose(Image.Transpose.ROTATE_90))
    add(place, "moving.webp", picture(seed=31), save_all=True, append_images=[picture(seed=32)], lossless=True)
    assert codes(place) == ["images.sixteen-bit", "images.colours", "images.animated"]


def test_the_same_file_twice_and_in_another_form(place):
    shutil.copy(place.images / "0.png", place.images / "copy.png")
    picture(seed=1).save(place.images / "again.jpg", quality=90)
    ImageOps.mirror(picture(seed=2)).save(place.images / "mirrored.png")
    for name in ("copy", "again", "mirrored"):
        (place.images / f"{name}.txt").write_text(f"spyke, {name}")
    told = {finding.code: finding for finding in findings_of(place)}
    assert set(told) == {"images.duplicate", "images.near-duplicate", "images.mirrored"}
    assert "0.png" in told["images.duplicate"].message
    assert told["images.mirrored"].where.endswith("mirrored.png")


def test_a_picture_that_is_trained_and_regularised_is_an_error(place):
    reg = place.root / "dataset/reg"
    reg.mkdir()
    shutil.copy(place.images / "0.png", reg / "other.png")
    picture(seed=1).save(reg / "alike.jpg", quality=95)
    for name in ("other", "alike"):
        (reg / f"{name}.txt").write_text(f"somebody, {name}")
    with (place.root / "presets/data.toml").open("a") as file:
        file.write('\n[[datasets.subsets]]\nis_reg = true\nimage_dir = "dataset/reg"\n')
    told = {finding.code: finding.severity for finding in findings_of(place)}
    assert told == {"images.in-two-roles": "error", "images.alike-in-two-roles": "warning"}


def test_a_held_out_picture_that_is_trained_on_is_an_error(place):
    aside = place.root / "aside"
    aside.mkdir()
    picture(seed=40).save(aside / "new.png")
    place.change("tiny", evaluate={"heldout_dir": "aside"})
    assert codes(place) == []
    shutil.copy(place.images / "2.png", aside / "same.png")
    ImageOps.mirror(picture(seed=3)).save(aside / "turned.jpg", quality=95)
    told = {finding.code: finding.message for finding in findings_of(place)}
    assert set(told) == {"images.in-two-roles", "images.alike-in-two-roles"}
    assert "training and held-out" in told["images.in-two-roles"]
    place.change("tiny", evaluate={"heldout_dir": "dataset/../dataset/1_spyke"})
    assert codes(place) == ["images.in-two-roles"]


def test_one_folder_in_two_datasets_is_no_duplicate(place):
    with (place.root / "presets/data.toml").open("a") as file:
        file.write("\n[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = 'dataset/1_spyke'\n")
    assert codes(place) == []


def test_what_sd_scripts_does_not_take_is_named(place):
    picture(seed=11).save(place.images / "a.gif")
    picture(seed=12).save(place.images / "b.Png", "PNG")
    below = place.images / "more"
    below.mkdir()
    picture(seed=13).save(below / "c.png")
    told = {finding.code: finding for finding in findings_of(place)}
    assert set(told) == {"images.not-taken", "dataset.deeper-images"}
    assert told["images.not-taken"].message.endswith("(and 1 more: b.Png)")
    assert told["dataset.deeper-images"].message.endswith("sd-scripts does not see: more")


def test_hidden_files_and_a_mac_s_own_are_nothing_to_sd_scripts(place):
    """glob leaves out names that begin with a dot (test_scan compares with it), so they are not worth a word."""
    for name in ("._0.png", ".hidden.png", "._0.txt", ".DS_Store"):
        (place.images / name).write_bytes(b"\0\5\x16\7")
    assert codes(place) == []


def test_two_endings_share_a_caption_and_latents(place):
    picture(seed=20).save(place.images / "0.jpg")
    assert only(place, "images.same-stem").message.startswith("0.jpg and 0.png differ only in their endings")


def test_a_parent_folder_is_an_error_that_names_the_folder_below(place):
    file = place.root / "presets/data.toml"
    file.write_text(file.read_text().replace("dataset/1_spyke", "dataset"))
    told = findings_of(place)
    assert [finding.code for finding in told] == ["dataset.parent-folder", "images.none"]
    assert told[0].remedy == "name the folder of the images: dataset/1_spyke"


def test_regularisation_pictures_unused_unequal_and_overshooting(place):
    reg = place.root / "dataset/reg"
    reg.mkdir()
    for index in range(5):
        picture(seed=50 + index).save(reg / f"{index}.png")
        (reg / f"{index}.txt").write_text(f"creature {index}")
    data = place.root / "presets/data.toml"
    plain = data.read_text()
    for count, code in ((1, "dataset.reg-unequal"), (3, "dataset.reg-unused")):
        data.write_text(
            f'{plain}\n[[datasets.subsets]]\nis_reg = true\nimage_dir = "dataset/reg"\nnum_repeats = {count}\n'
        )
        found = codes(place)
        assert code in found
        assert ("dataset.reg-overshoot" in found) == (count == 3)  # 8 wanted: 3 + 3 + 3


def test_decoding_keeps_the_order_and_says_how_far_it_is(place):
    paths = [str(place.images / f"{index}.png") for index in (3, 1, 2, 0)] * 20
    heard = []
    assert [path for path, _ in decode_all(paths, heard.append)] == paths
    assert heard == list(range(1, 81))


def test_a_second_audit_decodes_nothing_and_a_changed_file_anew(place, tmp_path):
    cache = PictureCache(tmp_path / "cache")
    paths = [str(place.images / f"{index}.png") for index in range(4)]
    decoded = []

    def begin(count):
        decoded.append(count)
        return lambda done: None

    first = cache.look(paths, begin)
    assert cache.look(paths, begin) == first
    assert decoded == [4]
    picture(seed=77).save(place.images / "2.png")
    assert cache.look(paths, begin)[paths[2]] == decode(paths[2]) != first[paths[2]]
    assert decoded == [4, 1]
    status = (place.images / "3.png").stat()  # the same size, another content, a nanosecond later
    data = bytearray((place.images / "3.png").read_bytes())
    data[-20] ^= 1
    (place.images / "3.png").write_bytes(data)
    os.utime(place.images / "3.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cache.look(paths, begin)[paths[3]] == decode(paths[3])
    assert decoded == [4, 1, 1]


@pytest.mark.parametrize("harm", [b"", b"{", b"[]", b'{"format": 1}', b"\xff" * 9, b"[" * 99_999])
def test_a_cache_that_is_broken_is_as_none(place, tmp_path, harm):
    paths = [str(place.images / "0.png")]
    cache = PictureCache(tmp_path / "cache")
    seen = cache.look(paths, lambda count: lambda done: None)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(harm)
    assert PictureCache(tmp_path / "cache").look(paths, lambda count: lambda done: None) == seen
    assert file.read_bytes() != harm


def test_a_size_that_is_known_needs_no_opening_and_a_changed_file_does(place, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(picture_cache, "header_size", lambda path: opened.append(path) or header_size(path))
    path = str(place.images / "0.png")
    assert PictureCache(tmp_path / "cache").size_of(path) == header_size(path)
    PictureCache(tmp_path / "cache").look([path], lambda count: lambda done: None)
    assert PictureCache(tmp_path / "cache").size_of(path) == header_size(path)
    assert opened == [path]
    Image.new("RGB", (96, 72)).save(path)
    assert PictureCache(tmp_path / "cache").size_of(path) == (96, 72)
    assert opened == [path, path]


def test_what_looks_alike_is_remembered_until_any_picture_changes(tmp_path):
    cache = PictureCache(tmp_path / "cache")
    looks = [look_of(picture(seed=seed)) for seed in (1, 2, 1)]
    first = cache.compare(looks)
    assert first == list(alike(looks)) == [Alike(0, 2, "near")]
    kept = tmp_path / "cache/alike.json"
    before = kept.read_bytes()
    assert (cache.compare(looks), kept.read_bytes()) == (first, before)
    assert cache.compare(looks[:2]) == []
    for number in range(40):
        cache.compare([*looks, bytes([number] * 243)])
    assert len(json.loads(kept.read_bytes())["answers"]) == 16
    kept.write_bytes(b"[]")
    assert cache.compare(looks) == first


def test_a_cache_that_can_not_be_written_costs_nothing_else(place, tmp_path):
    (tmp_path / "file").touch()
    paths = [str(place.images / "0.png")]
    assert PictureCache(tmp_path / "file/deeper").look(paths, lambda count: lambda done: None)


def test_the_cache_is_where_the_user_keeps_such_things(tmp_path, monkeypatch):
    assert cache_directory({"XDG_CACHE_HOME": "/c"}, tmp_path).as_posix() == "/c/spyke-kohya"
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_directory({}, tmp_path) == tmp_path / ".cache/spyke-kohya"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_directory({}, tmp_path) == tmp_path / "Library/Caches/spyke-kohya"


def test_a_png_that_claims_to_be_huge_is_told_and_not_loaded(place):
    data = bytearray((place.images / "0.png").read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    (place.images / "0.png").write_bytes(data)
    use_buckets(place)
    assert "images.broken" in codes(place)
