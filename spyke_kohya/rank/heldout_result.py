"""What an evaluation showed, as values and as JSON. It computes nothing that isn't already in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from spyke_kohya.rank.result import Candidate, Trial

FEWEST_GROUPS = 4
"""Independent pictures below which no set of tied checkpoints is given."""

Kind = Literal["heldout", "memorisation"]


@dataclass(frozen=True)
class HeldoutRow:
    """One checkpoint. ``ratio`` is its mean loss over the base's, and 1 - ``ratio`` what it predicts better.

    ``standard_error`` is the ratio's over groups of pictures, None for a single one; ``above_best`` is the ratio minus
    the lowest, with its own paired standard error. ``ratio_by_timestep`` is the mean of the ratios at each timestep,
    which does not drown the high ones, whose losses are small. ``gap`` is how much more the loss fell on trained
    pictures than on held-out ones (in loss), ``auc`` how well that fall tells the two apart (0.5: not at all). ``norm``
    is the size of the LoRA's change, ``avr_loss`` what training showed.
    """

    rank: int
    candidate: Candidate
    loss: float
    ratio: float
    standard_error: float | None
    above_best: float
    above_best_error: float | None
    tied: bool
    tied_p: float | None
    ratio_by_timestep: float
    gap: float | None = None
    auc: float | None = None
    norm: float | None = None
    avr_loss: float | None = None

    @property
    def step(self) -> int:
        return self.candidate.step


@dataclass(frozen=True)
class HeldoutRanking:
    """What the evaluation showed; ``rows`` are best first.

    ``kind`` is "memorisation" where only trained pictures were measured: then nothing is ranked. ``base_tied`` says
    that the base without a LoRA may be as good as the best. ``noise_floor`` is the largest relative difference between
    the two measurements of the base, None where there is one.
    """

    kind: Kind
    rows: tuple[HeldoutRow, ...]
    pictures: int
    groups: int
    trained_pictures: int
    timesteps: tuple[int, ...]
    base_loss: float
    base_tied: bool
    noise_floor: float | None
    best_by_timestep: int
    test_order: tuple[Trial, ...] = ()
    unfinished: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    blown_up: tuple[int, ...] = ()
    source: str = ""
    verdict: str = ""
    notes: tuple[str, ...] = ()

    @property
    def minimum(self) -> HeldoutRow:
        return self.rows[0]

    @property
    def by_step(self) -> list[HeldoutRow]:
        return sorted(self.rows, key=lambda row: row.step)

    @property
    def tied_steps(self) -> tuple[int, ...]:
        return tuple(row.step for row in self.by_step if row.tied)

    @property
    def has_set(self) -> bool:
        """Whether there are pictures enough to tell checkpoints apart at all."""
        return self.kind == "heldout" and self.groups >= FEWEST_GROUPS

    @property
    def has_winner(self) -> bool:
        return self.has_set and len(self.rows) > 1 and len(self.tied_steps) == 1 and not self.base_tied

    @property
    def onset_step(self) -> int | None:
        """The first checkpoint after the lowest that is demonstrably worse."""
        worse = (row.step for row in self.by_step if row.step > self.minimum.step and not row.tied)
        return next(worse, None) if self.has_set else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of ``rank --by heldout --json``: that of ``rank``, and what was measured beside."""
        return {
            "by": "heldout",
            "kind": self.kind,
            "window": None,
            "regime": "heldout",
            "ranking": [_row_dict(row) for row in self.rows],
            "minimum_step": self.minimum.step,
            "tied_steps": list(self.tied_steps),
            "onset_step": self.onset_step,
            "verdict": self.verdict,
            "test_order": [
                {"step": t.candidate.step, "file": t.candidate.file and t.candidate.file.name, "role": t.role}
                for t in self.test_order
            ],
            "confidence": "demonstrated" if self.has_winner else "none",
            "pictures": self.pictures,
            "groups": self.groups,
            "trained_pictures": self.trained_pictures,
            "timesteps": list(self.timesteps),
            "base_loss": self.base_loss,
            "base_tied": self.base_tied,
            "noise_floor": self.noise_floor,
            "best_step_by_timestep_ratios": self.best_by_timestep,
            "blown_up": list(self.blown_up),
            "unfinished": list(self.unfinished),
            "broken": list(self.broken),
            "source": self.source,
            "notes": list(self.notes),
        }


def _row_dict(row: HeldoutRow) -> dict[str, Any]:
    file = row.candidate.file
    return {
        "rank": row.rank,
        "step": row.step,
        "file": file and file.name,
        "avr_loss": row.avr_loss,
        "standard_error": row.standard_error,
        "tied": row.tied,
        "tied_p": row.tied_p,
        "heldout_loss": row.loss,
        "ratio_to_base": row.ratio,
        "above_best": row.above_best,
        "above_best_error": row.above_best_error,
        "ratio_by_timestep": row.ratio_by_timestep,
        "gap": row.gap,
        "auc": row.auc,
        "weight_norm": row.norm,
    }
