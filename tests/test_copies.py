"""Which pictures are taken for one picture: copies, flips, other sizes, other formats; and which are not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from spyke_kohya.dataset import copies as likeness
from spyke_kohya.dataset.copies import (
    SIDE,
    Alike,
    Fingerprint,
    alike,
    fingerprint,
    group_alike,
    look_of,
    pairs_alike,
)
from spyke_kohya.errors import DatasetError


@pytest.fixture(scope="module")
def pictures(demo_pictures):
    return sorted((demo_pictures / "train" / "1_spyke_demo").glob("*.png"))


def are_alike(one, other):
    return bool(pairs_alike([one], [other]))


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


def draw_on_white(seed):
    """A small thing somewhere in the middle of a white sheet, with an outline beside it."""
    chance = random.Random(seed)
    sheet = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(sheet)
    x, y, width, height = (chance.uniform(low, high) for low, high in ((80, 176), (80, 176), (20, 70), (20, 70)))
    shape = draw.ellipse if seed % 2 else draw.rectangle
    shape((x - width, y - height, x + width, y + height), fill=tuple(chance.randrange(256) for _ in range(3)))
    draw.line([(chance.gauss(128, 40), chance.gauss(128, 40)) for _ in range(6)], "black", 3)
    return sheet


def test_different_things_on_a_white_ground_are_apart():
    assert list(alike([look_of(draw_on_white(seed)) for seed in range(100)])) == []


def test_pictures_with_nothing_to_compare_by_are_one_only_where_their_files_are_equal():
    grain = Image.effect_noise((256, 256), 20).convert("RGB")
    flat = [*(Image.new("RGB", (64, 64), colour) for colour in ("white", "#fefefe", "#a02030")), grain]
    looks = [look_of(image) for image in (*flat, *(image.resize((99, 99)) for image in flat))]
    assert list(alike(looks)) == []
    assert group_alike([Fingerprint(name, looks[0]) for name in "aba"]) == [0, 1, 0]
    assert are_alike(Fingerprint("a", looks[0]), Fingerprint("a", looks[0]))


def some_alike():
    """Looks of 20 pictures: ten on white, each followed by a copy that is mirrored, larger or trimmed."""
    for seed in range(10):
        sheet = draw_on_white(seed)
        yield look_of(sheet)
        yield look_of((ImageOps.mirror(sheet), sheet.resize((400, 300)), sheet.crop((3, 3, 256, 256)))[seed % 3])


def test_each_later_picture_is_told_once_with_the_first_that_it_is_like():
    looks = list(some_alike())
    told = [Alike(2 * seed, 2 * seed + 1, "near" if seed % 3 else "mirrored") for seed in range(10)]
    assert list(alike(looks)) == told
    assert list(alike([*looks, looks[1], looks[2]])) == [*told, Alike(0, 20, "mirrored"), Alike(2, 21, "near")]


@pytest.mark.parametrize("block", [1, 3, 512])
def test_what_is_alike_does_not_depend_on_what_else_is_compared(monkeypatch, block):
    monkeypatch.setattr(likeness, "_BLOCK", block)
    prints = [Fingerprint(str(index), look) for index, look in enumerate(some_alike())]
    pairs = [(i, j) for i in range(20) for j in range(20) if are_alike(prints[i], prints[j])]
    assert pairs_alike(prints, prints) == pairs
    assert group_alike(prints) == [index - index % 2 for index in range(20)]


def test_likeness_joins_in_chains():
    sheets = [draw_on_white(1).crop((step, 0, 256, 256)) for step in (0, 12, 6)]
    prints = [Fingerprint(str(index), look_of(sheet)) for index, sheet in enumerate(sheets)]
    assert not are_alike(prints[0], prints[1])
    assert group_alike(prints) == [0, 0, 0]


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


def pattern(amplitude, period):
    """Stripes of brightness about the middle, (9, 9, 3)."""
    stripes = np.where(np.arange(SIDE) // period % 2 == 0, amplitude, -amplitude)
    return 128 + np.broadcast_to(stripes[None, :, None], (SIDE, SIDE, 3)).astype(float)


def contrast(look):
    return float(np.sqrt(((look - look.mean((0, 1))) ** 2).mean()))


@pytest.mark.parametrize(("change", "is_copy"), [(13, True), (14, False)])
def test_copies_differ_by_less_than_22_hundredths_of_their_contrast(change, is_copy):
    one = pattern(60, 1)
    other = one + pattern(change, 2).transpose(1, 0, 2) - 128
    difference = float(np.sqrt(((one - other) ** 2).mean()))
    share = difference / np.sqrt((contrast(one) ** 2 + contrast(other) ** 2) / 2)
    assert 0.21 < share < 0.24
    assert (share <= 0.22) == is_copy
    looks = [look.astype(np.uint8).tobytes() for look in (one, other)]
    assert bool(list(alike(looks))) == is_copy


@pytest.mark.parametrize(("amplitude", "is_copy"), [(3, False), (4, True)])
def test_what_varies_by_less_than_3_levels_is_like_nothing(amplitude, is_copy):
    look = pattern(amplitude, 1)
    assert (contrast(look) >= 3) == is_copy
    assert abs(contrast(look) - 3) < 1
    assert bool(list(alike([look.astype(np.uint8).tobytes()] * 2))) == is_copy
