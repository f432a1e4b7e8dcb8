"""What is drawn of a ranking, whichever library draws it: lines with their bands, groups of checkpoints, the range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spyke_kohya.rank.heldout_result import HeldoutRanking, HeldoutRow
from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import Ranking, Row
from spyke_kohya.rank.windows import FloatArray, IntArray

# Okabe and Ito's palette, which colour-blind people can tell apart; shapes differ as well
BLUE, ORANGE, VERMILION, GREY, INK = "#0072B2", "#E69F00", "#D55E00", "#8C8C8C", "#222222"
MOST_POINTS = 4000
STEP_AXIS = "training step (optimizer steps)"

Kind = Literal["other", "tied", "lowest"]
FACES: dict[Kind, str] = {"other": "white", "tied": ORANGE, "lowest": VERMILION}
EDGES: dict[Kind, str] = {"other": BLUE, "tied": INK, "lowest": INK}


@dataclass(frozen=True)
class Line:
    """Values by step, of which no more are kept than can be seen; ``errors`` is one standard error of each."""

    steps: IntArray
    values: FloatArray
    errors: FloatArray

    @property
    def low(self) -> FloatArray:
        return self.values - self.errors

    @property
    def high(self) -> FloatArray:
        return self.values + self.errors


@dataclass(frozen=True)
class Point:
    """A checkpoint: its value, one standard error, its place in the ranking, and its file, if there is one."""

    step: int
    value: float
    error: float
    rank: int
    file: str

    @property
    def low(self) -> float:
        return self.value - self.error

    @property
    def high(self) -> float:
        return self.value + self.error


@dataclass(frozen=True)
class Group:
    """Checkpoints that are drawn alike, and what the legend calls them."""

    kind: Kind
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Drawing:
    """A line, and its checkpoints in groups; ``dots`` are steps and their single losses, where they are on record."""

    line: Line
    groups: tuple[Group, ...]
    dots: tuple[IntArray, FloatArray] | None = None

    @property
    def points(self) -> list[Point]:
        return [point for group in self.groups for point in group.points]

    @property
    def has_band(self) -> bool:
        """Whether the line is known between the checkpoints too, so that its error is a band."""
        return len(self.line.steps) > len(self.points)


def training_drawing(curve: LossCurve, ranking: Ranking) -> Drawing:
    """Return what is drawn of a training loss: avr_loss by step, with the error that its window leaves."""
    known = curve.before_divergence()
    window = ranking.window or ranking.assumed_window or 1
    batches = np.clip(known.steps * ranking.micro_batches_per_step, 1, window)
    placed = [
        (_kind(row.tied, row is ranking.minimum), _point(row, row.avr_loss, row.standard_error))
        for row in ranking.by_step
    ]
    return Drawing(
        _line(known.steps, known.avr_loss, ranking.sigma / np.sqrt(batches)),
        _groups(placed),
        None if known.loss is None else _dots(known.steps, known.loss),
    )


def heldout_drawing(ranking: HeldoutRanking) -> Drawing:
    """Return what is drawn of an evaluation: the loss over that of the base; only held-out pictures rank anything."""
    ranks = ranking.kind == "heldout"
    placed = [
        (
            _kind(row.tied and ranking.has_set, ranks and row is ranking.minimum),
            _point(row, row.ratio, row.standard_error or 0.0),
        )
        for row in ranking.by_step
    ]
    steps, values, errors = (np.array([getattr(one, name) for _, one in placed]) for name in ("step", "value", "error"))
    return Drawing(Line(steps, values, errors), _groups(placed))


def value_range(drawings: Sequence[Drawing]) -> tuple[float, float]:
    """Return the range of values to show: around the checkpoints, for losses of single steps are far apart."""
    points = [point for drawing in drawings for point in drawing.points]
    low, high = min(point.low for point in points), max(point.high for point in points)
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


def _line(steps: IntArray, values: FloatArray, errors: FloatArray) -> Line:
    finite = np.flatnonzero(np.isfinite(values))
    kept = finite[thinned(values[finite])]
    return Line(steps[kept], values[kept], errors[kept])


def _dots(steps: IntArray, values: FloatArray) -> tuple[IntArray, FloatArray]:
    """Keep every n-th: the extremes, which a line keeps, are far from where most of the losses are."""
    finite = np.flatnonzero(np.isfinite(values))
    kept = finite[:: -(-len(finite) // MOST_POINTS) or 1]
    return steps[kept], values[kept]


def _kind(tied: bool, lowest: bool) -> Kind:
    return "lowest" if lowest else "tied" if tied else "other"


def _point(row: Row | HeldoutRow, value: float, error: float) -> Point:
    file = row.candidate.file
    return Point(row.step, value, error, row.rank, file.name if file else "no file")


def _groups(placed: list[tuple[Kind, Point]]) -> tuple[Group, ...]:
    lowest = ", ".join(str(point.step) for kind, point in placed if kind == "lowest")
    labels: dict[Kind, str] = {
        "other": "checkpoint ± 1 standard error",
        "tied": "tied with the lowest",
        "lowest": f"lowest (step {lowest})",
    }
    grouped = {kind: tuple(point for its, point in placed if its == kind) for kind in labels}
    return tuple(Group(kind, labels[kind], points) for kind, points in grouped.items() if points)
