"""The record of a run: ``run.json``, right at every moment, and ``events.jsonl``, a line for whatever happened."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from spyke_kohya import __version__
from spyke_kohya.engine.events import Event
from spyke_kohya.engine.packages import recorded_versions
from spyke_kohya.run.launch import Launch
from spyke_kohya.run.rundir import SCHEMA_VERSION, RunDirectory


class RunRecord:
    """Writes what is known so far; ``status`` is running, then finished, failed or interrupted."""

    def __init__(self, run: RunDirectory, launch: Launch) -> None:
        self._run = run
        self._record = _first_record(launch)

    def begin(self, now: datetime) -> None:
        self._record |= {"status": "running", "started_at": now.isoformat(timespec="seconds")}
        self._run.write_record(self._record)

    def started(self, pid: int) -> None:
        """Note the process group that the engine runs in."""
        self._record["process_group"] = pid
        self._run.write_record(self._record)

    def end(self, now: datetime, result: Mapping[str, Any]) -> None:
        self._record |= {
            "status": result["status"],
            "reason": result["reason"],
            "ended_at": now.isoformat(timespec="seconds"),
            "result": dict(result),
        }
        self._run.write_record(self._record)

    def event(self, name: str, /, **details: object) -> None:
        self._run.append_event({"at": datetime.now().isoformat(timespec="milliseconds"), "event": name, **details})

    def console_event(self, event: Event) -> None:
        self.event(type(event).__name__, **{name: _finite(value) for name, value in asdict(event).items()})


def _first_record(launch: Launch) -> dict[str, Any]:
    preset = launch.preset.training
    assert preset is not None
    effective = preset.effective_options
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "prepared",
        "preset": {"name": launch.preset.name, "path": str(launch.preset.path), "sha256": _sha256(launch.preset.text)},
        "dataset": {"path": str(launch.preset.dataset_path), "sha256": _sha256(launch.preset.dataset_text)},
        "output_name": preset.options["output_name"],
        "evaluate": preset.evaluate.model_dump(),
        "samples": preset.samples.model_dump(),
        "target": launch.target,
        "settings": {name: value for name, value in effective.items() if value is not None},
        "plan": launch.plan.to_dict(),
        "argv": list(launch.command.argv),
        "env": dict(launch.command.env),
        "env_removed": list(launch.command.env_removed),
        "cwd": str(launch.command.cwd),
        "engine": {
            "directory": str(launch.engine.directory),
            "commit": launch.engine.commit,
            "python": str(launch.engine.python),
            "packages": recorded_versions(launch.engine.python),
        },
        "machine": {"system": platform.platform(), "python": platform.python_version(), "spyke_kohya": __version__},
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
