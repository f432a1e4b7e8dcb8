"""A recorded run as a preset again, from its own directory: what it was asked to do, whatever became of the presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.engine.packages import recorded_versions
from spyke_kohya.engine.release import Engine
from spyke_kohya.errors import PresetError
from spyke_kohya.findings import Finding, warning
from spyke_kohya.presets.loading import Loaded, apply_setting, load_document
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.repeat.inputs import changed, engine_parts


@dataclass(frozen=True)
class Recorded:
    """A run to repeat: its preset, the directory its paths are relative to, and the engine that ran it."""

    loaded: Loaded
    root: Path
    engine: Mapping[str, Any]


def recorded_preset(run: RunDirectory, settings: Sequence[str] = ()) -> Recorded:
    """The preset of a recorded run, with ``settings`` put over it; its dataset preset is that in the run directory.

    Raises PresetError.
    """
    remedy = "name a run directory, with run.json and dataset.toml in it"
    try:
        record = run.read_record()
        preset = record["preset"]
        document = {**preset["document"], "dataset": str(run.dataset_config.resolve())}
        root, engine = Path(record["cwd"]), record["engine"]
    except FileNotFoundError as fault:
        raise PresetError("this is no recorded run", where=str(run.path), remedy=remedy) from fault
    except (ValueError, KeyError, TypeError) as fault:
        raise PresetError("its record doesn't hold its preset", where=str(run.record), remedy=remedy) from fault
    if not root.is_dir():
        message = "the directory that the run was started in is gone"
        raise PresetError(message, where=str(root), remedy="put it back, or train from the preset")
    for setting in settings:
        document = apply_setting(document, setting)
    return Recorded(load_document(preset["name"], root / preset["path"], document, root), root, engine)


def engine_drift(recorded: Mapping[str, Any], engine: Engine) -> list[Finding]:
    """Return a warning about what of the engine is not as it was when the run was recorded, if anything."""
    now = {"commit": engine.commit, "packages": recorded_versions(engine.python)}
    differ = [str(one) for one in changed(engine_parts(recorded), engine_parts(now)) if one.first is not None]
    remedy = "the repeated run may differ; put that version back if it must not"
    return [warning("engine.drifted", str(engine.directory), ", ".join(differ), remedy)] if differ else []
