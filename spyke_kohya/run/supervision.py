"""Follow one process until it ends or must be stopped: its bytes go to the log, its events to all that count them.

A fault beside the training (a full disk under the log, a display that is gone) is reported once and doesn't end it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.engine.console import ConsoleParser
from spyke_kohya.engine.events import Event, Step
from spyke_kohya.process.engine_process import STRAGGLER_S, EngineProcess, Rung
from spyke_kohya.process.stop_signals import StopRequest
from spyke_kohya.record.redact import Redactor, SecretMask
from spyke_kohya.run.faults import NAN_PATIENCE, FaultWatch, Notice
from spyke_kohya.run.launch import Launch
from spyke_kohya.run.lossfile import LossFile
from spyke_kohya.run.progress import Progress
from spyke_kohya.run.recorder import Recorder, WarnOnce
from spyke_kohya.run.saved_files import SavedFiles

Listener = Callable[[Event | Notice | None, Progress], None]

_POLL_S = 0.5


@dataclass(frozen=True)
class Patience:
    """What a run may do before it is ended.

    Steps with a loss that is not a number, seconds without output (None: any), and seconds that its processes may
    outlive the launcher.
    """

    nan_steps: int = NAN_PATIENCE
    silence_s: float | None = None
    straggler_s: float = STRAGGLER_S


@dataclass(frozen=True)
class Ended:
    """A process that has ended. ``objection`` is why it was stopped, if it was not a person who did."""

    returncode: int
    objection: Notice | str
    stopped_by: signal.Signals | None
    events: list[Event]
    progress: Progress
    saved: SavedFiles
    duration_s: float


class Log:
    """``console.log``: every byte, with the known secrets masked. A write that fails is reported once."""

    def __init__(self, path: Path, secrets: tuple[str, ...], warn: Callable[[str], None]) -> None:
        self._mask = SecretMask(secrets)
        self._once = WarnOnce(warn)
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        self._put(self._mask.feed(data))

    def close(self) -> None:
        self._put(self._mask.finish())
        with suppress(OSError):
            self._file.close()

    def _put(self, data: bytes) -> None:
        with self._once.writing("console.log"):
            while data:
                data = data[self._file.write(data) :]


@dataclass
class Supervision:
    """One process and all that watch it."""

    launch: Launch
    record: Recorder
    redactor: Redactor
    patience: Patience
    listen: Listener | None
    warn: Callable[[str], None]
    stop: StopRequest

    def __post_init__(self) -> None:
        self._parser = ConsoleParser()
        self._progress = Progress(self.launch.plan, self.launch.target)
        self._saved = SavedFiles(self.launch)
        self._losses = LossFile(self.launch)
        self._losses_once = WarnOnce(self.warn)
        nan_steps, silence_s = self.patience.nan_steps, self.patience.silence_s
        self._faults = FaultWatch(at=time.monotonic(), nan_patience=nan_steps, stall_timeout_s=silence_s)
        self._events: list[Event] = []
        self._objection: Notice | str = ""

    def run(self, environment: Mapping[str, str], *, awake: bool = False) -> Ended:
        """Start the launch's command and follow it to its end; then none of its processes is left.

        With ``awake`` the machine is kept from sleeping meanwhile. Raises EngineError when the command can't be
        started, and OSError when the log can't be.
        """
        command, started = self.launch.command, time.monotonic()
        run = self.launch.run.under(self.launch.root)
        with closing(Log(run.console, self.redactor.secrets, self.warn)) as self._log:
            with EngineProcess(
                command.argv, env=environment, cwd=command.cwd, straggler_s=self.patience.straggler_s, awake=awake
            ) as process:
                self.record.started(process.pid)
                returncode = self._pump(process)
            self._handle(self._parser.finish())
            self._save_if(self._saved.end())
            with self._losses_once.writing("losses.csv"):
                self._losses.write()
            self.record.counted(self._faults.counts)
        stopped_by = self.stop.signals[0] if self.stop.signals else None
        duration_s = time.monotonic() - started
        return Ended(returncode, self._objection, stopped_by, self._events, self._progress, self._saved, duration_s)

    def _pump(self, process: EngineProcess) -> int:
        while not (self._objection or self.stop.signals):
            data = process.read(_POLL_S)
            if data == b"":
                return process.wait()
            if data:
                self._on_output(data)
            else:
                self._idle()
        return process.stop(self._on_rung, self._on_output, lambda: len(self.stop.signals))

    def _idle(self) -> None:
        for notice in self._faults.no_output(time.monotonic()):
            self._notice(notice)
        self._show(None)
        with self._losses_once.writing("losses.csv"):
            self._losses.write_if_due()

    def _on_output(self, data: bytes) -> None:
        self._faults.output_seen(time.monotonic())
        self._log.write(data)
        self._handle(self._parser.feed(data))

    def _on_rung(self, rung: Rung) -> None:
        self.record.event("signal", signal=rung.signal.name, to="the whole group")

    def _handle(self, events: list[Event]) -> None:
        for raw in events:
            self._save_if(self._saved.handle(raw))
            event = self.launch.numbering.true_event(raw)
            self._objection = self._objection or self._progress.handle(event) or ""
            shown = self.redactor.event(event)
            if not isinstance(event, Step):
                self.record.console_event(shown)
                self._events.append(shown)
            self._show(shown)
            for notice in self._faults.handle(shown, time.monotonic()):
                self._notice(notice)

    def _notice(self, notice: Notice) -> None:
        self.record.event("fault", fault=notice.kind, message=notice.message, remedy=notice.remedy)
        self._show(notice)
        if notice.ends_run:
            self._objection = self._objection or notice

    def _save_if(self, changed: bool) -> None:
        if changed:
            self.record.saved(self._saved.checkpoints, self._saved.states)

    def _show(self, event: Event | Notice | None) -> None:
        """Hand an event to the listener; a display that is gone, with its terminal or its pipe, is not tried again."""
        if self.listen is None:
            return
        try:
            self.listen(event, self._progress)
        except OSError as fault:
            self.listen = None
            self.record.event("display-lost", reason=fault.strerror)
