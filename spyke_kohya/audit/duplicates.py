"""Pictures that are there twice: the same bytes, nearly the same pixels, or the mirror image.

Pixels are compared by grey thumbnails of 9x8: two that differ by no more than a few levels look the same. A perceptual
hash would be a coarser form of the same numbers, and the library for it brings scipy and PyWavelets.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, TypeAlias

from spyke_kohya.audit.pictures import THUMBNAIL, Pictures
from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.scan import Scan, ScannedSubset

Role: TypeAlias = Literal["training", "regularisation", "held-out"]

_SAME_LEVELS = 3.0
"""Root mean square of the thumbnails' difference, of 255 levels: a copy in JPEG or another size is below it."""
_FLAT_LEVELS = 8.0
"""Thumbnails with less contrast than this have nothing to compare by."""
_BLOCK = 512


@dataclass(frozen=True)
class Alike:
    """Two pictures, by their places in what was compared, and how the second is the first."""

    first: int
    second: int
    how: Literal["near", "mirrored"]


Compare: TypeAlias = Callable[[list[bytes]], Iterable[Alike]]


def roles_of(found: Scan, held_out: Scan) -> dict[str, Role]:
    """What every image file is for; those of a folder that is named twice, once."""
    roles: dict[str, Role] = {}
    real: set[str] = set()
    for subset, is_held_out in _subsets(found, held_out):
        folder = os.path.realpath(subset.folder)
        if folder not in real:
            real.add(folder)
            role: Role = "held-out" if is_held_out else "regularisation" if subset.subset.is_reg else "training"
            roles |= dict.fromkeys((image.path for image in subset.images), role)
    return roles


def check_held_out_apart(found: Scan, held_out: Scan) -> list[Finding]:
    """An error where the held-out folder is one that is trained on."""
    trained = {os.path.realpath(subset.folder) for subset, is_held_out in _subsets(found, held_out) if not is_held_out}
    return [
        error(
            "images.in-two-roles",
            subset.folder,
            "the held-out folder is trained on: nothing in it is new to the LoRA",
            "set pictures aside in another folder: spyke-kohya holdout DIR --count 8",
        )
        for subset, is_held_out in _subsets(found, held_out)
        if is_held_out and os.path.realpath(subset.folder) in trained
    ]


def _subsets(found: Scan, held_out: Scan) -> Iterator[tuple[ScannedSubset, bool]]:
    """Every folder, and whether it is held out."""
    for scanned in (found, held_out):
        for dataset in scanned.datasets:
            yield from ((subset, scanned is held_out) for subset in dataset.subsets)


def check_duplicates(roles: Mapping[str, Role], pictures: Pictures, compare: Compare) -> list[Finding]:
    """Findings on pictures that are there twice, within a role or across two. ``compare`` is ``alike``, or knows it."""
    paths = [path for path in roles if path in pictures and not pictures[path].problem]
    exact, distinct = _by_digest(paths, pictures)
    findings = [_same_bytes(first, other, roles) for first, *others in exact for other in others]
    for pair in compare([bytes.fromhex(pictures[path].thumbnail) for path in distinct]):
        findings.append(_same_look(distinct[pair.first], distinct[pair.second], pair.how, roles))
    return findings


def alike(thumbnails: list[bytes]) -> Iterator[Alike]:
    """Every picture that looks like an earlier one, or like its mirror image; each is told once.

    Sorted by brightness, which mirroring leaves alone, only neighbours need comparing: about 0.3 s for 10,000.
    """
    if len(thumbnails) < 2:
        return
    import numpy as np

    grey = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), THUMBNAIL[1], THUMBNAIL[0])
    pixels = grey.astype(np.float32) - 128
    order = np.argsort(pixels.mean((1, 2)), kind="stable")
    order = order[pixels.std((1, 2))[order] >= _FLAT_LEVELS]
    told: set[int] = set()
    hows: tuple[Literal["near", "mirrored"], ...] = ("near", "mirrored")
    for how in hows:
        turned = pixels if how == "near" else pixels[:, :, ::-1]
        flat, other = (array.reshape(len(array), -1)[order] for array in (pixels, turned))
        for low, high in _close_pairs(flat, other):
            first, second = sorted((int(order[low]), int(order[high])))
            if second not in told:
                told.add(second)
                yield Alike(first, second, how)


def _close_pairs(flat: Any, other: Any) -> Iterator[tuple[int, int]]:
    """For rows of ``other`` an earlier row of ``flat`` that is close, if any; both are sorted by their mean.

    The squared distance, less its sign and half of it, is one product of rows with two more numbers each.
    """
    import numpy as np

    means, width = flat.mean(1), flat.shape[1]
    ones, halves = np.ones((len(flat), 1), np.float32), (flat**2).sum(1, keepdims=True) / -2
    left, right = np.hstack((flat, halves, ones)), np.hstack((other, ones, halves))
    for start in range(0, len(flat), _BLOCK):
        block = left[start : start + _BLOCK]
        end = int(np.searchsorted(means, means[start + len(block) - 1] + _SAME_LEVELS, "right"))
        close = block @ right[start:end].T >= width * _SAME_LEVELS**2 / -2
        close[:, : len(block)] = np.triu(close[:, : len(block)], 1)  # each pair once, and none with itself
        for column in np.flatnonzero(close.any(0)):
            yield int(start + close[:, column].argmax()), int(start + column)


def _by_digest(paths: list[str], pictures: Pictures) -> tuple[list[list[str]], list[str]]:
    """The groups of files with the same bytes, and one path of each different file."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[pictures[path].digest].append(path)
    return [group for group in groups.values() if len(group) > 1], [group[0] for group in groups.values()]


def _same_bytes(first: str, other: str, roles: Mapping[str, Role]) -> Finding:
    if roles[first] != roles[other]:
        message = f"it is the same file as {first}: one picture is {roles[first]} and {roles[other]}"
        return error("images.in-two-roles", other, message, "remove one of them")
    message = f"it is the same file as {PurePath(first).name}: that picture counts twice"
    return warning("images.duplicate", other, message, "remove one, and say repeats in num_repeats")


def _same_look(first: str, other: str, how: str, roles: Mapping[str, Role]) -> Finding:
    name = PurePath(first).name if PurePath(first).parent == PurePath(other).parent else first
    if roles[first] != roles[other]:
        message = f"it looks like {name}: one picture is {roles[first]} and {roles[other]}"
        return warning("images.alike-in-two-roles", other, message, "remove one of them")
    if how == "mirrored":
        message = f"it is {name}, mirrored: the two count as one picture"
        return warning("images.mirrored", other, message, "remove one; flip_aug mirrors all of them, if that is right")
    message = f"it looks like {name}: that picture may count twice"
    return warning("images.near-duplicate", other, message, "look at both, and remove one")
