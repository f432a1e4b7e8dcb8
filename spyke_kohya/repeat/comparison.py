"""Compare what two recorded runs were asked to do."""

from __future__ import annotations

from typing import Any

import toml

from spyke_kohya.errors import PresetError
from spyke_kohya.record.record import read_record
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.repeat.inputs import Difference, changed

_OWN_NAMES = ("output_name", "output_dir")  # two runs differ in these as a matter of course


def differences(first: RunDirectory, second: RunDirectory) -> list[Difference]:
    """Return what two runs were asked to do differently, by key. Raises PresetError where that can't be read."""
    return changed(_asked(first), _asked(second))


def _asked(run: RunDirectory) -> dict[str, Any]:
    record = read_record(run, or_raise=PresetError)
    try:
        dataset = toml.loads(run.dataset_config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise PresetError(f"this run's dataset can't be read: {fault}", where=str(run.dataset_config)) from fault
    return {
        "train_network": {name: value for name, value in record.settings.items() if name not in _OWN_NAMES},
        "target": record.target,
        "dataset": dataset,
        "engine": record.engine.commit,
        "total_steps": record.plan.total_steps,
    }
