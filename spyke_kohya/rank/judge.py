"""Rank the checkpoints of a directory: it finds losses and checkpoints, and leaves the judging to ``ranking``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spyke_kohya.errors import NothingToRank, UsageError
from spyke_kohya.rank.checkpoints import Checkpoint, find_checkpoints, merged_facts, output_names, place, recorded
from spyke_kohya.rank.facts import Facts, facts_from_run
from spyke_kohya.rank.logs import read_losses
from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.ranking import rank
from spyke_kohya.rank.result import Candidate, Ranking
from spyke_kohya.run.rundir import RunDirectory, runs_under


@dataclass(frozen=True)
class RankResult:
    """A ranking and what it was made from; ``title`` names the training."""

    title: str
    directory: Path
    run_dir: Path | None
    curve: LossCurve
    ranking: Ranking

    def to_dict(self) -> dict[str, Any]:
        """The shape of ``rank --json``; ``directory`` is where its files are."""
        run_dir = str(self.run_dir) if self.run_dir else None
        return {**self.ranking.to_dict(), "title": self.title, "directory": str(self.directory), "run_dir": run_dir}


def rank_directory(
    directory: Path,
    *,
    losses: Path | None = None,
    window: int | None = None,
    name: str | None = None,
    every: int | None = None,
) -> RankResult:
    """Rank the checkpoints of an output directory, or of the one a run directory belongs to.

    ``losses`` is a file of losses to use in the place of the run's (of the newest run that has any); ``window`` the
    batches of one epoch, where what is on record is missing or wrong; ``name`` the output name to rank; ``every`` keeps
    the steps that are multiples of it, and the last. Without any checkpoint file the steps of the losses are ranked.
    Raises UsageError and NothingToRank.
    """
    if not directory.is_dir():
        raise UsageError(
            "no such directory", where=str(directory), remedy="give an output directory or a run directory"
        )
    run_dir, output_dir = _run_and_output(directory, name, search=losses is None)
    record = _facts_of_run(run_dir)
    curve = read_losses(losses or _losses_of(run_dir, directory))
    found = find_checkpoints(output_dir, name or record.output_name)
    _check_name(found, name, output_dir)
    facts = Facts(window=window).or_else(record).or_else(curve.facts).or_else(merged_facts(found))
    curve = curve.with_facts(facts)
    known = recorded(found, _checkpoints_of_run(run_dir), output_dir)
    placed = place(known, _steps_per_epoch(facts), curve.last_step)
    unreadable = [(one.file, one.problem) for one in placed if not one.readable]
    candidates = _one_per_step(placed) if placed else _without_files(curve, every, output_dir)
    if not candidates:
        raise _all_unreadable(unreadable, output_dir)
    ranking = rank(curve, _thinned(candidates, every), unreadable=unreadable)
    title = run_dir.name if run_dir else facts.output_name or directory.resolve().name
    return RankResult(title, output_dir, run_dir, curve, ranking)


def _run_and_output(directory: Path, name: str | None, *, search: bool) -> tuple[Path | None, Path]:
    if RunDirectory(directory).record.is_file():
        return directory, RunDirectory(directory.resolve()).output_dir
    return (_newest_run(directory, name) if search else None), directory


def _newest_run(directory: Path, name: str | None) -> Path | None:
    with_losses = (run.path for run in runs_under(directory) if _has_rows(run.losses))
    return next((run for run in with_losses if name in (None, _facts_of_run(run).output_name)), None)


def _has_rows(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        data = (line for line in lines if line.strip() and not line.startswith("#"))
        return next(data, None) is not None and next(data, None) is not None


def _facts_of_run(run_dir: Path | None) -> Facts:
    return facts_from_run(_record_of(run_dir))


def _record_of(run_dir: Path | None) -> dict[str, Any]:
    path = RunDirectory(run_dir).record if run_dir else None
    if path is None or not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise NothingToRank(
            f"this run's record is not JSON: {problem}",
            where=str(path),
            remedy="rank the output directory instead, with --losses FILE",
        ) from problem
    return record if isinstance(record, dict) else {}


def _checkpoints_of_run(run_dir: Path | None) -> list[dict[str, Any]]:
    """What the run itself has recorded of its checkpoints."""
    recorded = _record_of(run_dir).get("checkpoints")
    return [one for one in recorded if isinstance(one, dict)] if isinstance(recorded, list) else []


def _losses_of(run_dir: Path | None, directory: Path) -> Path:
    if run_dir and _has_rows(RunDirectory(run_dir).losses):
        return RunDirectory(run_dir).losses
    raise NothingToRank(
        "no losses on record here",
        where=str(run_dir or directory),
        remedy="name a file that holds them with --losses FILE: a CSV file with the columns step and avr_loss, "
        "a saved console, or a TensorBoard event file",
    )


def _check_name(found: list[Checkpoint], name: str | None, directory: Path) -> None:
    names = [] if found or name is None else output_names(directory)
    if names:
        raise UsageError(f"no checkpoint named {name} here; there is {', '.join(names)}", where=str(directory))


def _steps_per_epoch(facts: Facts) -> int | None:
    return -(-facts.window // (facts.micro_batches_per_step or 1)) if facts.window else None


def _one_per_step(checkpoints: list[Checkpoint]) -> list[Candidate]:
    """One candidate a step: the last step's file is the final one, any other's the step's own."""
    by_step: dict[int, list[Checkpoint]] = {}
    for one in checkpoints:
        if one.readable and one.step is not None:
            by_step.setdefault(one.step, []).append(one)
    last = max(by_step, default=0)
    return [_first_of(twins, final_first=step == last) for step, twins in sorted(by_step.items())]


def _first_of(twins: list[Checkpoint], *, final_first: bool) -> Candidate:
    kinds = ("final", "step", "epoch") if final_first else ("step", "epoch", "final")
    files = [twin.file for kind in kinds for twin in twins if twin.kind == kind]
    return Candidate(twins[0].step or 0, files[0], tuple(files[1:]))


def _without_files(curve: LossCurve, every: int | None, directory: Path) -> list[Candidate]:
    """The recorded steps, when few enough are recorded to be checkpoints."""
    steps = curve.steps[curve.steps > 0]
    if every is None and len(steps) > 1 and np.median(np.diff(steps)) < 2:
        raise NothingToRank(
            "no checkpoint here, and losses of every step",
            where=str(directory),
            remedy="give the directory that holds the checkpoints, or say how far apart they were saved: --every N",
        )
    return [Candidate(int(step)) for step in steps]


def _thinned(candidates: list[Candidate], every: int | None) -> list[Candidate]:
    if every is None:
        return candidates
    last = max(one.step for one in candidates)
    return [one for one in candidates if one.step % every == 0 or one.step == last]


def _all_unreadable(unreadable: list[tuple[Path, str]], directory: Path) -> NothingToRank:
    reasons = "; ".join(f"{file.name}: {reason}" for file, reason in unreadable)
    return NothingToRank(f"none of the checkpoints here can be used: {reasons}", where=str(directory))
