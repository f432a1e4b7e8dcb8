"""Rank the checkpoints of a directory: it finds losses and checkpoints, and leaves the judging to ``ranking``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spyke_kohya.engine.scalars import losses_from_events
from spyke_kohya.errors import EngineError, NothingToRank, SpykeError, UsageError
from spyke_kohya.formats.tfevents import find_event_files
from spyke_kohya.rank.checkpoints import (
    FoundCheckpoint,
    find_checkpoints,
    merged_facts,
    one_per_step,
    output_names,
    place,
    recorded,
)
from spyke_kohya.rank.heldout import Context, judge_heldout
from spyke_kohya.rank.heldout_file import has_evaluation, read_evaluation
from spyke_kohya.rank.logs import read_losses
from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.norms import blown_up, weight_norm
from spyke_kohya.rank.ranking import rank
from spyke_kohya.rank.result import Candidate, Evidence, HeldoutRanking, Measure, Ranking, TrainingRanking
from spyke_kohya.rank.training_info import Facts, facts_from_run
from spyke_kohya.record.record import Record, read_record
from spyke_kohya.record.rundir import RunDirectory, runs_under


@dataclass(frozen=True)
class RankResult:
    """A ranking and what it was made from; ``title`` names the training, ``problems`` what of its run can't be read."""

    title: str
    directory: Path
    run_dir: Path | None
    ranking: Ranking[Any]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the shape of ``rank --json``; ``directory`` is where its files are."""
        run_dir = str(self.run_dir) if self.run_dir else None
        places = {"title": self.title, "directory": str(self.directory), "run_dir": run_dir}
        return {**self.ranking.to_dict(), **places, "problems": list(self.problems)}


@dataclass(frozen=True)
class TrainingResult(RankResult):
    """A ranking by training loss, with the whole curve."""

    ranking: TrainingRanking
    curve: LossCurve


@dataclass(frozen=True)
class HeldoutResult(RankResult):
    """A ranking by what ``evaluate`` measured."""

    run_dir: Path
    ranking: HeldoutRanking


def rank_best(
    source: Path,
    *,
    by: Evidence | None = None,
    losses: Path | None = None,
    window: int | None = None,
    name: str | None = None,
    every: int | None = None,
) -> TrainingResult | HeldoutResult:
    """Rank by the evidence that was asked for, else by the best there is: held-out losses, else avr_loss.

    Where an evaluation ranks nothing, the first note says why. Raises UsageError and NothingToRank.
    """
    note = ""
    if by == "heldout" or (by is None and losses is None):
        run_dir, output_dir = _run_and_output(source, name, search=True)
        if by == "heldout":
            if run_dir is None or not has_evaluation(RunDirectory(run_dir)):
                remedy = "measure it: spyke-kohya evaluate RUN"
                raise NothingToRank("no evaluated run here", where=str(source), remedy=remedy)
            return rank_heldout(run_dir, output_dir)
        found, note = heldout_beside(run_dir, output_dir)
        if found and not found.ranking.ranks_nothing:
            return found
    measure: Measure = "loss" if by == "loss" else "avr_loss"
    result = rank_directory(source, losses=losses, window=window, name=name, every=every, by=measure)
    notes = (note, *result.ranking.notes) if note else result.ranking.notes
    return replace(result, ranking=replace(result.ranking, notes=notes))


def find_run(directory: Path, name: str | None = None) -> RunDirectory | None:
    """Return the run of a run directory, or an output directory's newest recorded one, whether it has losses or not."""
    if RunDirectory(directory).record.is_file():
        return RunDirectory(directory)
    with_record = (run for run in runs_under(directory) if run.record.is_file())
    return next((run for run in with_record if name is None or name == read_record(run).output_name), None)


def heldout_beside(run_dir: Path | None, output_dir: Path) -> tuple[HeldoutResult | None, str]:
    """Return a run's ranking by held-out losses, or why there is none: a sentence where an evaluation was begun."""
    if run_dir is None or not has_evaluation(RunDirectory(run_dir)):
        return None, ""
    try:
        return rank_heldout(run_dir, output_dir), ""
    except NothingToRank as fault:
        return None, f"An evaluation was begun and ranks nothing: {fault.what} ({fault.where}); {fault.remedy}."


