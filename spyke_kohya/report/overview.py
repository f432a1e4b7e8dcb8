"""What became of a run, in one line: its status, its steps, its ranking, and what of its files can't be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.errors import SpykeError
from spyke_kohya.rank.directory import TrainingResult, rank_best, rank_directory
from spyke_kohya.record.record import UNFINISHED, UNREADABLE, read_record
from spyke_kohya.record.rundir import RunDirectory


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
    """Return what became of a run. Never raises: what can't be read is one of its problems."""
    record = read_record(run).true_now
    result, best, problems = None, None, record.problems
    try:
        result = rank_directory(run.path)
        best = rank_best(run.path).ranking
    except (SpykeError, OSError) as fault:
        if record.status not in (*UNFINISHED, UNREADABLE):
            problems += tuple(_of_its_own(run, fault))
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


def _of_its_own(run: RunDirectory, fault: SpykeError | OSError) -> Iterator[str]:
    """Yield a fault in a file of the run; that a run left no losses or no checkpoints is none."""
    where, what = (fault.where, fault.what) if isinstance(fault, SpykeError) else (fault.filename, fault.strerror)
    if run.path in Path(str(where)).parents:
        yield f"{Path(str(where)).name}: {what}"
