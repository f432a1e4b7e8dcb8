"""One line about a run: its status, steps, ranking and unreadable files; and runs on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from spyke_kohya.errors import SpykeError
from spyke_kohya.rank.directory import TrainingResult, best_ranking, heldout_beside, rank_directory
from spyke_kohya.record.record import UNFINISHED, UNREADABLE, read_record
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.record.runs import Deletable
from spyke_kohya.repeat.inputs import Difference
from spyke_kohya.report.plain_text import duration
from spyke_kohya.report.ranking_text import plain


@dataclass(frozen=True)
class RunSummary:
    """One line about a run; None where it isn't on record. ``chosen_step`` heads the test order.

    ``problems`` names what of the run's own files can't be used, and why.
    """

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
    problems: tuple[str, ...] = ()

    @property
    def seconds_per_step(self) -> float | None:
        return self.duration_s / self.steps if self.duration_s is not None and self.steps else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "seconds_per_step": self.seconds_per_step}


def summarize(run: RunDirectory) -> RunSummary:
    """Return one line about a run. Never raises: a file that can't be read is one of its problems."""
    record = read_record(run).true_now
    result, best, problems = None, None, record.problems
    try:
        result = rank_directory(run.path)
        heldout, _ = heldout_beside(run.path, run.output_dir)
        best = best_ranking(result.ranking, heldout.ranking if heldout else None)
    except (SpykeError, OSError) as fault:
        if record.status not in (*UNFINISHED, UNREADABLE):
            problems += _of_its_own(run, fault)
    ranking = result.ranking if result else None
    return RunSummary(
        name=run.path.name,
        path=run.path,
        status=record.status,
        steps=record.result.steps if record.result.steps is not None or not result else result.curve.last_step,
        planned_steps=record.plan.total_steps,
        duration_s=record.result.duration_s,
        lowest_loss=ranking.minimum.avr_loss if ranking else None,
        lowest_step=ranking.minimum.step if ranking else None,
        chosen_step=best.test_order[0].candidate.step if best else None,
        verdict=best.verdict if best else "",
        problems=(*problems, *(result.curve.problems if result else ())),
    )


def ranked(run: RunDirectory) -> TrainingResult | None:
    """Return the ranking of a run, where there is one."""
    try:
        return rank_directory(run.path)
    except (SpykeError, OSError):
        return None


def runs_table(runs: Sequence[RunSummary], width: int = 80) -> str:
    """Return a line a run: status, steps, pace, lowest avr_loss, the step to look at first. Problems stand below."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "status"):
        table.add_column(name, overflow="fold")
    for name in ("steps", "duration", "s/step", "lowest loss", "look at"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(run.name, run.status, *_numbers(run))
    lost = [f"{run.name}: not read: {'; '.join(run.problems[:3])}\n" for run in runs if run.problems]
    return plain(table, width) + "".join(lost)


def comparison_text(runs: Sequence[RunSummary], found: Sequence[Difference], width: int = 80) -> str:
    """Return two runs, the settings in which they differ, and the verdict of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("setting", *(run.name for run in runs)):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(one.key, _value(one.first), _value(one.second))
    settings = plain(table, width) if found else "Both runs were asked to do the same.\n"
    verdicts = "\n".join(f"{run.name}: {run.verdict or 'nothing to rank'}" for run in runs)
    return f"{runs_table(runs, width)}\n{settings}\n{verdicts}"


def deletable_text(items: Sequence[Deletable]) -> str:
    """Return what may be deleted, a line each, and how much it is in all."""
    lines = [f"{item.size_bytes / 1e6:9.1f} MB  {item.path}  ({item.reason})" for item in items]
    return "\n".join([*lines, f"{sum(item.size_bytes for item in items) / 1e6:9.1f} MB in all"])


def _of_its_own(run: RunDirectory, fault: SpykeError | OSError) -> tuple[str, ...]:
    """Return the fault where it lies in a file of the run; a run without losses or checkpoints has no fault."""
    where, what = (fault.where, fault.what) if isinstance(fault, SpykeError) else (fault.filename, fault.strerror)
    file = Path(str(where))
    return (f"{file.name}: {what}",) if run.path in file.parents else ()


def _numbers(run: RunSummary) -> tuple[str, ...]:
    steps = "" if run.steps is None else str(run.steps)
    short = f"{steps}/{run.planned_steps}" if run.planned_steps and run.steps != run.planned_steps else steps
    return (
        short,
        "" if run.duration_s is None else duration(run.duration_s),
        "" if run.seconds_per_step is None else f"{run.seconds_per_step:.3g}",
        "" if run.lowest_loss is None else f"{run.lowest_loss:.4g} at {run.lowest_step}",
        "" if run.chosen_step is None else str(run.chosen_step),
    )


def _value(value: object) -> str:
    return "not set" if value is None else str(value)
