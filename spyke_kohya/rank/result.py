"""What a ranking is, as values and as JSON. It computes nothing that isn't already in it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from spyke_kohya.rank.windows import Regime

Role = Literal["candidate", "fallback", "baseline", "early"]
SigmaSource = Literal["per-step losses", "assumed"]
Measure = Literal["avr_loss", "loss"]
"""What is ranked by: the average that sd-scripts shows, or the mean of the per-step losses around each step."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to rank: its step, its file if there is one, and other files saved at the same step."""

    step: int
    file: Path | None = None
    also: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Row:
    """One ranked checkpoint. ``centred_loss`` is the mean loss around its step, known with per-step losses alone."""

    rank: int
    candidate: Candidate
    avr_loss: float
    standard_error: float
    tied: bool
    tied_p: float
    centred_loss: float | None = None

    @property
    def step(self) -> int:
        return self.candidate.step


@dataclass(frozen=True)
class Trial:
    """A checkpoint to try by eye, in the order of the list it stands in."""

    candidate: Candidate
    role: Role


@dataclass(frozen=True)
class Block:
    """The mean of the losses after step ``after`` up to and including step ``to``."""

    after: int
    to: int
    mean_loss: float
    standard_error: float


@dataclass(frozen=True)
class Rise:
    """A loss around a later checkpoint that is above that around an earlier one by more than chance gives."""

    from_step: int
    to_step: int
    p: float


@dataclass(frozen=True)
class Ranking:
    """Everything that was found; ``rows`` are best first.

    ``window`` is in micro-batches; None when unknown, and then ``assumed_window`` was used. ``sigma`` is the standard
    deviation of one micro-batch's loss. ``assumed_cv`` is its ratio to the mean loss at batch size 1, None when sigma
    was estimated; ``sensitivity`` maps such a ratio to the tied steps under it. ``onset_step`` is the first checkpoint
    after the minimum that is not tied. ``by`` "loss" ranks by ``centred_loss``, over ``width`` micro-batches.
    """

    rows: tuple[Row, ...]
    window: int | None
    assumed_window: int | None
    micro_batches_per_step: int
    regime: Regime
    sigma: float
    sigma_source: SigmaSource
    assumed_cv: float | None
    flat_p: float | None
    sensitivity: dict[float, tuple[int, ...]]
    onset_step: int | None
    by: Measure = "avr_loss"
    width: int | None = None
    test_order: tuple[Trial, ...] = ()
    rise: Rise | None = None
    blocks: tuple[Block, ...] = ()
    diverged_step: int | None = None
    not_ranked: tuple[tuple[int, str], ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()
    source: str = ""
    verdict: str = ""
    notes: tuple[str, ...] = ()

    @property
    def minimum(self) -> Row:
        return self.rows[0]

    @property
    def by_step(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: row.step)

    @property
    def tied_steps(self) -> tuple[int, ...]:
        return tuple(row.step for row in self.by_step if row.tied)

    def value_of(self, row: Row) -> float:
        """What the row is ranked by."""
        return row.avr_loss if self.by == "avr_loss" or row.centred_loss is None else row.centred_loss

    @property
    def final_step(self) -> int:
        """The last checkpoint that is tried."""
        return max(trial.candidate.step for trial in self.test_order)

    @property
    def lag_steps(self) -> float:
        """How many steps older than the checkpoint the weights are, on average, that it is ranked by."""
        if self.by == "loss":
            return 0.0
        return (self.window or self.assumed_window or 0) / 2 / self.micro_batches_per_step

    @property
    def confidence(self) -> Literal["none", "weak"]:
        """Never more than weak: a training loss shows nothing about images that were not trained on."""
        return "weak" if self.regime != "cumulative" and not all(row.tied for row in self.rows) else "none"

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of ``rank --json``; files by name, numbers that are not finite as null."""
        return {
            "by": self.by,
            "window": self.window,
            "regime": self.regime,
            "ranking": [_row_dict(row) for row in self.rows],
            "minimum_step": self.minimum.step,
            "tied_steps": list(self.tied_steps),
            "onset_step": self.onset_step,
            "verdict": self.verdict,
            "test_order": [{**_place(item.candidate), "role": item.role} for item in self.test_order],
            "confidence": self.confidence,
            "sigma": _finite(self.sigma),
            "sigma_source": self.sigma_source,
            "assumed_cv": self.assumed_cv,
            "assumed_window": self.assumed_window,
            "micro_batches_per_step": self.micro_batches_per_step,
            "flat_p": _finite(self.flat_p),
            "tied_steps_by_cv": {f"{cv:g}": list(steps) for cv, steps in self.sensitivity.items()},
            "lag_steps": self.lag_steps,
            "instability": self.rise and asdict(self.rise),
            "block_means": [asdict(block) for block in self.blocks],
            "diverged_step": self.diverged_step,
            "not_ranked": [{"step": step, "reason": reason} for step, reason in self.not_ranked],
            "unreadable": [{"file": file.name, "reason": reason} for file, reason in self.unreadable],
            "source": self.source,
            "notes": list(self.notes),
        }


def _place(candidate: Candidate) -> dict[str, Any]:
    return {"step": candidate.step, "file": candidate.file and candidate.file.name}


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        **_place(row.candidate),
        "avr_loss": row.avr_loss,
        "standard_error": _finite(row.standard_error),
        "tied": row.tied,
        "tied_p": _finite(row.tied_p),
        "centred_loss": _finite(row.centred_loss),
        "also": [file.name for file in row.candidate.also],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
