"""Which pictures are taken for one picture: copies, flips, other sizes, other formats; and which are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageOps

from spyke_kohya.errors import DatasetError
from spyke_kohya.likeness import are_alike, fingerprint, group_alike


@pytest.fixture(scope="module")
def pictures(demo_pictures):
    return sorted((demo_pictures / "train" / "1_spyke_demo").glob("*.png"))


CHANGES = {
    "flipped": ImageOps.mirror,
    "half as large": lambda image: image.reduce(2),
    "flipped and twice as large": lambda image: ImageOps.mirror(image).resize((image.width * 2, image.height * 2)),
    "trimmed by a fiftieth": lambda image: image.crop((image.width // 50, 0, image.width, image.height)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_picture(pictures, tmp_path, change):
    for original in pictures:
        with Image.open(original) as image:
            CHANGES[change](image.convert("RGB")).save(tmp_path / "copy.jpg", quality=75)
        assert are_alike(fingerprint(original), fingerprint(tmp_path / "copy.jpg")), original.name


def test_pictures_that_were_drawn_apart_are_apart(demo_pictures):
    files = sorted(demo_pictures.rglob("*.png"))
    prints = [fingerprint(file) for file in files]
    pairs = [(i, j) for i in range(len(files)) for j in range(i) if are_alike(prints[i], prints[j])]
    assert len(files) == 28
    assert pairs == []


def test_groups_are_named_by_their_first_picture(pictures, tmp_path):
    with Image.open(pictures[0]) as image:
        ImageOps.mirror(image).save(tmp_path / "flip.png")
    files = [pictures[0], pictures[1], tmp_path / "flip.png"]
    assert group_alike([fingerprint(file) for file in files]) == [0, 1, 0]


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="can't be read") as refused:
        fingerprint(Path(tmp_path / "a.png"))
    assert refused.value.where.endswith("a.png")
