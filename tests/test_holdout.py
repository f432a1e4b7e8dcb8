"""Setting pictures aside: what goes, what stays, and that it can be undone."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from PIL import Image, ImageOps

from spyke_kohya.dataset.holdout import choose_heldout, default_target, put_back, set_aside
from spyke_kohya.errors import DatasetError, UsageError


@pytest.fixture
def folder(demo_pictures, tmp_path):
    return shutil.copytree(demo_pictures / "train" / "1_spyke_demo", tmp_path / "1_spyke")


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_pictures_move_with_their_captions_and_come_back(folder):
    before = content(folder)
    choice = choose_heldout(folder, 4)
    set_aside(choice)
    target = default_target(folder)
    assert len(choice.pictures) == 4
    assert {file.name for file in target.iterdir()} == {*choice.files, "heldout.json"}
    assert {name.rpartition(".")[0] for name in choice.files} == {name.rpartition(".")[0] for name in choice.pictures}
    assert content(folder).keys() == before.keys() - set(choice.files)
    assert put_back(folder, target) == 8
    assert content(folder) == before
    assert not target.exists()


def test_the_choice_depends_on_the_seed_and_the_content_alone(folder, tmp_path):
    chosen = choose_heldout(folder, 4).pictures
    renamed = shutil.copytree(folder, tmp_path / "another")
    assert choose_heldout(renamed, 4).pictures == chosen
    assert len({choose_heldout(folder, 4, seed=seed).pictures for seed in range(4)}) > 1


def test_a_flip_goes_with_its_original(folder):
    for name in ("spyke_00", "spyke_03", "spyke_07"):
        with Image.open(folder / f"{name}.png") as image:
            ImageOps.mirror(image).save(folder / f"{name}_flip.png")
    for seed in range(6):
        choice = choose_heldout(folder, 5, seed=seed)
        taken = {name.removesuffix(".png").removesuffix("_flip") for name in choice.pictures}
        assert len(taken) == 5
        both = [name for name in ("spyke_00", "spyke_03", "spyke_07") if name in taken]
        assert all(f"{name}_flip.png" in choice.pictures for name in both)
        assert choice.left == 7


def test_more_than_half_of_the_pictures_never_goes(folder):
    assert choose_heldout(folder, 6).left == 6
    with pytest.raises(DatasetError, match="7 of 12 different pictures are too many") as refused:
        choose_heldout(folder, 7)
    assert "at most 6" in refused.value.remedy


def test_nothing_is_overwritten_on_the_way_there_or_back(folder):
    choice = choose_heldout(folder, 4)
    target = default_target(folder)
    target.mkdir()
    (target / choice.files[0]).write_text("mine")
    with pytest.raises(DatasetError, match="there already"):
        choose_heldout(folder, 4)
    (target / choice.files[0]).unlink()
    set_aside(choice)
    with pytest.raises(DatasetError, match="set aside here already"):
        choose_heldout(folder, 4)
    (folder / choice.files[0]).write_text("mine")
    with pytest.raises(DatasetError, match="can't be put back"):
        put_back(folder, target)
    assert (folder / choice.files[0]).read_text() == "mine"
    assert (target / choice.files[0]).is_file()


def test_copies_are_removed_only_where_the_original_is_still_there(folder):
    before = content(folder)
    choice = choose_heldout(folder, 4)
    set_aside(choice, copy=True)
    assert content(folder) == before
    assert put_back(folder, default_target(folder)) == 8
    assert content(folder) == before
    set_aside(choice, copy=True)
    (folder / choice.files[0]).unlink()
    with pytest.raises(DatasetError, match="can't be put back"):
        put_back(folder, default_target(folder))


def test_a_move_that_was_cut_short_is_undone(folder):
    before = content(folder)
    choice = choose_heldout(folder, 4)
    set_aside(choice)
    target = default_target(folder)
    for name in choice.files[:3]:  # as if these had not been moved yet
        shutil.move(target / name, folder / name)
    assert put_back(folder, target) == 5
    assert content(folder) == before


def test_undoing_nothing_says_so(folder):
    with pytest.raises(UsageError, match="nothing was set aside"):
        put_back(folder, default_target(folder))
    with pytest.raises(UsageError, match="no such folder"):
        choose_heldout(folder / "nowhere", 4)


def rename(folder, old, new):
    """Give a picture and its caption another name; the choice goes by content, and stays."""
    for suffix in (".png", ".txt"):
        (folder / old).with_suffix(suffix).rename(folder / (new + suffix))


def test_a_picture_takes_along_what_is_named_after_it_and_nothing_of_a_picture_with_a_longer_name(folder):
    chosen = choose_heldout(folder, 1).pictures[0]
    others = sorted(file.name for file in folder.glob("*.png") if file.name != chosen)
    for old, new in zip((chosen, *others[:3]), ("a", "a.1", "a.2", "a.1.b"), strict=True):
        rename(folder, old, new)
    for name in ("a.png.txt", "a.npz", "a_0192x0192_sd.npz", "a.mask.txt"):
        (folder / name).write_bytes(b"of a.png")
    for name in ("a.1.npz", "a.1_0192x0192_sd.npz", "a.3.gif", "a.3.txt", "ab.txt", "a_b.txt"):
        (folder / name).write_bytes(b"of another")
    choice = choose_heldout(folder, 1)
    assert choice.pictures == ("a.png",)
    assert choice.files == ("a.mask.txt", "a.npz", "a.png", "a.png.txt", "a.txt", "a_0192x0192_sd.npz")


def test_a_name_that_is_no_text_comes_back_too(folder):
    chosen = choose_heldout(folder, 1).pictures[0]
    (folder / chosen).rename(folder / os.fsdecode(b"\x83X.png"))
    before = content(folder)
    set_aside(choose_heldout(folder, 1))
    assert len(content(folder)) == len(before) - 1
    assert put_back(folder, default_target(folder)) == 1
    assert content(folder) == before


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", ["../payload", "sub/payload", "{root}/payload", "..", ".", "", "heldout.json", 5])
def test_a_manifest_can_name_only_files_of_its_own_folder(folder, tmp_path, name, copied):
    target = default_target(folder)
    (target / "sub").mkdir(parents=True)
    for place in (tmp_path, target, target / "sub", folder):
        (place / "payload").write_text("theirs")
    named = name.format(root=tmp_path) if isinstance(name, str) else name
    write_manifest(target, [named], copied=copied)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="manifest can't be read"):
        put_back(folder, target)
    assert sorted(tmp_path.rglob("*")) == before


def write_manifest(target, files, *, copied=False, source="elsewhere"):
    document = {"schema_version": 1, "source": str(source), "seed": 0, "copied": copied, "files": files}
    (target / "heldout.json").write_text(json.dumps(document))


def test_files_go_back_to_the_folder_that_was_asked_for_whatever_the_manifest_says(folder, tmp_path):
    target = default_target(folder)
    target.mkdir()
    (target / "payload").write_text("theirs")
    write_manifest(target, ["payload"], source=tmp_path / "elsewhere")
    put_back(folder, target)
    assert (folder / "payload").is_file()
    assert not (tmp_path / "elsewhere").exists()


def test_no_file_is_written_through_a_link(folder, tmp_path):
    choice = choose_heldout(folder, 1)
    target = default_target(folder)
    target.mkdir()
    (target / choice.files[0]).symlink_to(tmp_path / "outside")
    with pytest.raises(DatasetError, match="there already"):
        choose_heldout(folder, 1)


def test_a_copy_that_is_the_original_itself_is_not_removed(folder):
    write_manifest(folder, ["spyke_00.png"], copied=True)
    with pytest.raises(DatasetError, match="can't be put back"):
        put_back(folder, folder)
    assert (folder / "spyke_00.png").is_file()


def test_cached_latents_and_masks_go_along(folder):
    name = choose_heldout(folder, 4).pictures[0].removesuffix(".png")
    (folder / f"{name}_0192x0192_sd.npz").write_bytes(b"latents")
    (folder / f"{name}0.txt").write_text("of another picture")
    choice = choose_heldout(folder, 4)
    assert f"{name}_0192x0192_sd.npz" in choice.files
    assert f"{name}0.txt" not in choice.files
