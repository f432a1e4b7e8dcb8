"""All the runs under a directory: what became of each, how two of them differ, and what of them may be deleted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import toml

from spyke_kohya.errors import NothingToRank, PresetError, UsageError
from spyke_kohya.rank.directory import RankResult, rank_best, rank_directory
from spyke_kohya.record.exclusive import as_it_is
from spyke_kohya.record.rundir import RUNS, RunDirectory, runs_under
from spyke_kohya.repeat.inputs import Difference, changed

_SCRATCH_AGE_S = 24 * 3600.0


@dataclass(frozen=True)
class RunSummary:
    """One line about a run; None where it isn't on record. ``chosen_step`` heads the test order."""

    name: str
    path: Path
    status: str
    steps: int | None = None
    planned_steps: int | None = None
    duration_s: float | None = None
    lowest_loss: float | None = None
    lowest_step: int | None = None
    chosen_step: int | None = None
    verdict: str = ""

    @property
    def seconds_per_step(self) -> float | None:
        return self.duration_s / self.steps if self.duration_s is not None and self.steps else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "seconds_per_step": self.seconds_per_step}


@dataclass(frozen=True)
class Deletable:
    """Something that a run left and that nothing needs any more."""

    path: Path
    size_bytes: int
    reason: str


def find_runs(directory: Path) -> list[RunDirectory]:
    """Every recorded run under a directory, newest first."""
    records = directory.rglob(f"{RUNS}/*/run.json")
    return [RunDirectory(path.parent) for path in sorted(records, key=lambda path: path.parent.name, reverse=True)]


def summarize(run: RunDirectory) -> RunSummary:
    """What became of a run. Never raises: a record that can't be read is a status too."""
    try:
        record = as_it_is(run.read_record())
    except (OSError, ValueError):
        return RunSummary(run.path.name, run.path, "unreadable")
    done, result = record.get("result") or {}, ranked(run)
    ranking = result.ranking if result else None
    best = rank_best(run.path).ranking if result else None
    return RunSummary(
        name=run.path.name,
        path=run.path,
        status=str(record.get("status")),
        steps=done.get("steps", result.curve.last_step if result else None),
        planned_steps=record.get("plan", {}).get("total_steps"),
        duration_s=done.get("duration_s"),
        lowest_loss=ranking.minimum.avr_loss if ranking else None,
        lowest_step=ranking.minimum.step if ranking else None,
        chosen_step=best.test_order[0].candidate.step if best else None,
        verdict=best.verdict if best else "",
    )


def ranked(run: RunDirectory) -> RankResult | None:
    """The ranking of a run, where there is one."""
    try:
        return rank_directory(run.path)
    except (NothingToRank, UsageError):
        return None


def differences(first: RunDirectory, second: RunDirectory) -> list[Difference]:
    """Return what two runs were asked to do differently, by key. Raises PresetError for a run without a record."""
    return changed(_asked(first), _asked(second))


def deletable(directory: Path, scratch: Path) -> list[Deletable]:
    """What may go: states that no run will go on from, and what smoke runs left in ``scratch`` over a day ago.

    Nothing of an output directory in which a run is running; of a run that did not finish, the newest state stays.
    """
    output_dirs = dict.fromkeys(run.output_dir for run in find_runs(directory))
    old = (path for path in scratch.glob("spyke-smoke-*") if time.time() - path.stat().st_mtime > _SCRATCH_AGE_S)
    return [
        *(found for output_dir in output_dirs for found in _states(output_dir)),
        *(Deletable(path, _size_of(path), "left by a smoke run") for path in old),
    ]


def delete(items: Iterable[Deletable]) -> None:
    """Delete them for good."""
    for item in items:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink()


def _asked(run: RunDirectory) -> Mapping[str, object]:
    try:
        record = run.read_record()
        dataset = toml.loads(run.dataset_config.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        remedy = "name two run directories: `spyke-kohya runs` lists them"
        raise PresetError("this is no recorded run", where=str(run.path), remedy=remedy) from fault
    except ValueError as fault:
        raise PresetError(f"its record can't be read: {fault}", where=str(run.path)) from fault
    return {
        "train_network": {name: value for name, value in record.get("settings", {}).items() if name not in _OWN_NAMES},
        "target": record.get("target"),
        "dataset": dataset,
        "engine": record.get("engine", {}).get("commit"),
        "total_steps": record.get("plan", {}).get("total_steps"),
    }


_OWN_NAMES = ("output_name", "output_dir")  # two runs differ in these as a matter of course


def _states(output_dir: Path) -> Iterator[Deletable]:
    statuses = [_status(path) for path in sorted((output_dir / RUNS).glob("*/run.json"))]
    if "running" in statuses:
        return
    saved_into = [output_dir, *(run.segment for run in runs_under(output_dir))]
    found = (path for folder in saved_into for path in folder.glob("*-state") if path.is_dir())
    states = sorted(found, key=lambda path: path.stat().st_mtime)
    finished = statuses[-1:] == ["finished"]
    for path in states if finished else states[:-1]:
        reason = "a state to resume from, of a run that finished" if finished else "a state older than the newest"
        yield Deletable(path, _size_of(path), reason)


def _status(record: Path) -> str:
    try:
        return str(as_it_is(json.loads(record.read_text(encoding="utf-8"))).get("status"))
    except (OSError, ValueError, AttributeError):
        return "unreadable"


def _size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
