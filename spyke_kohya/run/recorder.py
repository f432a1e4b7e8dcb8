"""Keep the record of a run right at every moment, and ``events.jsonl``, a line for whatever happened.

A record that can't be written is reported once and never ends a training.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

from spyke_kohya import __version__
from spyke_kohya.engine.events import Event
from spyke_kohya.engine.packages import recorded_versions
from spyke_kohya.plan.plan import explain
from spyke_kohya.process.process_table import mark_of
from spyke_kohya.record.record import (
    SCHEMA_VERSION,
    Record,
    SavedCheckpoint,
    SavedState,
    write_record,
)
from spyke_kohya.record.redact import Redactor
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.run.launch import Launch

_RESERVE_BYTES = 1 << 18


class WarnOnce:
    """Lets the training go on where a file can't be written, and warns of the first such fault."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._warned = False

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Catch an OSError of the block that writes the file ``name``."""
        try:
            yield
        except OSError as fault:
            if not self._warned:
                self._warn(f"{name} can't be written: {fault.strerror}; the training goes on")
            self._warned = True


class Recorder:
    """Writes what is known so far. ``status`` is running, then finished, failed or interrupted.

    A later command records a running one as stale when its launching process is gone.
    """

    def __init__(
        self,
        run: RunDirectory,
        launch: Launch,
        redactor: Redactor,
        now: Callable[[], datetime],
        warn: Callable[[str], None],
    ) -> None:
        self._run = run
        self._redactor = redactor
        self._now = now
        self._once = WarnOnce(warn)
        self._record = first_record(launch)

    def begin(self) -> None:
        """Write the first record. Raises OSError: what can't be recorded at all is not begun."""
        self._record = self._record.changed(status="running", started_at=self._time(), wrapper=mark_of(os.getpid()))
        self._run.reserve.write_bytes(bytes(_RESERVE_BYTES))
        write_record(self._run, self._record, self._redactor)

    def started(self, pid: int) -> None:
        """Note the process group that the engine runs in."""
        self._write(process_group=pid, engine_process=mark_of(pid))

    def saved(self, checkpoints: Sequence[SavedCheckpoint], states: Sequence[SavedState]) -> None:
        """Note every checkpoint, with its problem if it has one, and every state."""
        self._write(**_saved(checkpoints, states))

    def counted(self, faults: Mapping[str, int]) -> None:
        """Note how often each fault was seen."""
        self._write(faults=faults)

    def end(self, result: Mapping[str, Any]) -> None:
        """Note how the run ended."""
        self._write(status=result["status"], reason=result["reason"], ended_at=self._time(), result=result)
        with suppress(OSError):
            self._run.reserve.unlink(missing_ok=True)

    def event(self, kind: str, /, **details: object) -> None:
        """Add a line to ``events.jsonl``."""
        line = {"at": self._now().isoformat(timespec="milliseconds"), "event": kind, **details}
        with self._once.writing("events.jsonl"):
            self._run.append_event(self._redactor.value(line))

    def console_event(self, event: Event) -> None:
        """Add an event of the engine's console to ``events.jsonl``."""
        self.event(type(event).__name__, **{name: _finite(value) for name, value in asdict(event).items()})

    def _time(self) -> str:
        return self._now().isoformat(timespec="seconds")

    def _write(self, **values: object) -> None:
        self._record = self._record.changed(**values)
        with self._once.writing("run.json"):
            self._write_on_any_disk()

    def _write_on_any_disk(self) -> None:
        """Write the record, on a full disk into the bytes reserved for it; make a removed directory again."""
        self._run.path.mkdir(parents=True, exist_ok=True)
        try:
            write_record(self._run, self._record, self._redactor)
        except OSError as fault:
            if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._run.reserve.unlink(missing_ok=True)
            write_record(self._run, self._record, self._redactor)


def first_record(launch: Launch) -> Record:
    """Return all that is known of a run before it begins."""
    preset = launch.preset.training
    assert preset is not None
    segment = launch.segment
    return Record().changed(
        schema_version=SCHEMA_VERSION,
        status="prepared",
        preset={
            "name": launch.preset.name,
            "path": str(launch.preset.path),
            "sha256": _sha256(launch.preset.text),
            "document": preset.model_dump(exclude_none=True),
        },
        dataset={"path": str(launch.preset.dataset_path), "sha256": _sha256(launch.preset.dataset_text)},
        output_name=preset.options["output_name"],
        evaluate=preset.evaluate,
        samples=preset.samples,
        target=launch.target,
        settings={name: value for name, value in preset.effective_options.items() if value is not None},
        plan=launch.plan.to_dict(),
        explained=explain(launch.plan),
        findings=launch.findings,
        argv=launch.command.argv,
        env=launch.command.env,
        env_removed=launch.command.env_removed,
        cwd=launch.command.cwd,
        engine={
            "directory": launch.engine.directory,
            "commit": launch.engine.commit,
            "python": launch.engine.python,
            "packages": recorded_versions(launch.engine.python),
        },
        identity=launch.identity,
        resumed_from=segment.to_dict() if segment else None,
        **_saved(segment.checkpoints if segment else (), segment.states if segment else ()),
        machine={"system": platform.platform(), "python": platform.python_version(), "spyke_kohya": __version__},
    )


def _saved(checkpoints: Sequence[SavedCheckpoint], states: Sequence[SavedState]) -> dict[str, Any]:
    """Return what is on the disk, and what of it is safe: checkpoints without a problem, and the newest state."""
    return {
        "checkpoints": list(checkpoints),
        "states": list(states),
        "safe": {
            "checkpoints": [saved.file for saved in checkpoints if not saved.problem],
            "state": states[-1] if states else None,
        },
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
