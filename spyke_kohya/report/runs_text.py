"""Runs beside each other: a table of all, and two compared in a table and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from spyke_kohya.rank.directory import RankResult
from spyke_kohya.repeat.inputs import Difference
from spyke_kohya.report.chart import decimated
from spyke_kohya.report.live import duration
from spyke_kohya.report.overview import Deletable, RunSummary
from spyke_kohya.report.picture import BLUE, DPI, INK, SIZE_INCHES, VERMILION


def runs_table(runs: Sequence[RunSummary], width: int = 80) -> str:
    """A line a run: status, steps, duration, seconds a step, lowest avr_loss, what to look at first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "status"):
        table.add_column(name, overflow="fold")
    for name in ("steps", "duration", "s/step", "lowest loss", "look at"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(run.name, run.status, *_numbers(run))
    return _plain(table, width)


def comparison_text(runs: Sequence[RunSummary], found: Sequence[Difference], width: int = 80) -> str:
    """Two runs, the settings that they don't share, and what is said of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("setting", *(run.name for run in runs)):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(one.key, _value(one.first), _value(one.second))
    settings = _plain(table, width) if found else "They were asked to do the same.\n"
    verdicts = "\n".join(f"{run.name}: {run.verdict or 'nothing to rank'}" for run in runs)
    return f"{runs_table(runs, width)}\n{settings}\n{verdicts}"


def write_comparison_png(path: Path, results: Sequence[RankResult]) -> None:
    """avr_loss of several runs by step in one picture, with their checkpoints and the lowest of each."""
    drawing = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    for result, colour in zip(results, (BLUE, VERMILION), strict=False):
        known = result.curve.before_divergence()
        finite = np.isfinite(known.avr_loss)
        steps, averages = known.steps[finite], known.avr_loss[finite]
        kept = decimated(averages)
        axes.plot(steps[kept], averages[kept], color=colour, linewidth=1.5, label=result.title)
        rows = result.ranking.by_step
        axes.errorbar([row.step for row in rows], [row.avr_loss for row in rows],
                      yerr=[row.standard_error for row in rows], color=colour, fmt="o", markersize=4, capsize=3,
                      linewidth=1)  # fmt: skip
        lowest = result.ranking.minimum
        axes.plot([lowest.step], [lowest.avr_loss], "v", color=colour, markeredgecolor=INK, markersize=10)
    _frame(axes, results)
    drawing.savefig(path, format="png", metadata={"Software": None})


def _frame(axes: Any, results: Sequence[RankResult]) -> None:
    rows = [row for result in results for row in result.ranking.rows]
    low = min(row.avr_loss - row.standard_error for row in rows)
    high = max(row.avr_loss + row.standard_error for row in rows)
    margin = 0.25 * (high - low)
    axes.set(ylim=(max(0.0, low - margin), high + margin), xlabel="training step (optimizer steps)", ylabel="avr_loss")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def deletable_text(items: Sequence[Deletable]) -> str:
    """What may be deleted, a line each, and how much it is in all."""
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


def _plain(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(table, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
