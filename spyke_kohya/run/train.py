"""Train: start the locked command, watch it, keep every byte, and say how it ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from spyke_kohya.engine.events import cause_of
from spyke_kohya.errors import PresetError
from spyke_kohya.files import write_whole
from spyke_kohya.process.stop_signals import StopRequest, stop_signals
from spyke_kohya.record.record import SavedCheckpoint
from spyke_kohya.record.redact import Redactor
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.run.faults import Notice, remedy_for
from spyke_kohya.run.launch import Launch
from spyke_kohya.run.recorder import Recorder
from spyke_kohya.run.supervision import Ended, Listener, Patience, Supervision

Status = Literal["finished", "failed", "interrupted"]

MOST_RESUMES = 3
_DEFAULT_PATIENCE = Patience()


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``reason`` is empty for a finished one; ``remedy`` may be too.

    ``checkpoints`` are those of this run that can be used, in step order, ``steps`` the last step that was seen.
    ``states`` counts the states on record to go on from. ``crashed``: it trained, and neither a person nor a bad loss
    ended it, so it can be resumed.
    """

    status: Status
    reason: str
    returncode: int
    steps: int
    duration_s: float
    checkpoints: tuple[SavedCheckpoint, ...]
    run: RunDirectory
    remedy: str = ""
    crashed: bool = False
    states: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "reason": self.reason,
            "remedy": self.remedy,
            "returncode": self.returncode,
            "steps": self.steps,
            "duration_s": round(self.duration_s, 3),
            "checkpoints": [asdict(saved) for saved in self.checkpoints],
            "run_directory": str(self.run.path),
        }


def train(
    launch: Launch,
    *,
    inherited: Mapping[str, str],
    redactor: Redactor,
    listen: Listener,
    now: Callable[[], datetime],
    patience: Patience = _DEFAULT_PATIENCE,
    warn: Callable[[str], None] = lambda _: None,
    awake: bool = False,
    stop: StopRequest | None = None,
) -> Outcome:
    """Run the launch to its end. ``listen`` is called with every event, and with None twice a second in between.

    Raises PresetError when the run directory can't be made and EngineError when the command can't be started. However
    the run ends after that, the outcome says so and is recorded in ``run.json``. ``warn`` is called with what can't be
    recorded; ``redactor`` takes secrets out of all that is. ``awake`` keeps a Mac from sleeping. A signal put into
    ``stop`` stops the run as if it had been sent. The caller holds the lock on the output directory.
    """
    run = launch.run.under(launch.root)
    record = Recorder(run, launch, redactor, now, warn)
    with stop_signals(stop) as stop:
        _begin(launch, run, record)
        try:
            supervision = Supervision(launch, record, redactor, patience, listen, warn, stop)
            ended = supervision.run(launch.command.environment(inherited), awake=awake)
        except BaseException as fault:  # the engine is ended by now, and the record says why
            record.end({"status": "failed", "reason": str(fault) or type(fault).__name__})
            raise
        outcome = _judge(launch, run, ended)
        record.end(outcome.to_dict())
    return outcome


def _begin(launch: Launch, run: RunDirectory, record: Recorder) -> None:
    run.create()
    try:
        for name, text in launch.files.items():
            write_whole(run.path / name, text)
        if launch.segment:
            run.segment.mkdir()
        record.begin()
    except OSError as fault:
        raise PresetError(
            f"the run can't be recorded, so it is not begun: {fault.strerror}",
            where=str(run.path),
            remedy="make room on that disk, or choose another [train_network] output_dir",
        ) from fault


def _judge(launch: Launch, run: RunDirectory, ended: Ended) -> Outcome:
    good = tuple(saved for saved in ended.saved.fresh if not saved.problem)
    stopped = ended.stopped_by and not ended.objection
    reason = f"stopped by {ended.stopped_by.name}" if stopped and ended.stopped_by else _why_failed(launch, ended)
    status: Status = "interrupted" if stopped else "failed" if reason else "finished"
    trained = ended.progress.step is not None
    return Outcome(
        status=status,
        reason=reason,
        returncode=ended.returncode,
        steps=ended.progress.step.step if ended.progress.step else 0,
        duration_s=ended.duration_s,
        checkpoints=tuple(sorted(good, key=lambda saved: saved.step)),
        run=run,
        remedy=ended.objection.remedy if isinstance(ended.objection, Notice) else remedy_for(reason),
        states=len(ended.saved.states),
        crashed=status == "failed" and trained and not ended.objection and ended.progress.first_bad_step is None,
    )


def _why_failed(launch: Launch, ended: Ended) -> str:
    """Return why a run that nobody stopped has failed, or "". sd-scripts exits with 0 on NaN and on no data too."""
    progress = ended.progress
    if progress.first_bad_step is not None:
        return f"the loss is not a number from step {progress.first_bad_step} on; {_last_good(ended)}"
    if ended.objection:
        return ended.objection.message if isinstance(ended.objection, Notice) else ended.objection
    cause = cause_of(ended.events)
    if ended.returncode != 0:
        killed = f"was killed by {signal.Signals(-ended.returncode).name}" if ended.returncode < 0 else ""
        return cause or f"the engine {killed or f'ended with exit code {ended.returncode} and no message'}"
    if progress.step is None:
        return cause or "the engine ended without training"
    return _what_lacks(launch, ended)


def _last_good(ended: Ended) -> str:
    bad = ended.progress.first_bad_step or 0
    good = [saved for saved in ended.saved.checkpoints if not saved.problem and saved.step < bad]
    return f"the last good checkpoint is {good[-1].file}, of step {good[-1].step}" if good else "no checkpoint is good"


def _what_lacks(launch: Launch, ended: Ended) -> str:
    """Name the checkpoints that a run that reached its end did not save, or not whole."""
    files = {saved.file for saved in ended.saved.fresh}
    steps = {saved.step for saved in ended.saved.fresh if launch.segment}  # its true name may have been taken
    missing = [saved.file for saved in launch.checkpoints if saved.file not in files and saved.step not in steps]
    if missing:
        return f"checkpoints are missing: {', '.join(missing)}"
    spoiled = [f"{saved.file} ({saved.problem})" for saved in ended.saved.fresh if saved.problem]
    return f"checkpoints can't be used: {', '.join(spoiled)}" if spoiled else ""
