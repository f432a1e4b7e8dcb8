"""Judge checkpoints by their loss on pictures that were not trained on, and say how much that proves.

A checkpoint's loss is taken as a ratio to the base model's on the same pictures with the same noise. Pictures, not
timesteps or noise, are what there is too little of: copies of one picture count once, and below 4 there is no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spyke_kohya.errors import NothingToRank
from spyke_kohya.rank.heldout_file import Evaluation, Measured
from spyke_kohya.rank.paired import PairedRows
from spyke_kohya.rank.ranking import TIED_ABOVE
from spyke_kohya.rank.result import FEWEST_GROUPS, HeldoutRanking, HeldoutRow, Kind, trials_of
from spyke_kohya.rank.windows import FloatArray
from spyke_kohya.rank.words import with_heldout_words


@dataclass(frozen=True)
class Context:
    """What stands beside the losses: by step, the norm of each checkpoint and the avr_loss of training.

    ``faults`` are sentences about what can't be read of it.
    """

    norms: Mapping[int, float]
    averages: Mapping[int, float]
    blown_up: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()


def judge_heldout(evaluation: Evaluation, context: Context | None = None) -> HeldoutRanking:
    """Rank the checkpoints of an evaluation. Raises NothingToRank when not one of them was measured whole."""
    if not evaluation.candidates:
        raise NothingToRank(
            "no checkpoint was measured whole and is still the file that was measured",
            where=evaluation.source,
            remedy="go on with it: spyke-kohya evaluate RUN",
        )
    measured = evaluation.heldout or evaluation.trained
    assert measured is not None
    kind: Kind = "heldout" if evaluation.heldout else "memorisation"
    return with_heldout_words(_ranked(evaluation, measured, kind, context or Context({}, {})))


def _ranked(evaluation: Evaluation, measured: Measured, kind: Kind, context: Context) -> HeldoutRanking:
    ratios = _with_base(group_ratios(measured))
    enough = kind == "heldout" and measured.group_count >= FEWEST_GROUPS
    p = PairedRows(ratios).tied_p() if enough else None
    rows = _rows(evaluation, measured, ratios, p, context)
    by_timestep = min(rows, key=lambda row: (row.ratio_by_timestep, row.step)).step
    return HeldoutRanking(
        kind=kind,
        rows=rows,
        pictures=len(measured.groups),
        groups=measured.group_count,
        trained_pictures=len(evaluation.trained.groups) if evaluation.trained else 0,
        timesteps=evaluation.timesteps,
        base_loss=float(measured.base.mean()),
        base_tied=bool(p is not None and p[0] > TIED_ABOVE),
        noise_floor=_noise_floor(measured),
        best_by_timestep=by_timestep,
        test_order=()
        if kind == "memorisation"
        else trials_of(
            rows, next((row for row in rows[1:] if row.tied), None), max(rows, key=lambda row: row.step).candidate
        ),
        unfinished=evaluation.unfinished,
        broken=evaluation.broken,
        overwritten=evaluation.overwritten,
        faults=(*_damaged(evaluation), *context.faults),
        blown_up=context.blown_up,
        source=evaluation.source,
    )


def group_ratios(measured: Measured) -> FloatArray:
    """D (groups, checkpoints): each picture's mean loss over the base's, then the mean over a group's pictures."""
    ratios = measured.losses.mean(axis=2) / measured.base.mean(axis=1)
    return _by_group(ratios.T, measured.groups)


def _by_group(values: FloatArray, groups: Sequence[int]) -> FloatArray:
    """Means (groups, ...) of values (pictures, ...)."""
    members = np.asarray(groups)
    return np.array([values[members == group].mean(axis=0) for group in range(members.max() + 1)])


def _with_base(ratios: FloatArray) -> FloatArray:
    """Add the base as the first column: its loss over its own is 1 on every picture."""
    return np.hstack([np.ones((len(ratios), 1)), ratios])


def _rows(
    evaluation: Evaluation, measured: Measured, ratios: FloatArray, p: FloatArray | None, context: Context
) -> tuple[HeldoutRow, ...]:
    means = ratios.mean(axis=0)[1:]
    order = np.lexsort((np.asarray(evaluation.steps), means))
    several = len(ratios) > 1
    paired = PairedRows(ratios)
    above, above_error = paired.difference_from(int(order[0]) + 1) if several else (ratios[0] - means.min(), None)
    by_timestep = _by_group(_ratios_by_timestep(measured).T, measured.groups).mean(axis=0)
    gaps, aucs = _members_against_heldout(evaluation)
    return tuple(
        HeldoutRow(
            rank=place,
            candidate=evaluation.candidates[i],
            loss=float(measured.losses[i].mean()),
            ratio=float(means[i]),
            standard_error=float(paired.standard_errors[i + 1]) if several else None,
            above_best=float(above[i + 1]),
            above_best_error=None if above_error is None else float(above_error[i + 1]),
            tied=p is None or bool(p[i + 1] > TIED_ABOVE),
            tied_p=None if p is None else float(p[i + 1]),
            ratio_by_timestep=float(by_timestep[i]),
            gap=None if gaps is None else float(gaps[i]),
            auc=None if aucs is None else float(aucs[i]),
            norm=context.norms.get(evaluation.steps[i]),
            avr_loss=context.averages.get(evaluation.steps[i]),
        )
        for place, i in enumerate(order, start=1)
    )


def _ratios_by_timestep(measured: Measured) -> FloatArray:
    """Return the mean over cells (timesteps and noises) of each loss over the base's: (checkpoints, pictures)."""
    return np.asarray((measured.losses / measured.base).mean(axis=2), dtype=np.float64)


def _members_against_heldout(evaluation: Evaluation) -> tuple[FloatArray | None, FloatArray | None]:
    """Return the gap and the AUC (checkpoints,) between trained and held-out pictures, where both were measured."""
    if evaluation.heldout is None or evaluation.trained is None:
        return None, None
    members, others = (_changes(measured) for measured in (evaluation.trained, evaluation.heldout))
    gaps = members.mean(axis=0) - others.mean(axis=0)
    return gaps, np.array([auc_below(members[:, i], others[:, i]) for i in range(len(gaps))])


def _changes(measured: Measured) -> FloatArray:
    """How each group's mean loss differs from the base's: (groups, checkpoints)."""
    changes = measured.losses.mean(axis=2) - measured.base.mean(axis=1)
    return _by_group(changes.T, measured.groups)


def auc_below(members: FloatArray, others: FloatArray) -> float:
    """P that a member's value is below another's, ties counting half: 0.5 tells nothing, 1 tells all."""
    pairs = members[:, None] - others[None]
    return float(((pairs < 0) + 0.5 * (pairs == 0)).mean())


def _noise_floor(measured: Measured) -> float | None:
    if measured.base_again is None:
        return None
    return float(np.max(np.abs(measured.base_again - measured.base) / measured.base))


def _damaged(evaluation: Evaluation) -> list[str]:
    where = f"{evaluation.damaged} of {evaluation.source} can't be read"
    return [f"Not counted: {where}. `spyke-kohya evaluate` measures them again."] if evaluation.damaged else []
