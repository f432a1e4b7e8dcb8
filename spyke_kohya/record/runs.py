"""All the runs under a directory, and what they left that may be deleted."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from spyke_kohya.engine.states import epoch_of_state
from spyke_kohya.errors import PresetError
from spyke_kohya.record.exclusive import output_lock, stale_runs
from spyke_kohya.record.record import UNFINISHED, Record, read_record
from spyke_kohya.record.rundir import RUNS, RunDirectory, runs_under

_SCRATCH_AGE_S = 24 * 3600.0


@dataclass(frozen=True)
class Deletable:
    """Something that a run left and that nothing needs any more."""

    path: Path
    size_bytes: int
    reason: str


def find_runs(directory: Path) -> list[RunDirectory]:
    """Return every recorded run under a directory, newest first."""
    records = directory.rglob(f"{RUNS}/*/run.json")
    return [RunDirectory(path.parent) for path in sorted(records, key=lambda path: path.parent.name, reverse=True)]


def deletable(directory: Path, scratch: Path, now: datetime) -> list[Deletable]:
    """Return what may go: states that no run will go on from, and what smoke runs left in ``scratch`` over a day ago.

    A run that did not finish keeps its newest state. Of an output directory in which a run is running nothing goes.
    """
    output_dirs = dict.fromkeys(run.output_dir for run in find_runs(directory))
    old = (path for path in scratch.glob("spyke-smoke-*") if _is_old_scratch(path, now))
    return [
        *(found for output_dir in output_dirs if not _is_in_use(output_dir) for found in _states(output_dir)),
        *(Deletable(path, _size_of(path), "left by a smoke run") for path in old),
    ]


def _is_old_scratch(path: Path, now: datetime) -> bool:
    """Check whether a folder is this user's own, and old; in a folder for all, others may put links of such a name."""
    status = path.lstat()
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return is_own and now.timestamp() - status.st_mtime > _SCRATCH_AGE_S


def delete(items: Iterable[Deletable]) -> None:
    """Delete them for good."""
    for item in items:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink()


def _is_in_use(output_dir: Path) -> bool:
    """Check whether a run trains here: one holds the lock, is on record as running, or has left its engine running."""
    try:
        with output_lock(output_dir):
            statuses = [read_record(run).true_now.status for run in runs_under(output_dir)]
            return any(status in UNFINISHED for status in statuses) or any(run.left for run in stale_runs(output_dir))
    except PresetError:
        return True


def _states(output_dir: Path) -> Iterator[Deletable]:
    """Yield the states of each run but those that one of them keeps."""
    reasons: dict[Path, str] = {}
    kept: set[Path] = set()
    continued: set[str] = set()
    for run in runs_under(output_dir):
        record = read_record(run)
        states = _states_of(run, record)
        is_over = record.status == "finished" or run.path.name in continued
        newest = [] if is_over else states[_first_kept(states, record) :]
        kept.update(newest)
        reason = "a state older than the newest" if newest else "a state to resume from, of a run that finished"
        reasons = dict.fromkeys(states, reason) | reasons
        if record.resumed_from:
            continued.add(record.resumed_from.run)
    for path in sorted(reasons.keys() - kept):
        yield Deletable(path, _size_of(path), reasons[path])


def _states_of(run: RunDirectory, record: Record) -> list[Path]:
    """Return the states of a run, by epoch: those of its name where it saved, and on record where it was resumed."""
    name = record.output_name or run.path.name[len("YYYYmmdd-HHMMSS-") :]
    recorded = {Path(state.path).resolve() for state in record.states}
    earlier = run.path.parent.glob("*/segment/*-state")
    mine = (*run.output_dir.glob("*-state"), *run.segment.glob("*-state"))
    found = dict.fromkeys((*(path for path in earlier if path.resolve() in recorded), *mine))
    epochs = {path: epoch for path in found if (epoch := epoch_of_state(path, name)) and not path.is_symlink()}
    return sorted(epochs, key=lambda path: epochs[path])


def _first_kept(states: list[Path], record: Record) -> int:
    """Return the index of the newest state that is on record, which is whole; those after it may be half."""
    recorded = {Path(state.path).resolve() for state in record.states}
    return next((i for i in reversed(range(len(states))) if states[i].resolve() in recorded), len(states) - 1)


def _size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
