"""Pictures that are there twice: the same bytes, nearly the same pixels, or the mirror image.

What looks the same is ``likeness``'s to say; here its answers become findings.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Literal, TypeAlias

from spyke_kohya.dataset.copies import Alike
from spyke_kohya.dataset.pictures import Pictures
from spyke_kohya.dataset.scan import Scan, ScannedSubset
from spyke_kohya.findings import Finding, error, warning

Role: TypeAlias = Literal["training", "regularisation", "held-out"]

Compare: TypeAlias = Callable[[Sequence[bytes]], Iterable[Alike]]
"""Tells which of many looks are alike, as ``likeness.alike`` does."""


def roles_of(found: Scan, held_out: ScannedSubset | None) -> dict[str, Role]:
    """Return what every image file is for; those of a folder that is named twice, once."""
    roles: dict[str, Role] = {}
    real: set[str] = set()
    subsets = [subset for dataset in found.datasets for subset in dataset.subsets]
    for subset in [*subsets, held_out] if held_out else subsets:
        folder = os.path.realpath(subset.folder)
        if folder not in real:
            real.add(folder)
            role: Role = "held-out" if subset is held_out else "regularisation" if subset.subset.is_reg else "training"
            roles |= dict.fromkeys((image.path for image in subset.images), role)
    return roles


def check_held_out_apart(found: Scan, held_out: ScannedSubset | None) -> list[Finding]:
    """Report an error where the held-out folder is one that is trained on."""
    folders = {os.path.realpath(subset.folder) for dataset in found.datasets for subset in dataset.subsets}
    if held_out is None or os.path.realpath(held_out.folder) not in folders:
        return []
    message = "the held-out folder is trained on: nothing in it is new to the LoRA"
    remedy = "set pictures aside in another folder: spyke-kohya holdout DIR --count 8"
    return [error("images.in-two-roles", held_out.folder, message, remedy)]


def check_duplicates(roles: Mapping[str, Role], pictures: Pictures, compare: Compare) -> list[Finding]:
    """Return findings on pictures that are there twice, within a role or across two."""
    paths = [path for path in roles if path in pictures and not pictures[path].problem]
    exact, distinct = _by_digest(paths, pictures)
    findings = [_same_bytes(first, other, roles) for first, *others in exact for other in others]
    for pair in compare([bytes.fromhex(pictures[path].look) for path in distinct]):
        findings.append(_same_look(distinct[pair.first], distinct[pair.second], pair.how, roles))
    return findings


def _by_digest(paths: list[str], pictures: Pictures) -> tuple[list[list[str]], list[str]]:
    """Return the groups of files with the same bytes, and one path of each different file."""
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
