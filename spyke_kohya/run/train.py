"""Train: start the locked command, watch it, keep every byte, and say truthfully how it ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Literal

from spyke_kohya.engine.console import ConsoleParser
from spyke_kohya.engine.events import Event, Step, cause_of
from spyke_kohya.run.checkpoints import SavedCheckpoint, check_checkpoints
from spyke_kohya.run.launch import Launch
from spyke_kohya.run.lossfile import LossFile
from spyke_kohya.run.process import EngineProcess, Rung
from spyke_kohya.run.record import RunRecord
from spyke_kohya.run.rundir import RunDirectory
from spyke_kohya.run.watch import Watch

Status = Literal["finished", "failed", "interrupted"]
Listener = Callable[[Event | None, Watch], None]

_POLL_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``reason`` is empty for a finished one; ``checkpoints`` are those on the disk, in step order."""

    status: Status
    reason: str
    returncode: int
    steps: int
    duration_s: float
    checkpoints: tuple[SavedCheckpoint, ...]
    run: RunDirectory

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "reason": self.reason,
            "returncode": self.returncode,
            "steps": self.steps,
            "duration_s": round(self.duration_s, 3),
            "checkpoints": [saved.to_dict() for saved in self.checkpoints],
            "run_directory": str(self.run.path),
        }


def train(launch: Launch, *, inherited: Mapping[str, str], listen: Listener, now: Callable[[], datetime]) -> Outcome:
    """Run the launch to its end. ``listen`` is told every event, and None about twice a second in between.

    Raises PresetError when the run directory can't be made and EngineError when the command can't be started. However
    the run ends after that, the outcome says so and is recorded in ``run.json``.
    """
    run = launch.run.under(launch.root)
    run.create()
    for name, text in launch.files.items():
        run.write_text(run.path / name, text)
    record = RunRecord(run, launch)
    record.begin(now())
    with _stop_signals() as stop:
        try:
            ended = _supervise(launch, launch.command.environment(inherited), record, listen, stop)
        except BaseException as fault:  # a full disk, say: the engine is ended by now, and the record says why
            record.end(now(), {"status": "failed", "reason": str(fault) or type(fault).__name__})
            raise
    outcome = _judge(launch, run, ended)
    record.end(now(), outcome.to_dict())
    return outcome


def _supervise(
    launch: Launch, environment: Mapping[str, str], record: RunRecord, listen: Listener, stop: _StopRequest
) -> _Ended:
    command = launch.command
    with (
        launch.run.under(launch.root).console.open("wb", buffering=0) as log,
        EngineProcess(command.argv, env=environment, cwd=command.cwd) as process,
    ):
        record.started(process.pid)
        return _Supervision(launch, process, log, record, listen, stop).run_to_end()


@dataclass
class _StopRequest:
    """What a person asked for: the first signal stops the run, each further one goes to the ladder's next rung."""

    signals: list[signal.Signals] = field(default_factory=list)


@contextmanager
def _stop_signals() -> Iterator[_StopRequest]:
    request = _StopRequest()

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
class _Ended:
    returncode: int
    objection: str
    stopped_by: signal.Signals | None
    events: list[Event]
    watch: Watch
    started_at: float
    duration_s: float


class _Supervision:
    """The loop around one process: its bytes to the log, its events to the watch, the record and the listener."""

    def __init__(
        self,
        launch: Launch,
        process: EngineProcess,
        log: BinaryIO,
        record: RunRecord,
        listen: Listener,
        stop: _StopRequest,
    ) -> None:
        self._process = process
        self._log = log
        self._record = record
        self._listen = listen
        self._stop = stop
        self._parser = ConsoleParser()
        self._watch = Watch(launch.plan, launch.target)
        self._losses = LossFile(launch.run.under(launch.root))
        self._faults: list[Event] = []
        self._objection = ""

    def run_to_end(self) -> _Ended:
        started_at, started = time.time(), time.monotonic()
        returncode = self._pump()
        self._take(self._parser.finish())
        self._losses.write()
        stopped_by = self._stop.signals[0] if self._stop.signals else None
        duration_s = time.monotonic() - started
        return _Ended(returncode, self._objection, stopped_by, self._faults, self._watch, started_at, duration_s)

    def _pump(self) -> int:
        while not (self._objection or self._stop.signals):
            data = self._process.read(_POLL_S)
            if data == b"":
                return self._process.wait()
            if data:
                self._on_output(data)
            else:
                self._listen(None, self._watch)
                self._losses.write_if_due()
        return self._process.stop(self._on_rung, self._on_output, lambda: len(self._stop.signals))

    def _on_output(self, data: bytes) -> None:
        self._log.write(data)
        self._take(self._parser.feed(data))

    def _on_rung(self, rung: Rung) -> None:
        self._record.event("signal", signal=rung.signal.name, to="the whole group")

    def _take(self, events: list[Event]) -> None:
        for event in events:
            self._objection = self._objection or self._watch.take(event) or ""
            if not isinstance(event, Step):
                self._record.console_event(event)
                self._faults.append(event)
            self._listen(event, self._watch)


def _judge(launch: Launch, run: RunDirectory, ended: _Ended) -> Outcome:
    watch = ended.watch
    expected = [(saved.step, launch.output_dir / saved.file) for saved in launch.plan.checkpoints]
    checkpoints, missing = check_checkpoints(expected, newer_than=ended.started_at)
    status: Status = "interrupted" if ended.stopped_by and not ended.objection else "failed"
    reason = _why_failed(ended, missing)
    if ended.stopped_by and not ended.objection:
        reason = f"stopped by {ended.stopped_by.name}"
    elif not reason:
        status = "finished"
    return Outcome(
        status=status,
        reason=reason,
        returncode=ended.returncode,
        steps=watch.step.step if watch.step else 0,
        duration_s=ended.duration_s,
        checkpoints=tuple(checkpoints),
        run=run,
    )


def _why_failed(ended: _Ended, missing: list[Path]) -> str:
    """Why a run that nobody stopped is no success, or "". Exit code 0 alone proves nothing: NaN and no data exit 0."""
    watch = ended.watch
    if ended.objection:
        return ended.objection
    cause = cause_of(ended.events)
    if ended.returncode != 0:
        return cause or _ending(ended.returncode)
    if watch.step is None:
        return cause or "the engine ended without training"
    if watch.first_bad_step is not None:
        return f"the loss is not a number from step {watch.first_bad_step} on: the saved files are spoiled"
    if missing:
        return f"checkpoints are missing or unreadable: {', '.join(path.name for path in missing)}"
    return ""


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"the engine was killed by {signal.Signals(-returncode).name}"
    return f"the engine ended with exit code {returncode} and no message"
