"""Setting pictures aside: what goes, what stays, and that it can be undone."""

from __future__ import annotations

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
    assert put_back(target) == 8
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
        put_back(target)
    assert (folder / choice.files[0]).read_text() == "mine"
    assert (target / choice.files[0]).is_file()


def test_copies_are_removed_only_where_the_original_is_still_there(folder):
    before = content(folder)
    choice = choose_heldout(folder, 4)
    set_aside(choice, copy=True)
    assert content(folder) == before
    assert put_back(default_target(folder)) == 8
    assert content(folder) == before
    set_aside(choice, copy=True)
    (folder / choice.files[0]).unlink()
    with pytest.raises(DatasetError, match="can't be put back"):
        put_back(default_target(folder))


def test_a_move_that_was_cut_short_is_undone(folder):
    before = content(folder)
    choice = choose_heldout(folder, 4)
    set_aside(choice)
    target = default_target(folder)
    for name in choice.files[:3]:  # as if these had not been moved yet
        shutil.move(target / name, folder / name)
    assert put_back(target) == 5
    assert content(folder) == before


def test_undoing_nothing_says_so(folder):
    with pytest.raises(UsageError, match="nothing was set aside"):
        put_back(default_target(folder))
    with pytest.raises(UsageError, match="no such folder"):
        choose_heldout(folder / "nowhere", 4)


def test_cached_latents_and_masks_go_along(folder):
    name = choose_heldout(folder, 4).pictures[0].removesuffix(".png")
    (folder / f"{name}_0192x0192_sd.npz").write_bytes(b"latents")
    (folder / f"{name}0.txt").write_text("of another picture")
    choice = choose_heldout(folder, 4)
    assert f"{name}_0192x0192_sd.npz" in choice.files
    assert f"{name}0.txt" not in choice.files
