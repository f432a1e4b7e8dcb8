"""The loop around one process: its bytes to the log, its events to all who fold them, until it ends or must be stopped.

Whatever goes wrong beside the training (a full disk under the log, a display that is gone) is said once and left.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from spyke_kohya.engine.console import ConsoleParser
from spyke_kohya.engine.events import CheckpointAnnounced, Event, Step
from spyke_kohya.process.engine_process import EngineProcess, Rung
from spyke_kohya.record.redact import Redactor, SecretMask
from spyke_kohya.run.faults import NAN_PATIENCE, FaultWatch, Notice
from spyke_kohya.run.launch import Launch
from spyke_kohya.run.lossfile import LossFile
from spyke_kohya.run.progress import Watch
from spyke_kohya.run.recorder import Recorder
from spyke_kohya.run.saved_files import Ledger

Listener = Callable[[Event | Notice | None, Watch], None]

_POLL_S = 0.5


@dataclass
class StopRequest:
    """What a person asked for: the first signal stops the run, each further one goes to the ladder's next rung."""

    signals: list[signal.Signals] = field(default_factory=list)


@contextmanager
def stop_signals(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Collect the signals that mean stop; at the end they mean what they meant before.

    Only a program's main thread is sent any: in another one, who holds ``request`` stops the run.
    """
    request = request or StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        request.signals.append(signal.Signals(number))

    watched = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup a run outlives its terminal
        watched.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in watched}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Patience:
    """How much is borne: steps with a loss that is no number, and seconds without a word (None: any)."""

    nan_steps: int = NAN_PATIENCE
    silence_s: float | None = None


@dataclass(frozen=True)
class Ended:
    """A process that has ended. ``objection`` is why it was stopped, if it was not a person who did."""

    returncode: int
    objection: Notice | str
    stopped_by: signal.Signals | None
    events: list[Event]
    watch: Watch
    ledger: Ledger
    duration_s: float


class Log:
    """``console.log``: every byte, but for the known secrets. A write that fails is complained of once."""

    def __init__(self, path: Path, secrets: tuple[str, ...], complain: Callable[[str], None]) -> None:
        self._mask = SecretMask(secrets)
        self._complain = complain
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
                self._complain(f"console.log can't be written: {fault.strerror}; the training goes on")
            self._failed = True


class Supervision:
    """One process and all that watch it."""

    def __init__(
        self,
        launch: Launch,
        *,
        record: Recorder,
        redactor: Redactor,
        patience: Patience,
        listen: Listener,
        complain: Callable[[str], None],
        stop: StopRequest,
    ) -> None:
        self._launch = launch
        self._record = record
        self._redactor = redactor
        self._listen: Listener | None = listen
        self._complain = complain
        self._stop = stop
        self._parser = ConsoleParser()
        self._watch = Watch(launch.plan, launch.target)
        self._ledger = Ledger(launch)
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
        log = Log(self._launch.run.under(self._launch.root).console, self._redactor.secrets, self._complain)
        self._log = log
        try:
            with EngineProcess(command.argv, env=environment, cwd=command.cwd, awake=awake) as process:
                self._record.started(process.pid)
                returncode = self._pump(process)
            self._take(self._parser.finish())
            self._save_if(self._ledger.finish())
            self._write_losses(self._losses.write)
            self._record.counted(self._faults.counts)
        finally:
            log.close()
        stopped_by = self._stop.signals[0] if self._stop.signals else None
        duration_s = time.monotonic() - started
        return Ended(returncode, self._objection, stopped_by, self._events, self._watch, self._ledger, duration_s)

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
        for notice in self._faults.look(time.monotonic()):
            self._notice(notice)
        self._tell(None)
        self._write_losses(self._losses.write_if_due)

    def _on_output(self, data: bytes) -> None:
        self._faults.hear(time.monotonic())
        self._log.write(data)
        self._take(self._parser.feed(data))

    def _on_rung(self, rung: Rung) -> None:
        self._record.event("signal", signal=rung.signal.name, to="the whole group")

    def _take(self, events: list[Event]) -> None:
        for raw in events:
            self._save_if(self._ledger.take(raw))
            event = self._true(raw)
            self._objection = self._objection or self._watch.take(event) or ""
            told = self._redactor.event(event)
            if not isinstance(event, Step):
                self._record.console_event(told)
                self._events.append(told)
            self._tell(told)
            for notice in self._faults.take(told, time.monotonic()):
                self._notice(notice)

    def _true(self, event: Event) -> Event:
        """The event of a resumed run with its true step; sd-scripts counts from 1 again."""
        before = self._launch.steps_before
        if not before:
            return event
        match event:
            case Step(step=step):
                return replace(event, step=step + before)
            case CheckpointAnnounced(path, step):
                return CheckpointAnnounced(self._ledger.true_name(path), step + before)
        return event

    def _notice(self, notice: Notice) -> None:
        self._record.event("fault", fault=notice.kind, message=notice.message, remedy=notice.remedy)
        self._tell(notice)
        if notice.ends_run:
            self._objection = self._objection or notice

    def _save_if(self, changed: bool) -> None:
        if changed:
            self._record.saved(self._ledger.checkpoints, self._ledger.states)

    def _tell(self, event: Event | Notice | None) -> None:
        """Tell who listens; a display that is gone, with its terminal or its pipe, is not told again."""
        if self._listen is None:
            return
        try:
            self._listen(event, self._watch)
        except OSError as fault:
            self._listen = None
            self._record.event("display-lost", reason=fault.strerror)

    def _write_losses(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as fault:
            if not self._losses_failed:
                self._complain(f"losses.csv can't be written: {fault.strerror}; the training goes on")
            self._losses_failed = True
