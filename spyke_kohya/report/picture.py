"""A ranking as one picture for a page or a report, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import TrainingRanking, TrainingRow
from spyke_kohya.rank.words import CANNOT

# Okabe and Ito's palette, which colour-blind people can tell apart; shapes differ as well
BLUE, ORANGE, VERMILION, GREY, INK = "#0072B2", "#E69F00", "#D55E00", "#8C8C8C", "#222222"
SIZE_INCHES = (9.0, 5.0)
DPI = 150
MOST_POINTS = 4000


def write_ranking_png(path: Path, curve: LossCurve, ranking: TrainingRanking, title: str = "") -> None:
    """Write avr_loss by step with every checkpoint's standard error, the tied ones and the lowest, as a PNG."""
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    known = curve.before_divergence()
    _draw_losses(axes, known)
    _draw_average(axes, known, ranking)
    _draw_checkpoints(axes, ranking)
    _label(axes, ranking, title)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_losses(axes: Any, curve: LossCurve) -> None:
    if curve.loss is None:
        return
    every = _thinning(len(curve.steps))
    axes.plot(curve.steps[::every], curve.loss[::every], ".", color=GREY, alpha=0.3, markersize=2, zorder=1)
    axes.plot([], [], ".", color=GREY, markersize=5, label="loss of one step (where in range)")


def _draw_average(axes: Any, curve: LossCurve, ranking: TrainingRanking) -> None:
    """The curve, with its standard error around it where it is known between checkpoints too."""
    finite = np.isfinite(curve.avr_loss)
    every = _thinning(int(finite.sum()))
    steps, averages = curve.steps[finite][::every], curve.avr_loss[finite][::every]
    axes.plot(steps, averages, color=BLUE, linewidth=1.5, label="avr_loss", zorder=3)
    if len(steps) <= len(ranking.rows):
        return
    window = ranking.window or ranking.assumed_window or 1
    batches = np.clip(steps * ranking.micro_batches_per_step, 1, window)
    error = ranking.sigma / np.sqrt(batches)
    axes.fill_between(steps, averages - error, averages + error, color=BLUE, alpha=0.15, linewidth=0, zorder=2)


def _draw_checkpoints(axes: Any, ranking: TrainingRanking) -> None:
    rows = ranking.by_step
    groups = (
        ([row for row in rows if not row.tied], "o", "white", BLUE, 6, "checkpoint ± 1 SE"),
        ([row for row in rows if row.tied and row is not ranking.minimum], "s", ORANGE, INK, 7, "tied with the lowest"),
        ([ranking.minimum], "v", VERMILION, INK, 10, f"lowest avr_loss (step {ranking.minimum.step})"),
    )
    for members, shape, face, edge, size, label in groups:
        if members:
            _draw_group(
                axes, members, fmt=shape, markerfacecolor=face, markeredgecolor=edge, markersize=size, label=label
            )


def _draw_group(axes: Any, rows: list[TrainingRow], **style: Any) -> None:
    axes.errorbar(
        [row.step for row in rows],
        [row.avr_loss for row in rows],
        yerr=[row.standard_error for row in rows],
        ecolor=INK, elinewidth=1, capsize=3, linestyle="none", zorder=4, **style,
    )  # fmt: skip


def _label(axes: Any, ranking: TrainingRanking, title: str) -> None:
    covers = f"mean of the last {ranking.window} batches" if ranking.window else "window unknown"
    axes.set_title(
        f"{title or 'Checkpoints by training loss'}\n", loc="left", fontsize=13, fontweight="bold", color=INK
    )
    axes.text(0, 1.02, f"{len(ranking.tied_steps)} of {len(ranking.rows)} checkpoints tied for lowest; {CANNOT}",
              transform=axes.transAxes, fontsize=9, color=GREY)  # fmt: skip
    axes.set_xlabel("training step (optimizer steps)")
    axes.set_ylabel(f"avr_loss ({covers})")
    low = min(row.avr_loss - row.standard_error for row in ranking.rows)
    high = max(row.avr_loss + row.standard_error for row in ranking.rows)
    margin = 0.25 * (high - low)
    axes.set_ylim(max(0.0, low - margin), high + margin)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _thinning(count: int) -> int:
    return max(1, count // MOST_POINTS)
