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
    """The 9 x 9 mean colours of a picture, row by row, red, green and blue: 243 bytes. Raises as decoding it does."""
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
    """Every picture whose look is like an earlier one's, or like its mirror image; each is told once, with the first.

    All pairs of 10,000 are compared in about 0.3 s.
    """
    for second, firsts, near in _search(looks):
        yield Alike(int(firsts[0]), second, "near" if near[0] else "mirrored")


def _search(looks: Sequence[bytes]) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.bool_]]]:
    """Each picture that is like earlier ones: its index, theirs in order, and whether it is near or only mirrored."""
    import numpy as np

    for start, firsts, near, mirrored in _blocks(looks) if len(looks) > 1 else ():
        like = near | mirrored
        for row in np.flatnonzero(like.any(1)):
            yield start + int(row), firsts[like[row]], near[row, like[row]]


def _blocks(looks: Sequence[bytes]) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]]:
    """For each block of pictures the index of its first, those of some earlier pictures, and which of these it is like.

    That is (block, earlier) twice, near and mirrored. Whole looks are compared only where the sums of lines are close.
    """
    import numpy as np

    pixels, mirrored, lines = _tables(looks)
    for start in range(0, len(looks), _BLOCK):
        block = slice(start, start + _BLOCK)
        perhaps = np.tril(lines[block].close_to(lines[: block.stop]), start - 1)  # each pair once, none with itself
        firsts = np.flatnonzero(perhaps.any(0))
        near, turned = (pixels[block].close_to(table[firsts]) & perhaps[:, firsts] for table in (pixels, mirrored))
        yield start, firsts, near, turned


@dataclass(frozen=True)
class _Table:
    """A row of numbers a picture, (n, k); two are close where the product of their rows reaches the sum of ``least``.

    |a - b|^2 <= most(a) + most(b) is a.b >= least(a) + least(b) with least = (|row|^2 - most) / 2: one matrix product
    answers for all pairs. Infinite is what is close to nothing.
    """

    rows: NDArray[np.float32]
    least: NDArray[np.float32]

    def __getitem__(self, which: slice | NDArray[np.intp]) -> _Table:
        return _Table(self.rows[which], self.least[which])

    def close_to(self, others: _Table) -> NDArray[np.bool_]:
        """Which of these is close to which of the others, (n, m)."""
        product = self.rows @ others.rows.T
        product -= others.least
        return product >= self.least[:, None]


def _tables(looks: Sequence[bytes]) -> tuple[_Table, _Table, _Table]:
    """The looks, the looks mirrored, and the sums of their lines: close wherever two are alike, mirrored or not.

    All numbers of the looks are whole and below 2^24, so that their products are exact: whether two are alike doesn't
    depend on what else is compared.
    """
    import numpy as np

    levels = np.frombuffer(b"".join(looks), np.uint8).reshape(-1, SIDE, SIDE, 3).astype(np.int32) - 128
    squares = (levels**2).sum((1, 2, 3))
    varied = squares - (levels.sum((1, 2)) ** 2).sum(1) / SIDE**2
    least = np.rint(squares / 2 - MOST_DIFFERENT**2 * varied / 4)
    least[varied < _NUMBERS * LEAST_CONTRAST**2] = np.inf
    pixels, mirrored = (_table(side, least) for side in (levels, levels[:, :, ::-1]))
    lines = levels.sum(2) / np.sqrt(SIDE)
    rounding = 8  # these numbers are not whole: more than their products can be off
    return pixels, mirrored, _table(lines, least - (squares - (lines**2).sum((1, 2))) / 2 - rounding)


def _table(numbers: NDArray[np.int32 | np.float64], least: NDArray[np.float64]) -> _Table:
    import numpy as np

    return _Table(numbers.reshape(len(numbers), -1).astype(np.float32), least.astype(np.float32))
