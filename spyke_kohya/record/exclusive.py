"""Let one run at a time train into an output directory, and find what an earlier run that was killed has left.

The lock is the kernel's own, on the directory itself. It is gone with the process that held it, however that ended.
The record of the run that holds it has the process id and its start.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from spyke_kohya.errors import PresetError
from spyke_kohya.process.process_table import (
    ProcessMark,
    RunningProcess,
    is_marked,
    is_running,
    running_processes,
    working_directory,
)
from spyke_kohya.record.record import STALE, UNFINISHED, Record, amend_record, read_record
from spyke_kohya.record.rundir import RunDirectory, runs_under, unwritable


@dataclass(frozen=True)
class StaleRun:
    """A run that is recorded as running, of which the launching process is gone.

    ``left`` are the processes that still run, ``groups`` their groups. ``is_marked``: the record says stale already.
    """

    run: RunDirectory
    groups: frozenset[int]
    left: tuple[int, ...]
    is_marked: bool


@contextmanager
def output_lock(output_dir: Path) -> Iterator[None]:
    """Hold an output directory, which is made if need be.

    Raises PresetError when it can't be written, and when another run holds it; the message names that run.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(output_dir, os.O_RDONLY)
    except OSError as fault:
        raise unwritable(output_dir, fault) from fault
    try:
        _acquire(handle, output_dir)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, output_dir: Path) -> None:
    has_locks = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        if fault.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _held(output_dir, live_run(output_dir)) from fault
        has_locks = False  # as on some network file systems: only the records show who trains
    if live := live_run(output_dir, or_unknown=not has_locks):
        raise _held(output_dir, live)


def live_run(output_dir: Path, *, or_unknown: bool = False) -> str:
    """Return the name and the process of the run that trains into ``output_dir`` now; "" where no record shows one.

    With ``or_unknown`` a run counts too where that can't be known.
    """
    for run in runs_under(output_dir):
        record = read_record(run)
        lives = _wrapper_lives(record)
        if record.wrapper and (lives or (or_unknown and lives is None)):
            return f"{run.path.name}, process {record.wrapper.pid}, since {record.started_at},"
    return ""


def _held(output_dir: Path, by: str) -> PresetError:
    return PresetError(
        f"one run at a time: {by or 'another run, which is just starting or ending,'} trains into this directory",
        where=str(output_dir),
        remedy="wait for its end, stop it with Ctrl-C, or choose another [train_network] output_dir",
    )


def stale_runs(output_dir: Path) -> list[StaleRun]:
    """Find the runs here that are recorded as running and do not run, newest first, and their remaining processes.

    The caller holds the lock, so a run of which nothing can be known does not run here now.
    """
    found = []
    for run in runs_under(output_dir):
        record = read_record(run)
        if record.status not in (*UNFINISHED, "stale") or _wrapper_lives(record):
            continue
        left = _left_of(record.engine_process, run)
        is_marked = record.status == "stale"
        if left or not is_marked:
            groups = frozenset(process.group for process in left)
            found.append(StaleRun(run, groups, tuple(process.pid for process in left), is_marked))
    return found


def mark_stale(stale: StaleRun, now: datetime) -> None:
    """Write into the run's record that it ended and nobody recorded how. Raises OSError and ValueError."""
    amend_record(stale.run, status="stale", reason=STALE, found_stale_at=now.isoformat(timespec="seconds"))
    stale.run.reserve.unlink(missing_ok=True)


def _left_of(engine: ProcessMark | None, run: RunDirectory) -> list[RunningProcess]:
    """Find the processes of a run's engine: the groups of the recorded leader, and of all that log into this run.

    The launching process may be killed before it records the leader. The leader may end before its trainer.
    """
    table = running_processes()
    ours = (process for process in table if (engine and is_marked(process, engine)) or _logs_into(run, process))
    groups = {process.group for process in ours}
    return [process for process in table if process.group in groups]


def _logs_into(run: RunDirectory, process: RunningProcess) -> bool:
    """Check whether a process logs into this very run: another folder may have a run of the same name."""
    ending = f"/{run.path.name}/{run.tensorboard.name}"
    _, option, rest = process.command.partition("--logging_dir=")
    logging_dir, ended, _ = rest.partition(ending)
    if not (option and ended):
        return False
    at = working_directory(process.pid)
    return at is not None and (at / f"{logging_dir}{ending}").resolve() == run.tensorboard.resolve()


def _wrapper_lives(record: Record) -> bool | None:
    """Return whether another process than this one runs the run; None where that can't be known."""
    mark = record.wrapper
    if record.status not in UNFINISHED or mark is None:
        return False
    lives = is_running(mark)
    return False if lives and mark.pid == os.getpid() else lives
