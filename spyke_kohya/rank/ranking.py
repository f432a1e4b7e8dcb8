"""Rank checkpoints by avr_loss, and judge how little that proves. Values in, values out; the words are in ``words``.

A training loss is mostly the luck of its random timesteps: one loss has a standard deviation of 1.24 times its mean, so
avr_loss over 460 batches is known to 6 % while real effects are 1 to 3 %. Neighbouring checkpoints share most of
their window, so differences are judged with the exact covariance of the windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spyke_kohya.errors import NothingToRank, UsageError
from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.result import (
    Block,
    Candidate,
    Measure,
    Rise,
    SigmaSource,
    TrainingRanking,
    TrainingRow,
    Trial,
    trials_of,
)
from spyke_kohya.rank.ties import Noise
from spyke_kohya.rank.windows import (
    FloatArray,
    IntArray,
    Regime,
    centred_bounds,
    micro_batches_at,
    overlap_cov,
    regime_of,
    trailing_bounds,
    window_means,
)
from spyke_kohya.rank.words import with_training_words

TIED_ABOVE = 0.10  # keeps a true minimiser in 90 % of trainings
RISE_BELOW = 0.05
CV = 1.24  # of one SD1.5 loss at batch size 1, as measured on 68 public trainings (1.14 to 1.39)
CV_MIN_SNR = 0.93  # with min_snr_gamma 5
CVS_SHOWN = (0.9, 1.0, 1.1, 1.24, 1.4)
FEWEST_LOSSES = 30  # from which the noise can be estimated
MOST_CANDIDATES = 400


@dataclass(frozen=True)
class Sigma:
    """Standard deviation of one micro-batch's loss; ``cv`` (at batch size 1) is None where nothing was assumed."""

    value: float
    source: SigmaSource
    cv: float | None


def rank(
    curve: LossCurve,
    candidates: Iterable[Candidate],
    *,
    unreadable: Sequence[tuple[Path, str]] = (),
    by: Measure = "avr_loss",
) -> TrainingRanking:
    """Rank checkpoints by the avr_loss at exactly their step, lowest first; of equal ones the earlier.

    ``by`` "loss" ranks by the mean of the per-step losses around each step, which does not lag behind the weights.
    Without a window the median save spacing stands in for it: shorter than the real one, it overstates the noise.
    Raises NothingToRank when no checkpoint has a loss, UsageError when there are more than 400.
    """
    listed = sorted(candidates, key=lambda one: one.step)
    _check_count(len(listed))
    not_ranked = {one.step: why for one in listed if (why := _why_not(curve, one.step))}
    ranked = [one for one in listed if one.step not in not_ranked]
    if not ranked:
        raise _nothing(curve, not_ranked)
    judged = _judge(curve.before_divergence(), ranked, by)
    final = [one for one in listed if curve.diverged_step is None or one.step < curve.diverged_step][-1]
    return with_training_words(
        replace(
            judged,
            test_order=_test_order(judged, final),
            diverged_step=curve.diverged_step,
            not_ranked=tuple(not_ranked.items()),
            unreadable=tuple(unreadable),
        )
    )


def noise_of(curve: LossCurve, level: float) -> Sigma:
    """Return the noise of one micro-batch's loss, estimated from per-step losses or a multiple of ``level``.

    Differences of neighbours are used, so a slow trend does not count as noise.
    """
    losses = curve.loss if curve.loss is not None else np.empty(0)
    losses = losses[np.isfinite(losses)]
    floor = max(1e-9 * abs(level), 1e-300)
    if len(losses) >= FEWEST_LOSSES:
        spread = float(np.std(np.diff(losses), ddof=1)) / math.sqrt(2)
        return Sigma(max(spread * math.sqrt(curve.micro_batches_per_step), floor), "per-step losses", None)
    min_snr = curve.min_snr_gamma is not None and curve.min_snr_gamma <= 5
    cv = CV_MIN_SNR if min_snr else CV
    return Sigma(max(cv * abs(level) / math.sqrt(curve.batch_size or 1), floor), "assumed", cv)


def _check_count(count: int) -> None:
    if count > MOST_CANDIDATES:
        raise UsageError(
            f"{count} checkpoints to compare; {MOST_CANDIDATES} is the most",
            remedy="name the spacing of the checkpoints with --every N",
        )


def _nothing(curve: LossCurve, not_ranked: dict[int, str]) -> NothingToRank:
    if not not_ranked:
        return NothingToRank("no checkpoint to rank", where=curve.source)
    reasons = "; ".join(f"step {step}: {why}" for step, why in list(not_ranked.items())[:5])
    return NothingToRank(
        f"none of the {len(not_ranked)} checkpoints has a loss to be ranked by: {reasons}",
        where=curve.source,
        remedy="rank with the losses of the training that wrote these checkpoints: --losses FILE",
    )


def _why_not(curve: LossCurve, step: int) -> str:
    if curve.diverged_step is not None and step >= curve.diverged_step:
        return f"training had diverged (its loss is not a number from step {curve.diverged_step} on)"
    return "" if _average(curve, step) is not None else "no avr_loss is recorded at this step"


