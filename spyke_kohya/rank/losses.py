"""A training's losses as one value, and the CSV files they are read from. It knows nothing of checkpoints.

A loss that is nan or infinite is kept: it says that training diverged. A loss that is missing is nan in the arrays too,
and only ``diverged_step`` tells the two apart.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from spyke_kohya.errors import NothingToRank, UsageError
from spyke_kohya.rank.training_info import Facts
from spyke_kohya.rank.windows import FloatArray, IntArray

FAULTS_SHOWN = 5

Number = TypeVar("Number", int, float)

_WINDOW_COMMENT = re.compile(r"(?<!\d)(\d{1,9})\s+batches\s*(?:/|per|an|a)\s*epoch", re.IGNORECASE)
_AVERAGE_COLUMN = re.compile(r"avr_loss(?:_w(\d{1,9}))?|loss_average")
_TRACKER_COLUMNS = {"loss_current", "loss_average"}  # one row a micro-batch, as sd-scripts' trackers log them


@dataclass(frozen=True, eq=False)
class LossCurve:
    """Losses by optimizer step, ascending. ``avr_loss`` (n,) is what sd-scripts prints, nan where unknown.

    ``loss`` (n,), where known, is each step's own loss (the mean of its micro-batches), nan where unknown.
    ``window`` is the number of micro-batches that avr_loss covers at most: those of one epoch. ``diverged_step`` is
    the first step whose loss was recorded as nan or infinite. ``saved_steps`` are those at which a checkpoint was
    saved, where the record itself says so. ``problems`` names the files beside it that can't be read.
    """

    steps: IntArray
    avr_loss: FloatArray
    loss: FloatArray | None = None
    window: int | None = None
    micro_batches_per_step: int = 1
    batch_size: int | None = None
    min_snr_gamma: float | None = None
    diverged_step: int | None = None
    source: str = ""
    saved_steps: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def last_step(self) -> int:
        return int(self.steps[-1])

    @property
    def facts(self) -> Facts:
        """What this curve itself tells of its training."""
        repeats = self.micro_batches_per_step if self.micro_batches_per_step > 1 else None
        return Facts(None, self.window, repeats, self.batch_size, self.min_snr_gamma)

    def with_facts(self, facts: Facts) -> LossCurve:
        """Return this curve with these facts in the place of its own."""
        return replace(
            self,
            window=facts.window,
            micro_batches_per_step=facts.micro_batches_per_step or 1,
            batch_size=facts.batch_size,
            min_snr_gamma=facts.min_snr_gamma,
        )

    def before_divergence(self) -> LossCurve:
        """Return the part of this curve whose losses are numbers."""
        if self.diverged_step is None:
            return self
        kept = self.steps < self.diverged_step
        loss = None if self.loss is None else self.loss[kept]
        return replace(self, steps=self.steps[kept], avr_loss=self.avr_loss[kept], loss=loss)

    def average_at(self, step: int) -> float | None:
        """avr_loss at exactly this step, or None."""
        at = int(np.searchsorted(self.steps, step))
        if at == len(self.steps) or self.steps[at] != step or not np.isfinite(self.avr_loss[at]):
            return None
        return float(self.avr_loss[at])

    def averages_at(self, steps: Iterable[int]) -> dict[int, float]:
        """avr_loss at those of the steps at which it is known."""
        found = {step: self.average_at(step) for step in steps}
        return {step: average for step, average in found.items() if average is not None}

    def contiguous_losses(self) -> FloatArray | None:
        """Every step's own loss from the first step to the last, or None when one is missing."""
        if self.loss is None or len(self.steps) == 0 or not np.isfinite(self.loss).all():
            return None
        return self.loss if self.steps[-1] - self.steps[0] + 1 == len(self.steps) else None


