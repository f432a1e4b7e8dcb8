"""What a ranking is, as values and as JSON: what both kinds share, then each kind. It computes nothing new."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from spyke_kohya.rank.windows import Regime

FEWEST_GROUPS = 4
"""Independent pictures below which no set of tied checkpoints is given."""

Role = Literal["candidate", "fallback", "baseline", "early"]
SigmaSource = Literal["per-step losses", "assumed"]
Measure = Literal["avr_loss", "loss"]
"""What a training's losses are ranked by: the average that sd-scripts shows, or the mean around each step."""
Evidence = Literal["avr_loss", "loss", "heldout"]
Kind = Literal["heldout", "memorisation"]


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to rank: its step, its file if there is one, and other files saved at the same step.

    ``sha256`` is that of the file as it was recorded or measured, empty where it never was.
    """

    step: int
    file: Path | None = None
    also: tuple[Path, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Trial:
    """A checkpoint to try by eye, in the order of the list it stands in."""

    candidate: Candidate
    role: Role


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ranked checkpoint; ``tied`` says that it may truly be the lowest."""

    rank: int
    candidate: Candidate
    tied: bool

    @property
    def step(self) -> int:
        return self.candidate.step

    def to_dict(self) -> dict[str, Any]:
        file = self.candidate.file
        return {
            "rank": self.rank,
            **_place(self.candidate),
            "path": file and str(file),
            "sha256": self.candidate.sha256 or None,
            "tied": self.tied,
        }


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, kw_only=True)
class Ranking(ABC, Generic[R]):
    """Checkpoints from the lowest loss to the highest, how sure that is, and what to try; ``notes`` qualify it."""

    rows: tuple[R, ...]
    by: Evidence
    regime: Regime | Literal["heldout"]
    window: int | None = None
    test_order: tuple[Trial, ...] = ()
    source: str = ""
    verdict: str = ""
    notes: tuple[str, ...] = ()

    @property
    def minimum(self) -> R:
        return self.rows[0]

    @property
    def by_step(self) -> list[R]:
        return sorted(self.rows, key=lambda row: row.step)

    @property
    def tied_steps(self) -> tuple[int, ...]:
        return tuple(row.step for row in self.by_step if row.tied)

    @property
    def onset_step(self) -> int | None:
        """The first checkpoint after the lowest that is not tied with it."""
        return next((row.step for row in self.by_step if row.step > self.minimum.step and not row.tied), None)

    @property
    @abstractmethod
    def ranks_nothing(self) -> bool:
        """Whether these losses can't rank checkpoints at all, whatever their order."""

    @property
    @abstractmethod
    def confidence(self) -> Literal["none", "weak", "demonstrated"]:
        """How much the ranking proves."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON shape of ``rank --json``; files by name, numbers that are not finite as null."""
        return {
            "by": self.by,
            "window": self.window,
            "regime": self.regime,
            "ranking": [row.to_dict() for row in self.rows],
            "minimum_step": self.minimum.step,
            "tied_steps": list(self.tied_steps),
            "onset_step": self.onset_step,
            "verdict": self.verdict,
            "test_order": [{**_place(trial.candidate), "role": trial.role} for trial in self.test_order],
            "confidence": self.confidence,
            "source": self.source,
            "notes": list(self.notes),
        }


def trials_of(rows: Sequence[Row], second: Row | None, final: Candidate) -> tuple[Trial, ...]:
    """Return what to try: the lowest, ``second``, the final one to compare with, then the others that are tied."""
    lowest = rows[0].candidate
    trials = [Trial(lowest, "candidate"), *([Trial(second.candidate, "fallback")] if second else [])]
    if final.step not in [trial.candidate.step for trial in trials]:
        trials.append(Trial(final, "baseline"))
    tried = {trial.candidate.step for trial in trials}
    rest = [row.candidate for row in rows if row.tied and row.step not in tried]
    return (*trials, *(Trial(one, "early" if one.step < lowest.step else "fallback") for one in rest))


@dataclass(frozen=True, kw_only=True)
class TrainingRow(Row):
    """A checkpoint by training loss. ``centred_loss`` is the mean around its step, known with per-step losses alone."""

    avr_loss: float
    standard_error: float
    tied_p: float
    centred_loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "avr_loss": self.avr_loss,
            "standard_error": _finite(self.standard_error),
            "tied_p": _finite(self.tied_p),
            "centred_loss": _finite(self.centred_loss),
            "also": [file.name for file in self.candidate.also],
        }


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


