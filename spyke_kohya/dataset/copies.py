"""Which pictures are one picture: equal files, copies, and copies that were flipped. It knows images only.

A look is a picture reduced to 9 x 9 colours. Two pictures are alike where their looks differ by little of what varies
within them: a white ground, which all pictures of a folder may have, makes no two of them alike. That survives
resizing, recompression and slight trimming (about a fiftieth of a side); a real crop, or other colours, make a new
picture to it. Pictures of one colour have nothing to compare by: they are one only where their files are equal.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spyke_kohya.errors import DatasetError

# numpy and Pillow take a tenth of a second to import; whoever only reads answers that were kept does without
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

SIDE = 9
MOST_DIFFERENT = 0.22
"""Root mean square of two looks' difference, as a share of that of their contrasts. Copies are below, but for some that
are trimmed and all of fine lines; what was drawn apart is above, unless it shows the same thing in the same place."""
LEAST_CONTRAST = 3.0
"""Root mean square of a look's levels, of 255, about the mean of each colour: less is too near to rounding."""
_NUMBERS = SIDE * SIDE * 3
_BLOCK = 512
"""Pictures that are compared at once: 20 MB for 10,000."""


@dataclass(frozen=True)
class Fingerprint:
    """What tells a picture from others: the hash of its file, and its look."""

    sha256: str
    look: bytes


@dataclass(frozen=True)
class Alike:
    """Two pictures, by their places in what was compared, and how the second is the first."""

    first: int
    second: int
    how: Literal["near", "mirrored"]


def look_of(image: Image) -> bytes:
    """Return the 9 x 9 mean colours of a picture, row by row, red, green and blue: 243 bytes.

    Raises as decoding it does.
    """
    from PIL.Image import Resampling

    colour = image if image.mode == "RGB" else image.convert("RGB")
    return colour.resize((SIDE, SIDE), Resampling.BOX).tobytes()


def fingerprint(path: Path) -> Fingerprint:
    """Read and decode one picture. Raises DatasetError when it can't be."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return Fingerprint(hashlib.sha256(data).hexdigest(), look_of(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        remedy = "remove or replace it"
        raise DatasetError(f"the picture can't be read: {fault}", where=str(path), remedy=remedy) from fault


def pairs_alike(ones: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Every one with every other whose file holds the same picture, flipped or not: their indices, in order."""
    same_bytes: dict[str, list[int]] = defaultdict(list)
    for index, other in enumerate(others):
        same_bytes[other.sha256].append(index)
    found = {(index, other) for index, one in enumerate(ones) for other in same_bytes.get(one.sha256, ())}
    for second, firsts, _ in _search([print_.look for print_ in (*others, *ones)]):
        found |= {(second - len(others), int(first)) for first in firsts if first < len(others) <= second}
    return sorted(found)


def group_alike(fingerprints: Sequence[Fingerprint]) -> list[int]:
    """For each picture the index of the first one of its group; likeness joins groups in chains."""
    import numpy as np

    same_bytes: dict[str, int] = {}
    group = np.array([same_bytes.setdefault(one.sha256, index) for index, one in enumerate(fingerprints)], np.intp)
    for second, firsts, _ in _search([one.look for one in fingerprints]):
        joined = group[np.append(firsts, second)]
        group[np.isin(group, joined)] = joined.min()
    return [int(first) for first in group]


def alike(looks: Sequence[bytes]) -> Iterator[Alike]:
    """Yield every picture that looks like an earlier one or its mirror image, once, with the first such picture.

    All pairs of 10,000 are compared in about a second.
    """
    for second, firsts, near in _search(looks):
        yield Alike(int(firsts[0]), second, "near" if near[0] else "mirrored")


def _search(looks: Sequence[bytes]) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.bool_]]]:
    """Yield each picture that is like earlier ones: its index, theirs in order, and whether each is near, not mirrored.

    |a - b|^2 <= most(a) + most(b) is a.b >= least(a) + least(b) with least = (|a|^2 - most(a)) / 2: one product of
    matrices answers for a block of pairs. All numbers are whole and below 2^24, so the products are exact, and whether
    two are alike doesn't depend on what else is compared.
    """
    import numpy as np

    levels = np.frombuffer(b"".join(looks), np.uint8).reshape(-1, SIDE, SIDE, 3).astype(np.float32) - 128
    rows, turned = levels.reshape(-1, _NUMBERS), levels[:, :, ::-1].reshape(-1, _NUMBERS)
    squares = (rows.astype(np.float64) ** 2).sum(1)
    varied = squares - (levels.sum((1, 2), dtype=np.float64) ** 2).sum(1) / SIDE**2
    least = np.rint(squares / 2 - MOST_DIFFERENT**2 * varied / 4).astype(np.float32)
    least[varied < _NUMBERS * LEAST_CONTRAST**2] = np.inf  # too plain to be like anything
    for start in range(0, len(rows), _BLOCK):
        stop = min(start + _BLOCK, len(rows))
        needed = least[start:stop, None] + least[:stop]
        near, mirrored = (
            np.tril(rows[start:stop] @ others[:stop].T >= needed, start - 1)  # each pair once, none with itself
            for others in (rows, turned)
        )
        like = near | mirrored
        for row in np.flatnonzero(like.any(1)):
            firsts = np.flatnonzero(like[row])
            yield start + int(row), firsts, near[row, firsts]