@dataclass(frozen=True)
class _Table:
    """A CSV file's header, its rows with their line numbers, and the window its comments name."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    window: int | None


def read_losses_csv(path: Path) -> LossCurve:
    """Read losses by step from a CSV file: ours, any with ``step`` and ``avr_loss``, or sd-scripts' tracker columns.

    Columns are ``step`` and at least one of ``avr_loss`` (or ``loss_average``; ``avr_loss_W460`` names its window) and
    ``loss`` (or ``loss_current``); others are ignored and an empty cell is unknown. Lines starting with ``#`` are
    comments, and "460 batches/epoch" in one names the window.
    A last line that is still being written is left out. In tracker columns a step may repeat: those are the
    micro-batches of gradient accumulation. Raises UsageError when there is no such file, NothingToRank with the line
    numbers when its content can't be used.
    """
    table = _read_table(path)
    average, window = _average_column(table.header)
    own = next((i for i, name in enumerate(table.header) if name in ("loss", "loss_current")), None)
    if "step" not in table.header or (average is None and own is None):
        raise NothingToRank(
            f"no losses here: the columns are {', '.join(table.header)}",
            where=str(path),
            remedy="give a CSV file with the columns step and avr_loss",
        )
    steps = _steps(path, table)
    averages = _losses(path, table, average)
    losses = _losses(path, table, own)
    curve = curve_of(steps, averages, losses, window=window or table.window, source=str(path))
    return curve if not _TRACKER_COLUMNS & set(table.header) else merge_micro_batches(curve)


def curve_of(
    steps: IntArray,
    avr_loss: Sequence[float | None] | None,
    loss: Sequence[float | None] | None,
    *,
    window: int | None = None,
    source: str = "",
) -> LossCurve:
    """Make a curve from what was recorded; None is an unknown loss, nan or an infinity a diverged one."""
    averages, diverged = _known(avr_loss, len(steps))
    losses, also_diverged = _known(loss, len(steps))
    at = np.flatnonzero(diverged | also_diverged)
    return LossCurve(
        steps=steps,
        avr_loss=averages,
        loss=None if np.isnan(losses).all() else losses,
        window=window,
        diverged_step=int(steps[at[0]]) if len(at) else None,
        source=source,
    )


def merge_micro_batches(curve: LossCurve) -> LossCurve:
    """One row a step from one row a micro-batch, as sd-scripts' trackers log them under gradient accumulation.

    A micro-batch is logged under the step that had been completed by then, so the first row of a step is the one that
    completes it, and the others already belong to the next (sd-scripts v0.10.1 train_network.py:1487-1525).
    """
    first = (np.diff(curve.steps, prepend=-1) > 0) & (curve.steps > 0)
    if first.all():
        return curve
    owner = np.where(first, curve.steps, curve.steps + 1)
    whole = owner <= curve.last_step
    _, group, counts = np.unique(owner[whole], return_inverse=True, return_counts=True)
    loss = None if curve.loss is None else np.bincount(group, weights=curve.loss[whole]) / counts
    return replace(
        curve,
        steps=curve.steps[first],
        avr_loss=curve.avr_loss[first],
        loss=loss,
        micro_batches_per_step=int(counts.max()),
    )


def _known(values: Sequence[float | None] | None, count: int) -> tuple[FloatArray, np.ndarray]:
    """Values as an array, nan where unknown, and where they were recorded as nan or infinite."""
    if values is None:
        return np.full(count, np.nan), np.zeros(count, dtype=bool)
    array = np.array(values, dtype=np.float64)
    recorded = np.array([value is not None for value in values], dtype=bool)
    return array, recorded & ~np.isfinite(array)


def _read_table(path: Path) -> _Table:
    if not path.is_file():
        raise UsageError("no such file", where=str(path), remedy="give the file that holds the losses")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise NothingToRank("not a CSV file: it isn't text", where=str(path)) from problem
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    comments = [line for _, line in numbered if line.startswith("#")]
    data = [(number, line) for number, line in numbered if not line.startswith("#")]
    if len(data) < 2:
        raise NothingToRank("no losses here: the file has no rows", where=str(path))
    rows = _rows(path, data)
    header = [name.strip().lower() for name in rows[0]]
    if not text.endswith("\n") and len(rows) > 2 and _is_cut(rows[-1], header):
        del rows[-1], data[-1]
    lines = [number for number, _ in data[1:]]
    uneven = [(line, len(row)) for line, row in zip(lines, rows[1:], strict=True) if len(row) != len(header)]
    _refuse(path, (f"line {line}: {cells} cells, not {len(header)}" for line, cells in uneven))
    named = _WINDOW_COMMENT.search("\n".join(comments))
    return _Table(header, rows[1:], lines, int(named[1]) if named else None)


def _rows(path: Path, data: Sequence[tuple[int, str]]) -> list[list[str]]:
    """Return the cells of each line: none goes on in the next, so that an open quote spoils no other."""
    rows: list[list[str]] = []
    faults = []
    for number, line in data:
        try:
            rows += csv.reader([line], strict=True)
        except csv.Error as fault:
            faults.append(f"line {number}: {fault}")
    _refuse(path, faults)
    return rows


def _is_cut(row: list[str], header: list[str]) -> bool:
    """Whether a last row without a line end was still being written: cells are missing, or one is half a number."""
    known = [cell.strip() for cell, name in zip(row, header, strict=False) if name == "step" or "loss" in name]
    return len(row) != len(header) or not all(_reads(cell, float) for cell in known)


def _average_column(header: list[str]) -> tuple[int | None, int | None]:
    """Return the column that holds avr_loss, and the window its name gives."""
    for i, name in enumerate(header):
        if match := _AVERAGE_COLUMN.fullmatch(name):
            return i, int(match[1]) if match[1] else None
    return None, None


def _steps(path: Path, table: _Table) -> IntArray:
    column = table.header.index("step")
    values = _column(path, table, column, int)
    _refuse(path, (f"line {line}: no step" for line, value in zip(table.lines, values, strict=True) if value is None))
    numbered = zip(table.lines, values, strict=True)
    _refuse(path, (f"line {line}: step {step} is too large" for line, step in numbered if step and step >= 1 << 63))
    steps = np.array(values, dtype=np.int64)
    repeats = bool(_TRACKER_COLUMNS & set(table.header))
    wrong = np.flatnonzero(np.diff(steps) < (0 if repeats else 1)) + 1
    _refuse(path, (f"line {table.lines[i]}: step {steps[i]} after step {steps[i - 1]}" for i in wrong))
    _refuse(path, (f"line {table.lines[i]}: step {steps[i]} is below 0" for i in np.flatnonzero(steps < 0)))
    return steps


def _losses(path: Path, table: _Table, column: int | None) -> list[float | None] | None:
    return None if column is None else _column(path, table, column, float)


def _column(path: Path, table: _Table, column: int, read: type[Number]) -> list[Number | None]:
    cells = [row[column].strip() for row in table.rows]
    try:
        return [read(cell) if cell else None for cell in cells]
    except ValueError:
        name, kind = table.header[column], "a whole number" if read is int else "a number"
        numbered = zip(table.lines, cells, strict=True)
        _refuse(path, (f"line {n}: {name} is {cell!r}, not {kind}" for n, cell in numbered if not _reads(cell, read)))
        raise


def _reads(cell: str, read: type[int] | type[float]) -> bool:
    try:
        return not cell or read(cell) is not None
    except ValueError:
        return False


def _refuse(path: Path, faults: Iterable[str]) -> None:
    found = list(faults)
    if not found:
        return
    more = f"; and {len(found) - FAULTS_SHOWN} more" if len(found) > FAULTS_SHOWN else ""
    raise NothingToRank(
        "; ".join(found[:FAULTS_SHOWN]) + more,
        where=str(path),
        remedy="repair these lines, or rank from another source with --losses",
    )
