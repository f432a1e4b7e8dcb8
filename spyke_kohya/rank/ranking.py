"""Rank checkpoints by avr_loss, and judge how little that proves. Values in, values out; the words are in ``verdict``.

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
from spyke_kohya.rank.result import Block, Candidate, Measure, Ranking, Rise, Role, Row, SigmaSource, Trial
from spyke_kohya.rank.ties import Noise
from spyke_kohya.rank.verdict import notes_on, verdict_on
from spyke_kohya.rank.windows import (
    FloatArray,
    IntArray,
    centred_bounds,
    micro_batches_at,
    overlap_cov,
    regime_of,
    trailing_bounds,
    window_means,
)

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
) -> Ranking:
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
    told = replace(
        judged,
        test_order=_test_order(judged, final),
        diverged_step=curve.diverged_step,
        not_ranked=tuple(not_ranked.items()),
        unreadable=tuple(unreadable),
    )
    return replace(told, verdict=verdict_on(told), notes=notes_on(told))


def noise_of(curve: LossCurve, level: float) -> Sigma:
    """The noise of one micro-batch's loss: estimated from per-step losses, or assumed as a multiple of ``level``.

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


def _judge(curve: LossCurve, ranked: list[Candidate], by: Measure) -> Ranking:
    steps = np.array([one.step for one in ranked], dtype=np.int64)
    averages = np.array([_average(curve, one.step) for one in ranked], dtype=np.float64)
    assumed = None if curve.window else _spacing(steps) * curve.micro_batches_per_step
    window = curve.window or assumed or 1
    ends = micro_batches_at(steps, window, curve.micro_batches_per_step)
    regime = regime_of(ends, window) if curve.window else "unknown"
    sigma = noise_of(curve, float(averages.mean()))
    width = window if regime != "cumulative" else _spacing(steps) * curve.micro_batches_per_step
    around = _around(curve, steps, width)
    centred = [None] * len(steps) if around is None else around.means.tolist()
    if by == "avr_loss":
        noise, values = Noise(overlap_cov(trailing_bounds(ends, window))), averages
    else:
        known = _known_around(around, curve)
        noise, values, regime = known.noise, known.means, "centred"
    p = noise.tied_p(values, sigma.value)
    tied = (p > TIED_ABOVE) | (regime == "cumulative")
    errors = sigma.value * np.sqrt(np.diag(noise.cov))
    order = np.lexsort((steps, values))
    lowest = steps[order[0]]
    rows = tuple(
        Row(place, ranked[i], float(averages[i]), float(errors[i]), bool(tied[i]), float(p[i]), centred[i])
        for place, i in enumerate(order, start=1)
    )
    return Ranking(
        rows=rows,
        window=curve.window,
        assumed_window=assumed,
        micro_batches_per_step=curve.micro_batches_per_step,
        regime=regime,
        sigma=sigma.value,
        sigma_source=sigma.source,
        assumed_cv=sigma.cv,
        flat_p=noise.flat_p(values, sigma.value),
        sensitivity=_sensitivity(noise, curve, steps, values) if sigma.cv else {},
        by=by,
        width=width if by == "loss" else None,
        onset_step=next((int(s) for s, held in zip(steps, tied, strict=True) if s > lowest and not held), None),
        rise=around.rise(steps, sigma.value) if around else None,
        blocks=_blocks(steps, ends, averages, sigma.value) if regime == "cumulative" else (),
        source=curve.source,
    )


def _spacing(steps: IntArray) -> int:
    """The median distance between checkpoints, or the only one's step."""
    return max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else int(steps[0])


def _sensitivity(noise: Noise, curve: LossCurve, steps: IntArray, averages: FloatArray) -> dict[float, tuple[int, ...]]:
    """The tied steps under every CV (at batch size 1) that is plausible."""
    level = abs(float(averages.mean())) / math.sqrt(curve.batch_size or 1)
    tied = {cv: noise.tied_p(averages, max(cv * level, 1e-300)) > TIED_ABOVE for cv in CVS_SHOWN}
    return {cv: tuple(int(step) for step in steps[held]) for cv, held in tied.items()}


@dataclass(frozen=True, eq=False)
class Around:
    """The mean (k,) of the per-step losses around each step; ``noise`` is in units of a micro-batch's variance."""

    means: FloatArray
    noise: Noise

    def rise(self, steps: IntArray, sigma: float) -> Rise | None:
        """The largest rise from an earlier to a later step, where chance doesn't explain it."""
        largest = self.noise.largest_rise(self.means, sigma)
        if largest is None or largest[2] >= RISE_BELOW:
            return None
        i, j, p = largest
        return Rise(int(steps[i]), int(steps[j]), p)


def _around(curve: LossCurve, steps: IntArray, width: int) -> Around | None:
    """Means over ``width`` micro-batches centred on each step, one-sided at the ends; None without per-step losses."""
    losses = curve.contiguous_losses()
    if losses is None:
        return None
    before = int(curve.steps[0]) - 1
    bounds = centred_bounds(steps, max(1, width // curve.micro_batches_per_step), before, curve.last_step)
    covariance = overlap_cov(bounds) / curve.micro_batches_per_step
    return Around(window_means(losses, before, bounds), Noise(covariance))


def _known_around(around: Around | None, curve: LossCurve) -> Around:
    if around is None:
        raise NothingToRank(
            "the loss of every single step is not on record here",
            where=curve.source,
            remedy="rank with --by avr_loss, or from the TensorBoard folder of the training",
        )
    return around


def _blocks(steps: IntArray, ends: IntArray, averages: FloatArray, sigma: float) -> tuple[Block, ...]:
    """The means between checkpoints that the cumulative means imply: (b A_b - a A_a) / (b - a)."""
    totals = np.concatenate(([0.0], ends * averages))
    counts = np.diff(ends, prepend=0)
    means, errors = np.diff(totals) / counts, sigma / np.sqrt(counts)
    after = [0, *steps[:-1].tolist()]
    found = zip(after, steps.tolist(), means.tolist(), errors.tolist(), strict=True)
    return tuple(Block(*block) for block in found)


def _test_order(ranking: Ranking, final: Candidate) -> tuple[Trial, ...]:
    """What to try by eye: lowest, next lowest, the final one to compare with, then the others that are tied.

    A cumulative mean ranks nothing: then the final checkpoint comes first, and the others from late to early.
    """
    if ranking.regime == "cumulative":
        latest = [row.candidate for row in reversed(ranking.by_step) if row.step != final.step]
        return (Trial(final, "candidate"), *(Trial(one, "early") for one in latest))
    lowest = ranking.minimum.step
    roles: list[Role] = ["candidate", "fallback"]
    items = [Trial(row.candidate, role) for row, role in zip(ranking.rows, roles, strict=False)]
    if final.step not in [item.candidate.step for item in items]:
        items.append(Trial(final, "baseline"))
    tried = {item.candidate.step for item in items}
    rest = [row for row in ranking.rows if row.tied and row.step not in tried]
    others = [Trial(row.candidate, "early" if row.step < lowest else "fallback") for row in rest]
    return (*items, *others)
