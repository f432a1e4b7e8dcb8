"""Runs on a terminal: a table of all, two compared, and what may be deleted."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from spyke_kohya.record.runs import Deletable
from spyke_kohya.repeat.inputs import Difference
from spyke_kohya.report.overview import RunSummary
from spyke_kohya.report.plain_text import duration
from spyke_kohya.report.ranking_text import plain


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
