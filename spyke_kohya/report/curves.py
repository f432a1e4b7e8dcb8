"""What is drawn of a ranking, whichever library draws it: lines with their bands, groups of checkpoints, the range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import HeldoutRanking, HeldoutRow, Row, TrainingRanking
from spyke_kohya.rank.windows import FloatArray, IntArray

# Okabe and Ito's palette, which colour-blind people can tell apart; shapes differ as well
BLUE, ORANGE, VERMILION, GREY, INK = "#0072B2", "#E69F00", "#D55E00", "#8C8C8C", "#222222"
MOST_POINTS = 4000
STEP_AXIS = "training step (optimizer steps)"

Kind = Literal["other", "tied", "lowest"]
FACES: dict[Kind, str] = {"other": "white", "tied": ORANGE, "lowest": VERMILION}
EDGES: dict[Kind, str] = {"other": BLUE, "tied": INK, "lowest": INK}


@dataclass(frozen=True)
class Series:
    """Values by step; ``errors`` is one standard error of each."""

    steps: IntArray
    values: FloatArray
    errors: FloatArray

    @property
    def low(self) -> FloatArray:
        return self.values - self.errors

    @property
    def high(self) -> FloatArray:
        return self.values + self.errors

    def at(self, places: IntArray) -> Series:
        return Series(self.steps[places], self.values[places], self.errors[places])


@dataclass(frozen=True)
class Group:
    """Checkpoints that are drawn alike, and what the legend calls them."""

    kind: Kind
    label: str
    points: Series
    rows: tuple[Row | HeldoutRow, ...]


@dataclass(frozen=True)
class Drawing:
    """A line, and the checkpoints, also in groups; ``dots`` are single losses, where they are on record.

    No more of the line and of the dots are kept than can be seen.
    """

    line: Series
    checkpoints: Series
    groups: tuple[Group, ...]
    dots: Series | None = None

    @property
    def has_band(self) -> bool:
        """Whether the line is known between the checkpoints too, so that its error is a band."""
        return len(self.line.steps) > len(self.checkpoints.steps)


def training_drawing(curve: LossCurve, ranking: TrainingRanking) -> Drawing:
    """Return what is drawn of a training loss: avr_loss by step, with the error that its window leaves."""
    known, rows = curve.before_divergence(), ranking.by_step
    window = ranking.window or ranking.assumed_window or 1
    errors = ranking.sigma / np.sqrt(np.clip(known.steps * ranking.micro_batches_per_step, 1, window))
    line = _finite(Series(known.steps, known.avr_loss, errors))
    checkpoints = _series([(row.step, row.avr_loss, row.standard_error) for row in rows])
    groups = _groups(rows, checkpoints, ranking.minimum, {row.step for row in rows if row.tied})
    dots = None
    if known.loss is not None:  # every n-th: the extremes, which a line keeps, are far from where most losses are
        dots = _finite(Series(known.steps, known.loss, errors))
        dots = dots.at(np.arange(0, len(dots.steps), 1 + len(dots.steps) // MOST_POINTS))
    return Drawing(line.at(thinned(line.values)), checkpoints, groups, dots)


def heldout_drawing(ranking: HeldoutRanking) -> Drawing:
    """Return what is drawn of an evaluation: the loss over that of the base; only held-out pictures rank anything."""
    rows = ranking.by_step
    line = _series([(row.step, row.ratio, row.standard_error or 0.0) for row in rows])
    lowest = ranking.minimum if ranking.kind == "heldout" else None
    return Drawing(line, line, _groups(rows, line, lowest, set(ranking.tied_steps) if ranking.has_set else set()))


def value_range(drawings: Sequence[Drawing]) -> tuple[float, float]:
    """Return the range of values to show: around the checkpoints, for losses of single steps are far apart."""
    low = min(float(drawing.checkpoints.low.min()) for drawing in drawings)
    high = max(float(drawing.checkpoints.high.max()) for drawing in drawings)
    margin = 0.25 * (high - low) or 0.1 * high or 1.0
    return max(0.0, low - margin), high + margin


def thinned(values: FloatArray, most: int = MOST_POINTS) -> IntArray:
    """Return which of the values to draw so that the curve looks the same.

    They are the lowest and the highest of each of most/2 runs, the first and the last; the indices ascend.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    buckets = most // 2 - 1
    width = -(-count // buckets)
    padded = np.concatenate((values, np.full(buckets * width - count, values[-1]))).reshape(buckets, width)
    starts = np.arange(buckets) * width
    extremes = np.concatenate((starts + padded.argmin(axis=1), starts + padded.argmax(axis=1), [0, count - 1]))
    return np.unique(np.minimum(extremes, count - 1))


def _series(points: Sequence[tuple[int, float, float]]) -> Series:
    steps, values, errors = zip(*points, strict=True)
    return Series(np.array(steps), np.array(values), np.array(errors))


def _finite(series: Series) -> Series:
    return series.at(np.flatnonzero(np.isfinite(series.values)))


def _groups(
    rows: Sequence[Row | HeldoutRow], points: Series, lowest: Row | HeldoutRow | None, tied: set[int]
) -> tuple[Group, ...]:
    kinds = np.array(["lowest" if row is lowest else "tied" if row.step in tied else "other" for row in rows])
    labels: dict[Kind, str] = {
        "other": "checkpoint ± 1 standard error",
        "tied": "tied with the lowest",
        "lowest": f"lowest (step {lowest.step if lowest else ''})",
    }
    places = {kind: np.flatnonzero(kinds == kind) for kind in labels}
    return tuple(
        Group(kind, labels[kind], points.at(at), tuple(rows[place] for place in at.tolist()))
        for kind, at in places.items()
        if len(at)
    )
