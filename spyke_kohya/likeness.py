"""Which pictures are one picture: equal files, near copies, and copies that were flipped. It knows images only.

A fingerprint is a difference hash in both directions (8 x 8 comparisons of neighbouring pixels, across and down) and
the mean colours of 3 x 3 fields. It survives resizing, recompression and slight trimming (about a twentieth of a
side); a real crop, or other colours, make a new picture to it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spyke_kohya.errors import DatasetError

SIDE = 8
MOST_DIFFERENT = 10
"""Of the 128 comparisons, how many may differ between copies of one picture; unrelated pictures differ in 20 to 80."""
FIELDS = 3
MOST_OFF = 16.0
"""How far the mean colours of two copies may be apart on average, of 255."""


@dataclass(frozen=True)
class Fingerprint:
    """What tells a picture from others: the hash of its file, and its looks as it is and flipped."""

    sha256: str
    looks: Looks
    flipped: Looks


@dataclass(frozen=True)
class Looks:
    """``hash`` holds 128 comparisons, ``colours`` 3 x 3 mean colours, row by row."""

    hash: int
    colours: tuple[float, ...]

    def is_like(self, other: Looks) -> bool:
        if (self.hash ^ other.hash).bit_count() > MOST_DIFFERENT:
            return False
        off = sum(abs(one - two) for one, two in zip(self.colours, other.colours, strict=True))
        return off / len(self.colours) <= MOST_OFF


def fingerprint(path: Path) -> Fingerprint:
    """Read and decode one picture. Raises DatasetError when it can't be."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (64, 64))
            colour = image.convert("RGB")
            grey = colour.convert("L").resize((SIDE + 1, SIDE + 1), Image.Resampling.BOX)
            fields = colour.resize((FIELDS, FIELDS), Image.Resampling.BOX)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        remedy = "remove or replace it"
        raise DatasetError(f"the picture can't be read: {fault}", where=str(path), remedy=remedy) from fault
    pixels, colours = np.asarray(grey, dtype=np.int16), np.asarray(fields, dtype=np.float64)
    looks = Looks(_difference_hash(pixels), tuple(colours.ravel().tolist()))
    flipped = Looks(_difference_hash(pixels[:, ::-1]), tuple(colours[:, ::-1].ravel().tolist()))
    return Fingerprint(hashlib.sha256(data).hexdigest(), looks, flipped)


def are_alike(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two files hold one picture, flipped or not."""
    return one.sha256 == other.sha256 or one.looks.is_like(other.looks) or one.looks.is_like(other.flipped)


def group_alike(fingerprints: Sequence[Fingerprint]) -> list[int]:
    """For each picture the index of the first one of its group; likeness joins groups in chains."""
    first = list(range(len(fingerprints)))
    for i, one in enumerate(fingerprints):
        for j in range(i):
            if first[j] != first[i] and are_alike(one, fingerprints[j]):
                joined, left = sorted((first[i], first[j]))
                first = [joined if group == left else group for group in first]
    return first


def _difference_hash(pixels: NDArray[np.int16]) -> int:
    across = np.diff(pixels, axis=1)[:SIDE] > 0
    down = np.diff(pixels, axis=0)[:, :SIDE] > 0
    bits = np.concatenate([across.ravel(), down.ravel()])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