def best_ranking(
    training: TrainingRanking | None, heldout: HeldoutRanking | None
) -> TrainingRanking | HeldoutRanking | None:
    """Return the ranking by the better evidence: held-out losses where they rank, else the training's own."""
    return heldout if heldout and not heldout.ranks_nothing else training


def rank_heldout(run_dir: Path, output_dir: Path) -> HeldoutResult:
    """Rank a run's checkpoints by what ``evaluate`` measured, with avr_loss and the norms of their weights beside.

    What stands beside and can't be read is missing there, and a note says so. Raises NothingToRank.
    """
    evaluation = read_evaluation(RunDirectory(run_dir))
    norms: dict[int, float] = {}
    averages: dict[int, float] = {}
    faults = []
    for one in evaluation.candidates:
        if one.file and one.file.is_file():
            try:
                norms[one.step] = weight_norm(one.file).total
            except NothingToRank as fault:
                faults.append(f"No norm of {one.file.name}: {fault.what}.")
    problems: tuple[str, ...] = ()
    try:
        if source := _losses_in(RunDirectory(run_dir)):
            curve = read_losses(source)
            averages, problems = curve.averages_at(evaluation.steps), curve.problems
    except SpykeError as fault:
        faults.append(f"avr_loss is not shown: {fault.what} ({fault.where}).")
    steps = sorted(norms)
    leaps = tuple(steps[i] for i in blown_up([norms[step] for step in steps]))
    ranking = judge_heldout(evaluation, Context(norms, averages, leaps, tuple(faults)))
    return HeldoutResult(run_dir.name, output_dir, run_dir, ranking, problems)


def rank_directory(
    source: Path,
    *,
    losses: Path | None = None,
    window: int | None = None,
    name: str | None = None,
    every: int | None = None,
    by: Measure = "avr_loss",
) -> TrainingResult:
    """Rank by training loss the checkpoints of an output directory, or of the one a run directory belongs to.

    ``source`` may also be what holds the losses: a TensorBoard folder, a saved console or a CSV file; the checkpoints
    are then those beside it. ``losses`` is such a thing to use in the place of the run's (of the newest run that has
    any); ``window`` the batches of one epoch, where what is on record is missing or wrong; ``name`` the output name to
    rank; ``every`` keeps the steps that are multiples of it, and the last. Without any checkpoint file the steps of
    the losses are ranked. Raises UsageError and NothingToRank.
    """
    directory, given = _split_source(source, losses)
    run_dir, output_dir = _run_and_output(directory, name, search=given is None)
    record = _record_of(run_dir)
    curve = read_losses(given or _losses_of(run_dir, directory))
    found = find_checkpoints(output_dir, name or record.output_name)
    _check_name(found, name, output_dir)
    facts = Facts(window=window).or_else(facts_from_run(record)).or_else(curve.facts).or_else(merged_facts(found))
    curve = curve.with_facts(facts)
    known = recorded(found, record, output_dir)
    placed = place(known, _steps_per_epoch(facts), curve.last_step)
    unreadable = [(one.file, one.problem) for one in placed if not one.readable]
    candidates = one_per_step(placed) if placed else _without_files(curve, every, output_dir)
    if not candidates:
        raise _all_unreadable(unreadable, output_dir)
    ranking = rank(curve, _thinned(candidates, every), unreadable=unreadable, by=by)
    title = run_dir.name if run_dir else facts.output_name or directory.resolve().name
    return TrainingResult(title, output_dir, run_dir, ranking, (*record.problems, *curve.problems), curve)


