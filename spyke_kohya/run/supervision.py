"""The loop around one process: its bytes to the log, its events to all who fold them, until it ends or must be stopped.

Whatever goes wrong beside the training (a full disk under the log, a display that is gone) is said once and left.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from spyke_kohya.run.record import RunRecord
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
    """``console.log``: every byte, but for the known secrets. A write that fails is reported once."""

    def __init__(self, path: Path, secrets: tuple[str, ...], warn: Callable[[str], None]) -> None:
        self._mask = SecretMask(secrets)
        self._warn = warn
        self._failed = False
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        self._put(self._mask.feed(data))

    def close(self) -> None:
        self._put(self._mask.finish())
        with suppress(OSError):
            self._file.close()

    def _put(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as fault:
            if not self._failed:
                self._warn(f"console.log can't be written: {fault.strerror}; the training goes on")
            self._failed = True


class Supervision:
    """One process and all that watch it."""

    def __init__(
        self,
        launch: Launch,
        *,
        record: RunRecord,
        redactor: Redactor,
        patience: Patience,
        listen: Listener,
        warn: Callable[[str], None],
        stop: StopRequest,
    ) -> None:
        self._launch = launch
        self._record = record
        self._redactor = redactor
        self._listen: Listener | None = listen
        self._warn = warn
        self._stop = stop
        self._straggler_s = patience.straggler_s
        self._parser = ConsoleParser()
        self._progress = Progress(launch.plan, launch.target)
        self._saved = SavedFiles(launch)
        self._losses = LossFile(launch)
        self._losses_failed = False
        self._faults = FaultWatch(
            at=time.monotonic(), nan_patience=patience.nan_steps, stall_timeout_s=patience.silence_s
        )
        self._events: list[Event] = []
        self._objection: Notice | str = ""

    def run(self, environment: Mapping[str, str], *, awake: bool = False) -> Ended:
        """Start the launch's command and see it to its end; nothing of it is left then.

        With ``awake`` the machine is kept from sleeping meanwhile. Raises EngineError when it can't be started, and
        OSError when its log can't be begun.
        """
        command, started = self._launch.command, time.monotonic()
        log = Log(self._launch.run.under(self._launch.root).console, self._redactor.secrets, self._warn)
        self._log = log
        try:
            with EngineProcess(
                command.argv, env=environment, cwd=command.cwd, straggler_s=self._straggler_s, awake=awake
            ) as process:
                self._record.started(process.pid)
                returncode = self._pump(process)
            self._handle(self._parser.finish())
            self._save_if(self._saved.end())
            self._write_losses(self._losses.write)
            self._record.counted(self._faults.counts)
        finally:
            log.close()
        stopped_by = self._stop.signals[0] if self._stop.signals else None
        duration_s = time.monotonic() - started
        return Ended(returncode, self._objection, stopped_by, self._events, self._progress, self._saved, duration_s)

    def _pump(self, process: EngineProcess) -> int:
        while not (self._objection or self._stop.signals):
            data = process.read(_POLL_S)
            if data == b"":
                return process.wait()
            if data:
                self._on_output(data)
            else:
                self._idle()
        return process.stop(self._on_rung, self._on_output, lambda: len(self._stop.signals))

    def _idle(self) -> None:
        for notice in self._faults.no_output(time.monotonic()):
            self._notice(notice)
        self._show(None)
        self._write_losses(self._losses.write_if_due)

    def _on_output(self, data: bytes) -> None:
        self._faults.output_seen(time.monotonic())
        self._log.write(data)
        self._handle(self._parser.feed(data))

    def _on_rung(self, rung: Rung) -> None:
        self._record.event("signal", signal=rung.signal.name, to="the whole group")

    def _handle(self, events: list[Event]) -> None:
        for raw in events:
            self._save_if(self._saved.handle(raw))
            event = self._launch.numbering.true_event(raw)
            self._objection = self._objection or self._progress.handle(event) or ""
            shown = self._redactor.event(event)
            if not isinstance(event, Step):
                self._record.console_event(shown)
                self._events.append(shown)
            self._show(shown)
            for notice in self._faults.handle(shown, time.monotonic()):
                self._notice(notice)

    def _notice(self, notice: Notice) -> None:
        self._record.event("fault", fault=notice.kind, message=notice.message, remedy=notice.remedy)
        self._show(notice)
        if notice.ends_run:
            self._objection = self._objection or notice

    def _save_if(self, changed: bool) -> None:
        if changed:
            self._record.saved(self._saved.checkpoints, self._saved.states)

    def _show(self, event: Event | Notice | None) -> None:
        """Hand an event to the listener; a display that is gone, with its terminal or its pipe, is left alone."""
        if self._listen is None:
            return
        try:
            self._listen(event, self._progress)
        except OSError as fault:
            self._listen = None
            self._record.event("display-lost", reason=fault.strerror)

    def _write_losses(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as fault:
            if not self._losses_failed:
                self._warn(f"losses.csv can't be written: {fault.strerror}; the training goes on")
            self._losses_failed = True