@dataclass(frozen=True, kw_only=True)
class TrainingRanking(Ranking[TrainingRow]):
    """Checkpoints by training loss.

    ``window`` is in micro-batches; None when unknown, and then ``assumed_window`` was used. ``sigma`` is the standard
    deviation of one micro-batch's loss. ``assumed_cv`` is its ratio to the mean loss at batch size 1, None when sigma
    was estimated; ``sensitivity`` maps such a ratio to the tied steps under it. ``by`` "loss" ranks by
    ``centred_loss``, over ``width`` micro-batches.
    """

    by: Measure = "avr_loss"
    regime: Regime
    assumed_window: int | None
    micro_batches_per_step: int
    sigma: float
    sigma_source: SigmaSource
    assumed_cv: float | None
    flat_p: float | None
    sensitivity: dict[float, tuple[int, ...]]
    width: int | None = None
    rise: Rise | None = None
    blocks: tuple[Block, ...] = ()
    diverged_step: int | None = None
    not_ranked: tuple[tuple[int, str], ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()

    def value_of(self, row: TrainingRow) -> float:
        """Return what the row is ranked by."""
        return row.avr_loss if self.by == "avr_loss" or row.centred_loss is None else row.centred_loss

    @property
    def ranks_nothing(self) -> bool:
        return self.regime == "cumulative"

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
        return "weak" if not self.ranks_nothing and not all(row.tied for row in self.rows) else "none"

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
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
        }


@dataclass(frozen=True, kw_only=True)
class HeldoutRow(Row):
    """A checkpoint by held-out loss. ``ratio`` is its mean loss over the base's.

    ``standard_error`` is the ratio's over groups of pictures, None for a single one; ``above_best`` is the ratio minus
    the lowest, with its own paired standard error. ``ratio_by_timestep`` is the mean of the ratios at each timestep,
    which does not drown the high ones, whose losses are small. ``gap`` is how much more the loss fell on trained
    pictures than on held-out ones (in loss), ``auc`` how well that fall tells the two apart (0.5: not at all). ``norm``
    is the size of the LoRA's change, ``avr_loss`` what training showed.
    """

    loss: float
    ratio: float
    standard_error: float | None
    above_best: float
    above_best_error: float | None
    tied_p: float | None
    ratio_by_timestep: float
    gap: float | None = None
    auc: float | None = None
    norm: float | None = None
    avr_loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "heldout_loss": self.loss,
            "ratio_to_base": self.ratio,
            "weight_norm": self.norm,
            **{name: getattr(self, name) for name in ("avr_loss", "standard_error", "tied_p", "ratio_by_timestep")},
            **{name: getattr(self, name) for name in ("above_best", "above_best_error", "gap", "auc")},
        }


@dataclass(frozen=True, kw_only=True)
class HeldoutRanking(Ranking[HeldoutRow]):
    """Checkpoints by the loss that ``evaluate`` measured.

    ``kind`` is "memorisation" where only trained pictures were measured: then nothing is ranked. ``base_tied`` says
    that the base without a LoRA may be as good as the best. ``noise_floor`` is the largest relative difference between
    the two measurements of the base, None where there is one. ``faults`` are sentences about what can't be read.
    """

    by: Literal["heldout"] = "heldout"
    regime: Literal["heldout"] = "heldout"
    kind: Kind
    pictures: int
    groups: int
    trained_pictures: int
    timesteps: tuple[int, ...]
    base_loss: float
    base_tied: bool
    noise_floor: float | None
    best_by_timestep: int
    unfinished: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    blown_up: tuple[int, ...] = ()

    @property
    def ranks_nothing(self) -> bool:
        return self.kind == "memorisation"

    @property
    def has_set(self) -> bool:
        """Whether there are pictures enough to tell checkpoints apart at all."""
        return not self.ranks_nothing and self.groups >= FEWEST_GROUPS

    @property
    def has_winner(self) -> bool:
        return self.has_set and len(self.rows) > 1 and len(self.tied_steps) == 1 and not self.base_tied

    @property
    def confidence(self) -> Literal["none", "demonstrated"]:
        return "demonstrated" if self.has_winner else "none"

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "best_step_by_timestep_ratios": self.best_by_timestep,
            **{name: getattr(self, name) for name in ("kind", "pictures", "groups", "trained_pictures")},
            **{name: getattr(self, name) for name in ("base_loss", "base_tied", "noise_floor")},
            **{name: list(getattr(self, name)) for name in ("timesteps", "blown_up", "unfinished", "broken")},
            "overwritten": list(self.overwritten),
        }


def _place(candidate: Candidate) -> dict[str, Any]:
    return {"step": candidate.step, "file": candidate.file and candidate.file.name}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
