"""The double-repeat guard: a folder's prefix ``N_`` means nothing beside a dataset preset, and people think it does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

from spyke_kohya.findings import Finding, Severity
from spyke_kohya.presets.resolved import ResolvedDataset, ResolvedSubset

_PREFIX = re.compile(r"(\d+)_")


def check_repeats(datasets: Iterable[ResolvedDataset], *, steps_confirmed: bool) -> list[Finding]:
    """``repeats.stated-twice`` and ``repeats.prefix-ignored`` for folders whose prefix says more than 1.

    sd-scripts reads the prefix only with --train_data_dir (sd-scripts v0.10.1 config_util.py:607). Once the person has
    confirmed the number of steps (``[expect] total_steps``, met by the plan), they are warnings.
    """
    severity: Severity = "warning" if steps_confirmed else "error"
    return [
        finding
        for dataset in datasets
        for subset in dataset.subsets
        if (finding := _check_subset(subset, severity)) is not None
    ]


def _check_subset(subset: ResolvedSubset, severity: Severity) -> Finding | None:
    prefix = folder_prefix(subset.image_dir)
    if prefix is None or prefix <= 1:
        return None
    folder = PurePath(subset.image_dir).name
    where = f"{subset.where}.image_dir"
    happens = (
        f"sd-scripts ignores the prefix beside a dataset config: each image is used {subset.num_repeats} x an epoch"
    )
    if subset.num_repeats_stated:
        message = f"the folder {folder} says {prefix} repeats and num_repeats says {subset.num_repeats}; {happens}"
        remedy = f"rename the folder to 1_{folder.partition('_')[2]}, and say the repeats in num_repeats alone"
        return Finding("repeats.stated-twice", severity, where, message, remedy)
    message = f"the folder {folder} says {prefix} repeats and no num_repeats is set; {happens}"
    return Finding(
        "repeats.prefix-ignored", severity, where, message, f"set num_repeats = {prefix}, or rename the folder"
    )


def folder_prefix(image_dir: str) -> int | None:
    """Return the N of a folder named ``N_something``, else None."""
    match = _PREFIX.match(PurePath(image_dir).name)
    return int(match[1]) if match else None
