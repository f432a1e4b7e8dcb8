"""Repeat a recorded run, and compare it: its own directory holds what it was asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toml

from spyke_kohya.engine.packages import recorded_versions
from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import PresetError
from spyke_kohya.findings import Finding, warning
from spyke_kohya.presets.loading import Loaded, apply_setting, load_document
from spyke_kohya.record.record import RecordedEngine, read_record
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.repeat.inputs import Difference, changed, engine_parts

_OWN_NAMES = ("output_name", "output_dir")  # two runs always differ in these


@dataclass(frozen=True)
class Recorded:
    """A run to repeat: its preset, the directory its paths are relative to, and the engine that ran it."""

    loaded: Loaded
    root: Path
    engine: RecordedEngine


def recorded_preset(run: RunDirectory, settings: Sequence[str] = ()) -> Recorded:
    """Return the preset of a recorded run, changed by ``settings``; its dataset preset is that in the run directory.

    Raises PresetError.
    """
    remedy = "name a run directory, with run.json and dataset.toml in it"
    record = read_record(run, or_raise=PresetError)
    preset, lost = record.preset, [problem for problem in record.problems if problem.startswith(("preset", "cwd"))]
    if lost or not (preset.name and preset.path and record.cwd):
        why = f": {lost[0]}" if lost else ""
        raise PresetError(f"this run's record doesn't hold its preset{why}", where=str(run.record), remedy=remedy)
    document = {**preset.document.model_dump(exclude_unset=True), "dataset": str(run.dataset_config.resolve())}
    root = Path(record.cwd)
    if not root.is_dir():
        message = "the directory that the run was started in is gone"
        raise PresetError(message, where=str(root), remedy="put it back, or train from the preset")
    for setting in settings:
        document = apply_setting(document, setting)
    return Recorded(load_document(preset.name, root / preset.path, document, root), root, record.engine)


def engine_drift(recorded: RecordedEngine, engine: Engine) -> list[Finding]:
    """Warn of each part of the engine that has changed since the run was recorded."""
    before = {"commit": recorded.commit, "packages": recorded.packages}
    now = {"commit": engine.commit, "packages": recorded_versions(engine.python)}
    differ = [str(one) for one in changed(engine_parts(before), engine_parts(now)) if one.first is not None]
    remedy = "the repeated run may differ; put that version back if it must not"
    return [warning("engine.drifted", str(engine.directory), ", ".join(differ), remedy)] if differ else []


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
