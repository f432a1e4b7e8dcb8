"""The record of a run: ``run.json``, right at every moment, and ``events.jsonl``, a line for whatever happened.

A record that can't be written is reported once and never ends a training. Secrets and the home directory are taken
out before anything is written.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

from spyke_kohya import __version__
from spyke_kohya.engine.events import Event
from spyke_kohya.engine.packages import recorded_versions
from spyke_kohya.plan.plan import explain
from spyke_kohya.process.process_table import mark_of
from spyke_kohya.record.redact import Redactor
from spyke_kohya.record.rundir import SCHEMA_VERSION, RunDirectory
from spyke_kohya.run.inspection import SavedCheckpoint
from spyke_kohya.run.launch import Launch

_RESERVE_BYTES = 1 << 18


class RunRecord:
    """Writes what is known so far. ``status`` is running, then finished, failed or interrupted.

    A later command makes stale of a running one whose wrapper is gone. What can't be written goes to ``warn``, once.
    """

    def __init__(
        self, run: RunDirectory, launch: Launch, redactor: Redactor, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self._run = run
        self._redactor = redactor
        self._warn = warn
        self._warned = False
        self._record = _first_record(launch)

    def begin(self, now: datetime) -> None:
        """The first record. Raises OSError: what can't be recorded at all is not begun."""
        wrapper = mark_of(os.getpid())
        self._record |= {
            "status": "running",
            "started_at": now.isoformat(timespec="seconds"),
            "wrapper": asdict(wrapper) if wrapper else None,
        }
        self._run.reserve.write_bytes(bytes(_RESERVE_BYTES))
        self._run.write_record(self._redactor.value(self._record))

    def started(self, pid: int) -> None:
        """Note the process group that the engine runs in."""
        engine = mark_of(pid)
        self._record |= {"process_group": pid, "engine_process": asdict(engine) if engine else None}
        self._write()

    def saved(self, checkpoints: Sequence[SavedCheckpoint], states: Sequence[Mapping[str, Any]]) -> None:
        """Note what is on the disk now: every checkpoint with its problem, if it has one, and every state."""
        self._record |= _saved(checkpoints, states)
        self._write()

    def counted(self, faults: Mapping[str, int]) -> None:
        """Note how often each fault was seen."""
        self._record["faults"] = dict(faults)
        self._write()

    def end(self, now: datetime, result: Mapping[str, Any]) -> None:
        self._record |= {
            "status": result["status"],
            "reason": result["reason"],
            "ended_at": now.isoformat(timespec="seconds"),
            "result": dict(result),
        }
        self._write()
        with suppress(OSError):
            self._run.reserve.unlink(missing_ok=True)

    def event(self, kind: str, /, **details: object) -> None:
        line = {"at": datetime.now().isoformat(timespec="milliseconds"), "event": kind, **details}
        try:
            self._run.append_event(self._redactor.value(line))
        except OSError as fault:
            self._could_not("events.jsonl", fault)

    def console_event(self, event: Event) -> None:
        self.event(type(event).__name__, **{name: _finite(value) for name, value in asdict(event).items()})

    def _write(self) -> None:
        try:
            self._write_on_any_disk(self._redactor.value(self._record))
        except OSError as fault:
            self._could_not("run.json", fault)

    def _write_on_any_disk(self, record: Mapping[str, Any]) -> None:
        """On a full disk the record takes the place that was kept for it; a directory that was removed is made anew."""
        self._run.path.mkdir(parents=True, exist_ok=True)
        try:
            self._run.write_record(record)
        except OSError as fault:
            if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._run.reserve.unlink(missing_ok=True)
            self._run.write_record(record)

    def _could_not(self, name: str, fault: OSError) -> None:
        if not self._warned:
            self._warn(f"{name} can't be written: {fault.strerror}; the training goes on")
        self._warned = True


def _saved(checkpoints: Sequence[SavedCheckpoint], states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is on the disk, and what of it is safe: the checkpoints read back whole, and the newest state."""
    return {
        "checkpoints": [saved.to_dict() for saved in checkpoints],
        "states": [dict(state) for state in states],
        "safe": {
            "checkpoints": [saved.file for saved in checkpoints if not saved.problem],
            "state": dict(states[-1]) if states else None,
        },
    }


def _first_record(launch: Launch) -> dict[str, Any]:
    preset = launch.preset.training
    assert preset is not None
    effective = preset.effective_options
    segment = launch.segment
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "prepared",
        "preset": {
            "name": launch.preset.name,
            "path": str(launch.preset.path),
            "sha256": _sha256(launch.preset.text),
            "document": preset.model_dump(exclude_none=True),
        },
        "dataset": {"path": str(launch.preset.dataset_path), "sha256": _sha256(launch.preset.dataset_text)},
        "output_name": preset.options["output_name"],
        "evaluate": preset.evaluate.model_dump(),
        "samples": preset.samples.model_dump(),
        "target": launch.target,
        "settings": {name: value for name, value in effective.items() if value is not None},
        "plan": launch.plan.to_dict(),
        "explained": explain(launch.plan),
        "findings": [finding.to_dict() for finding in launch.findings],
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
        "identity": dict(launch.identity),
        "resumed_from": segment.to_dict() if segment else None,
        **_saved(segment.checkpoints if segment else (), segment.states if segment else ()),
        "machine": {"system": platform.platform(), "python": platform.python_version(), "spyke_kohya": __version__},
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
