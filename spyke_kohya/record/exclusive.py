"""One run an output directory: the lock on it, and what an earlier run that ended without a word has left.

The lock is the kernel's own, on the directory itself, and is gone with the process that held it, however it ended. Who
holds it is told by that run's record: the process id and its start.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from spyke_kohya.errors import PresetError
from spyke_kohya.process.process_table import (
    ProcessMark,
    RunningProcess,
    is_marked,
    is_running,
    running_processes,
    working_directory,
)
from spyke_kohya.record.redact import Redactor
from spyke_kohya.record.rundir import RunDirectory, runs_under

_UNFINISHED = ("prepared", "running")
STALE = "its wrapper ended without a word: it was killed, or the machine went down"


@dataclass(frozen=True)
class StaleRun:
    """A run whose record says running and whose wrapper is gone; the processes ``left`` of it are in ``groups``.

    ``is_marked``: the record says stale already.
    """

    run: RunDirectory
    groups: frozenset[int]
    left: tuple[int, ...]
    is_marked: bool


@contextmanager
def output_lock(output_dir: Path) -> Iterator[None]:
    """Hold an output directory, which is made if need be.

    Raises PresetError when it can't be written, and when another run holds it, which is named.
    """
    handle = _open(output_dir)
    try:
        _acquire(handle, output_dir)
        yield
    finally:
        os.close(handle)


def _open(output_dir: Path) -> int:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        return os.open(output_dir, os.O_RDONLY)
    except OSError as fault:
        raise PresetError(
            f"the output directory can't be written: {fault.strerror}",
            where=str(output_dir),
            remedy="choose another [train_network] output_dir, or give yourself the right to write there",
        ) from fault


def _acquire(handle: int, output_dir: Path) -> None:
    has_locks = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        if fault.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _held(output_dir, live_run(output_dir)) from fault
        has_locks = False  # as on some network file systems: the records alone tell
    if live := live_run(output_dir, or_unknown=not has_locks):
        raise _held(output_dir, live)


def live_run(output_dir: Path, *, or_unknown: bool = False) -> str:
    """The run that trains into ``output_dir`` now, by its name and process; empty where no record tells.

    With ``or_unknown`` one of which that can't be known counts too.
    """
    for run in runs_under(output_dir):
        record = _read(run)
        lives = _wrapper_lives(record)
        if lives or (or_unknown and lives is None):
            return f"{run.path.name}, process {record['wrapper']['pid']}, since {record['started_at']},"
    return ""


def _held(output_dir: Path, by: str) -> PresetError:
    return PresetError(
        f"one run at a time: {by or 'another run, which is just starting or ending,'} trains into this directory",
        where=str(output_dir),
        remedy="wait for its end, stop it with Ctrl-C, or choose another [train_network] output_dir",
    )


def stale_runs(output_dir: Path) -> list[StaleRun]:
    """The runs here that are on record as running and are not, newest first, and what is left of their processes.

    Who holds the lock asks: a run of which nothing can be known is none that runs here now.
    """
    found = []
    for run in runs_under(output_dir):
        record = _read(run)
        if record.get("status") not in (*_UNFINISHED, "stale") or _wrapper_lives(record):
            continue
        left = _left_of(_mark(record, "engine_process"), run)
        is_marked = record["status"] == "stale"
        if left or not is_marked:
            groups = frozenset(process.group for process in left)
            found.append(StaleRun(run, groups, tuple(process.pid for process in left), is_marked))
    return found


def as_it_is(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record whose status is true now: stale, with the reason, where it says running and nobody runs it."""
    wrapper = _mark(record, "wrapper")
    if record.get("status") not in _UNFINISHED or wrapper is None or is_running(wrapper) is not False:
        return dict(record)
    return {**record, "status": "stale", "reason": STALE}


def mark_stale(stale: StaleRun, now: datetime, redactor: Redactor) -> None:
    """Say in the run's record how it ended, as far as anyone can know. Raises OSError."""
    record = stale.run.read_record()
    record |= {"status": "stale", "reason": STALE, "found_stale_at": now.isoformat(timespec="seconds")}
    stale.run.write_record(redactor.value(record))
    stale.run.reserve.unlink(missing_ok=True)


def _left_of(engine: ProcessMark | None, run: RunDirectory) -> list[RunningProcess]:
    """What still runs of a run's engine: the groups of the leader on record, and of whoever logs into this run.

    A wrapper may be killed before it has noted the leader, and a leader may be gone before its trainer.
    """
    table = running_processes()
    ours = (process for process in table if (engine and is_marked(process, engine)) or _logs_into(run, process))
    groups = {process.group for process in ours}
    return [process for process in table if process.group in groups]


def _logs_into(run: RunDirectory, process: RunningProcess) -> bool:
    """Whether a process was told to log into this very run: another folder may have a run of the same name."""
    ending = f"/{run.path.name}/{run.tensorboard.name}"
    _, told, rest = process.command.partition("--logging_dir=")
    logging_dir, ended, _ = rest.partition(ending)
    if not (told and ended):
        return False
    at = working_directory(process.pid)
    return at is not None and (at / f"{logging_dir}{ending}").resolve() == run.tensorboard.resolve()


def _wrapper_lives(record: Mapping[str, Any]) -> bool | None:
    """Whether another process than this one runs the run; None where that can't be known."""
    wrapper = _mark(record, "wrapper")
    if record.get("status") not in _UNFINISHED or wrapper is None:
        return False
    lives = is_running(wrapper)
    return False if lives and wrapper.pid == os.getpid() else lives


def _mark(record: Mapping[str, Any], key: str) -> ProcessMark | None:
    match record.get(key):
        case {"pid": int(pid), "started": str(started)}:
            return ProcessMark(pid, started)
    return None


def _read(run: RunDirectory) -> dict[str, Any]:
    """A run's record; empty where it can't be read, which says nothing about a process."""
    try:
        record = run.read_record()
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return record if isinstance(record, dict) else {}