def _split_source(source: Path, losses: Path | None) -> tuple[Path, Path | None]:
    """Return the directory whose checkpoints are ranked, and the losses that were named, if any."""
    if source.is_file():
        return source.absolute().parent, losses or source
    if not source.is_dir():
        raise UsageError(
            "no such file or directory",
            where=str(source),
            remedy="give an output directory, a run directory, a TensorBoard folder, a saved console or a CSV file",
        )
    is_output = (source / "runs").is_dir() or RunDirectory(source).record.is_file() or any(source.glob("*.safetensors"))
    holds_events = not is_output and any(find_event_files(source))
    return source, losses or (source if holds_events else None)


def _run_and_output(directory: Path, name: str | None, *, search: bool) -> tuple[Path | None, Path]:
    if RunDirectory(directory).record.is_file():
        return directory, RunDirectory(directory.resolve()).output_dir
    return (_newest_run(directory, name) if search else None), directory


def _newest_run(directory: Path, name: str | None) -> Path | None:
    with_losses = (run.path for run in runs_under(directory) if _losses_in(run))
    return next((run for run in with_losses if name in (None, read_record(RunDirectory(run)).output_name)), None)


def _losses_in(run: RunDirectory) -> Path | None:
    """Return the best record of a run's losses: the table, else TensorBoard's files, else the console.

    Of a resumed run only the table counts its steps truly: in all else they begin with 1 again.
    """
    if _has_rows(run.losses):
        return run.losses
    if read_record(run).resumed_from:
        return None
    if _hold_losses(find_event_files(run.tensorboard)):
        return run.tensorboard
    return run.console if run.console.is_file() and b"avr_loss=" in run.console.read_bytes() else None


def _hold_losses(event_files: Sequence[Path]) -> bool:
    try:
        return bool(losses_from_events(event_files))
    except EngineError:  # damaged: the console has the losses too
        return False


def _has_rows(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        data = (line for line in lines if line.strip() and not line.startswith("#"))
        return next(data, None) is not None and next(data, None) is not None


def _record_of(run_dir: Path | None) -> Record:
    run = RunDirectory(run_dir) if run_dir else None
    return read_record(run, or_raise=NothingToRank) if run and run.record.exists() else Record()


def _losses_of(run_dir: Path | None, directory: Path) -> Path:
    found = _losses_in(RunDirectory(run_dir)) if run_dir else None
    if found:
        return found
    raise NothingToRank(
        "no losses on record here",
        where=str(run_dir or directory),
        remedy="name what holds them, with --losses FILE: a CSV file with the columns step and avr_loss, a console, "
        "or a TensorBoard folder",
    )


def _check_name(found: list[FoundCheckpoint], name: str | None, directory: Path) -> None:
    names = [] if found or name is None else output_names(directory)
    if names:
        raise UsageError(f"no checkpoint named {name} here; there is {', '.join(names)}", where=str(directory))


def _steps_per_epoch(facts: Facts) -> int | None:
    return -(-facts.window // (facts.micro_batches_per_step or 1)) if facts.window else None


def _without_files(curve: LossCurve, every: int | None, directory: Path) -> list[Candidate]:
    """Return the steps at which checkpoints were saved, as far as is known; else the recorded ones, when few enough."""
    if curve.saved_steps and every is None:
        return [Candidate(step) for step in curve.saved_steps]
    steps = curve.steps[curve.steps > 0]
    if every is None and len(steps) > 1 and np.median(np.diff(steps)) < 2:
        raise NothingToRank(
            "no checkpoint here, and losses of every step",
            where=str(directory),
            remedy="give the directory that holds the checkpoints, or say how far apart they were saved: --every N",
        )
    if every is not None:
        steps = steps[(steps % every == 0) | (steps == steps[-1:])]
    return [Candidate(int(step)) for step in steps]


def _thinned(candidates: list[Candidate], every: int | None) -> list[Candidate]:
    if every is None:
        return candidates
    last = max(one.step for one in candidates)
    return [one for one in candidates if one.step % every == 0 or one.step == last]


def _all_unreadable(unreadable: list[tuple[Path, str]], directory: Path) -> NothingToRank:
    reasons = "; ".join(f"{file.name}: {reason}" for file, reason in unreadable)
    return NothingToRank(f"none of the checkpoints here can be used: {reasons}", where=str(directory))