def _average(curve: LossCurve, step: int) -> float | None:
    """avr_loss at this step as recorded, or else as the same mean of the recorded per-step losses."""
    recorded = curve.average_at(step)
    known = curve.before_divergence()
    losses = known.contiguous_losses()
    if recorded is not None or losses is None or curve.window is None or not 1 <= step <= known.last_step:
        return recorded
    before = int(known.steps[0]) - 1
    bounds = trailing_bounds([step], -(-curve.window // curve.micro_batches_per_step))
    return float(window_means(losses, before, bounds)[0]) if bounds[0][0] >= before else None


@dataclass(frozen=True, eq=False)
class Values:
    """What checkpoints are ranked by: a mean (k,) each; ``noise`` is in units of a micro-batch's variance."""

    means: FloatArray
    noise: Noise
    regime: Regime

    def rise(self, steps: IntArray, sigma: float) -> Rise | None:
        """Return the largest rise from an earlier to a later step, where chance doesn't explain it."""
        largest = self.noise.largest_rise(self.means, sigma)
        if largest is None or largest[2] >= RISE_BELOW:
            return None
        i, j, p = largest
        return Rise(int(steps[i]), int(steps[j]), p)


def _judge(curve: LossCurve, ranked: list[Candidate], by: Measure) -> TrainingRanking:
    steps = np.array([one.step for one in ranked], dtype=np.int64)
    averages = np.array([_average(curve, one.step) for one in ranked], dtype=np.float64)
    spacing = _spacing(steps) * curve.micro_batches_per_step
    window = curve.window or spacing or 1
    ends = micro_batches_at(steps, window, curve.micro_batches_per_step)
    regime = regime_of(ends, window) if curve.window else "unknown"
    width = spacing if regime == "cumulative" else window
    around = _around(curve, steps, width)
    if by == "avr_loss":
        values = Values(averages, Noise(overlap_cov(trailing_bounds(ends, window))), regime)
    else:
        values = _known(around, curve)
    sigma = noise_of(curve, float(averages.mean()))
    return TrainingRanking(
        rows=_rows(ranked, averages, values, around, sigma),
        window=curve.window,
        assumed_window=None if curve.window else spacing,
        micro_batches_per_step=curve.micro_batches_per_step,
        regime=values.regime,
        sigma=sigma.value,
        sigma_source=sigma.source,
        assumed_cv=sigma.cv,
        flat_p=values.noise.flat_p(values.means, sigma.value),
        sensitivity=_sensitivity(values, curve, steps) if sigma.cv else {},
        by=by,
        width=width if by == "loss" else None,
        rise=around.rise(steps, sigma.value) if around else None,
        blocks=_blocks(steps, ends, averages, sigma.value) if values.regime == "cumulative" else (),
        source=curve.source,
    )


def _rows(
    ranked: list[Candidate], averages: FloatArray, values: Values, around: Values | None, sigma: Sigma
) -> tuple[TrainingRow, ...]:
    """Return the rows, lowest first; of equal ones the earlier."""
    p = values.noise.tied_p(values.means, sigma.value)
    errors = sigma.value * np.sqrt(np.diag(values.noise.cov))
    order = np.lexsort((np.array([one.step for one in ranked]), values.means))
    return tuple(
        TrainingRow(
            rank=place,
            candidate=ranked[i],
            tied=bool(p[i] > TIED_ABOVE) or values.regime == "cumulative",
            avr_loss=float(averages[i]),
            standard_error=float(errors[i]),
            tied_p=float(p[i]),
            centred_loss=float(around.means[i]) if around else None,
        )
        for place, i in enumerate(order, start=1)
    )


def _spacing(steps: IntArray) -> int:
    """Return the median distance between checkpoints, or the only one's step."""
    return max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else int(steps[0])


def _sensitivity(values: Values, curve: LossCurve, steps: IntArray) -> dict[float, tuple[int, ...]]:
    """Return the tied steps under every CV (at batch size 1) that is plausible."""
    level = abs(float(values.means.mean())) / math.sqrt(curve.batch_size or 1)
    tied = {cv: values.noise.tied_p(values.means, max(cv * level, 1e-300)) > TIED_ABOVE for cv in CVS_SHOWN}
    return {cv: tuple(int(step) for step in steps[held]) for cv, held in tied.items()}


def _around(curve: LossCurve, steps: IntArray, width: int) -> Values | None:
    """Means over ``width`` micro-batches centred on each step, one-sided at the ends; None without per-step losses."""
    losses = curve.contiguous_losses()
    if losses is None:
        return None
    before = int(curve.steps[0]) - 1
    bounds = centred_bounds(steps, max(1, width // curve.micro_batches_per_step), before, curve.last_step)
    covariance = overlap_cov(bounds) / curve.micro_batches_per_step
    return Values(window_means(losses, before, bounds), Noise(covariance), "centred")


def _known(around: Values | None, curve: LossCurve) -> Values:
    if around is None:
        raise NothingToRank(
            "the loss of every single step is not on record here",
            where=curve.source,
            remedy="rank with --by avr_loss, or from the TensorBoard folder of the training",
        )
    return around


def _blocks(steps: IntArray, ends: IntArray, averages: FloatArray, sigma: float) -> tuple[Block, ...]:
    """Return the means between checkpoints that the cumulative means imply: (b A_b - a A_a) / (b - a)."""
    totals = np.concatenate(([0.0], ends * averages))
    counts = np.diff(ends, prepend=0)
    means, errors = np.diff(totals) / counts, sigma / np.sqrt(counts)
    after = [0, *steps[:-1].tolist()]
    found = zip(after, steps.tolist(), means.tolist(), errors.tolist(), strict=True)
    return tuple(Block(*block) for block in found)


def _test_order(ranking: TrainingRanking, final: Candidate) -> tuple[Trial, ...]:
    """Order by the U-curve rule: lowest, next lowest, the final one to compare with, then the others that are tied.

    A cumulative mean ranks nothing: then the final checkpoint comes first, and the others from late to early.
    """
    if ranking.ranks_nothing:
        latest = [row.candidate for row in reversed(ranking.by_step) if row.step != final.step]
        return (Trial(final, "candidate"), *(Trial(one, "early") for one in latest))
    return trials_of(ranking.rows, next(iter(ranking.rows[1:]), None), final)
