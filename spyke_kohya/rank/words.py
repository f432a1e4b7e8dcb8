"""A ranking in words: one sentence that is never stronger than the evidence, and the notes that qualify it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from spyke_kohya.rank.result import FEWEST_GROUPS, HeldoutRanking, Ranking, TrainingRanking

CANNOT = "training loss cannot show generalisation"
NOT_LOOKS = "predicts unseen pictures best, which is not the same as looks best"
_BESIDE = "Look at the base model without a LoRA beside them, with the same prompts and seeds"
_NOISY = 1e-3

AnyRanking = TypeVar("AnyRanking", bound=Ranking[Any])


def with_training_words(ranking: TrainingRanking) -> TrainingRanking:
    """Return the ranking with its sentence and notes, the most important first.

    A training loss never demonstrates a winner; "weak" is the most it can be.
    """
    sentence = f"{_finding(ranking)}; {CANNOT}."
    if ranking.window is None and ranking.by == "avr_loss" and len(ranking.rows) > 1:
        sentence = f"with the window of avr_loss unknown ({ranking.assumed_window} batches assumed), {sentence}"
    if ranking.diverged_step is not None:
        sentence = f"training diverged at step {ranking.diverged_step} (loss is not a number); before that, {sentence}"
    return _in_words(
        ranking,
        sentence,
        [
            *_about_files(ranking),
            _about_divergence(ranking),
            _about_averages(ranking),
            _about_noise(ranking),
            _about_flatness(ranking),
            _about_rise(ranking),
            _about_order(ranking),
        ],
    )


def with_heldout_words(ranking: HeldoutRanking) -> HeldoutRanking:
    """Return the ranking with its sentence and notes, the most important first."""
    return _in_words(
        ranking,
        f"{_heldout_finding(ranking)}.",
        [
            *ranking.faults,
            *(f"Not ranked: {name}, it is not measured whole yet." for name in ranking.unfinished),
            *(f"Not ranked: {name}, its loss is not a number." for name in ranking.broken),
            *(f"Not ranked: {name}, it is not the file that was measured." for name in ranking.overwritten),
            _about_floor(ranking),
            _about_pictures(ranking),
            _about_timesteps(ranking),
            _about_memory(ranking),
            _about_norms(ranking),
            "" if ranking.ranks_nothing else f"{_BESIDE}: spyke-kohya samples RUN.",
        ],
    )


def listed(steps: Iterable[int]) -> str:
    """Return steps as in "1000, 1200 and 1400"."""
    words = [str(step) for step in steps]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _in_words(ranking: AnyRanking, sentence: str, notes: Iterable[str]) -> AnyRanking:
    verdict = sentence[0].upper() + sentence[1:]
    return replace(ranking, verdict=verdict, notes=tuple(note for note in notes if note))


def _finding(ranking: TrainingRanking) -> str:
    best, count, tied = ranking.minimum, len(ranking.rows), ranking.tied_steps
    name = "avr_loss" if ranking.by == "avr_loss" else "mean loss around it"
    lowest = f"step {best.step} has the lowest {name} ({ranking.value_of(best):.4g})"
    if count == 1:
        only = f"step {best.step} is the only checkpoint to rank ({name} {ranking.value_of(best):.4g})"
        return f"{only}, no demonstrated winner"
    if ranking.ranks_nothing:
        return (
            f"avr_loss is a mean over all steps since the first (its window of {ranking.window} batches never filled), "
            "and such a cumulative mean cannot rank checkpoints: no demonstrated winner"
        )
    if len(tied) == count:
        return f"{lowest}, but all {count} checkpoints are tied within the noise: no demonstrated winner"
    if len(tied) > 1:
        return f"{lowest}, but {_those(ranking)} are tied within the noise: weak evidence, no demonstrated winner"
    return f"{lowest}, below all others by more than the noise: weak evidence, no demonstrated winner"


def _those(ranking: TrainingRanking) -> str:
    """Return the tied steps, or the few that aren't when that is shorter."""
    others = [row.step for row in ranking.by_step if not row.tied]
    tied = ranking.tied_steps
    return f"all except {_steps(others)}" if 2 * len(others) < len(tied) else f"steps {listed(tied)}"


def _about_files(ranking: TrainingRanking) -> list[str]:
    unread = [f"Not ranked: {file.name}, {reason}." for file, reason in ranking.unreadable]
    return [*unread, *(f"Not ranked: step {step}, {reason}." for step, reason in ranking.not_ranked)]


def _about_divergence(ranking: TrainingRanking) -> str:
    latest = ranking.by_step[-1].step
    if ranking.diverged_step is None or latest != ranking.diverged_step - 1:
        return ""
    return f"The weights of step {latest} gave the first loss that is not a number: they may be broken."


def _about_averages(ranking: TrainingRanking) -> str:
    if ranking.regime == "centred":
        return (
            f"Each value is the mean of {ranking.width} losses around its step, of those before it alone at the final "
            "one: it does not lag behind the weights."
        )
    if ranking.regime == "unknown":
        return (
            f"The number of batches per epoch is not on record; {ranking.assumed_window}, the save spacing, was taken, "
            "which overstates the noise where an epoch is longer. Name the real one with --window."
        )
    if ranking.ranks_nothing:
        return "Between two checkpoints the mean loss is known: see the block means."
    if ranking.regime == "mixed":
        first = [
            row.step for row in ranking.by_step if row.step * ranking.micro_batches_per_step < (ranking.window or 0)
        ]
        return f"At {_steps(first)} avr_loss is a mean over all steps since the first, which includes the start."
    lag = f"avr_loss describes weights that are on average {ranking.lag_steps:.0f} steps older than the checkpoint."
    return lag + (" The centred loss does not lag." if ranking.minimum.centred_loss is not None else "")


def _about_noise(ranking: TrainingRanking) -> str:
    if ranking.assumed_cv is None or len(ranking.rows) < 2 or ranking.ranks_nothing:
        return ""
    low, high = min(ranking.sensitivity), max(ranking.sensitivity)
    return (
        f"The noise is assumed (at batch size 1 one loss varies by {ranking.assumed_cv:g} times its mean). Were it "
        f"{low:g}, {_tied(ranking.sensitivity[low])}; were it {high:g}, {_tied(ranking.sensitivity[high])}. "
        "Per-step losses (loss/current in TensorBoard) would settle it."
    )


def _about_flatness(ranking: TrainingRanking) -> str:
    if ranking.flat_p is None or ranking.ranks_nothing:
        return ""
    if ranking.flat_p < 0.05:
        return f"The differences are larger than a flat loss would give (p = {ranking.flat_p:.2g})."
    return f"A loss that never changed would give differences as large as these with p = {ranking.flat_p:.2f}."


def _about_rise(ranking: TrainingRanking) -> str:
    if ranking.rise is None:
        return ""
    rise = ranking.rise
    return (
        f"The loss around step {rise.to_step} is above that around step {rise.from_step} (p = {_p(rise.p)}): "
        "training may have become unstable."
    )


def _about_order(ranking: TrainingRanking) -> str:
    beside = f"{_BESIDE}."
    if ranking.ranks_nothing or len(ranking.rows) < 2:
        return beside
    final = next(trial for trial in ranking.test_order if trial.candidate.step == ranking.final_step)
    same = (
        ""
        if final.role == "baseline"
        else f" The final checkpoint is the {final.role} itself, so no baseline is named."
    )
    return (
        f"The test order is the U-curve rule (lowest, next lowest, final).{same} On 57 public trainings with "
        f"a held-out loss its choice was worse than the average checkpoint in 91 %. {beside}"
    )


def _steps(steps: Sequence[int]) -> str:
    return f"step{'s' * (len(steps) > 1)} {listed(steps)}"


def _tied(steps: tuple[int, ...]) -> str:
    return f"{_steps(steps)} would be tied" if len(steps) > 1 else f"step {steps[0]} would stand alone"


def _p(p: float) -> str:
    return f"{p:.2g}" if p > 0 else "less than 0.001"


def _heldout_finding(ranking: HeldoutRanking) -> str:
    best, count, tied = ranking.minimum, len(ranking.rows), ranking.tied_steps
    if ranking.ranks_nothing:
        return (
            f"a memorisation curve: measured on {_pictures(ranking.pictures)} that were trained on, where a lower loss "
            "shows learning by heart as well; no demonstrated winner"
        )
    lowest = f"step {best.step} has the lowest loss on {_pictures(ranking.pictures)} that were not trained on"
    lowest += f" ({_percent(best.ratio)} the base model)"
    if not ranking.has_set:
        need = f"fewer than {FEWEST_GROUPS} different pictures can't tell checkpoints apart"
        return f"{lowest}, but {need}: no demonstrated winner"
    if ranking.base_tied:
        return f"{lowest}, but the base model without a LoRA is tied with it: no demonstrated winner"
    if count == 1:
        return f"{lowest}; it is the only checkpoint: no demonstrated winner"
    if len(tied) == count:
        return f"{lowest}, but all {count} checkpoints are tied: no demonstrated winner"
    if len(tied) > 1:
        return f"{lowest}, but steps {listed(tied)} are tied: no demonstrated winner among them"
    return f"{lowest}, below all others by more than chance: it {NOT_LOOKS}"


def _about_floor(ranking: HeldoutRanking) -> str:
    if ranking.noise_floor is None:
        return "The base was measured once only, so the noise of the device is not known yet."
    if ranking.noise_floor < _NOISY:
        return ""
    return (
        f"The base measured twice differs by up to {ranking.noise_floor:.2%}: this device does not repeat itself, and "
        "smaller differences between checkpoints mean nothing."
    )


def _about_pictures(ranking: HeldoutRanking) -> str:
    if ranking.ranks_nothing:
        return "Set pictures aside before the next training: spyke-kohya holdout DIR --count 8."
    copies = ranking.pictures - ranking.groups
    counted = f" ({copies} are copies of others and count as one)" if copies else ""
    if ranking.groups >= 8:
        return f"The pictures, {ranking.groups} different ones{counted}, are what limits this: 16 tell more than 8."
    return f"{ranking.groups} different pictures{counted} are few: hold out 8, better 16."


def _about_timesteps(ranking: HeldoutRanking) -> str:
    if ranking.best_by_timestep == ranking.minimum.step or len(ranking.rows) < 2:
        return ""
    return (
        f"With every timestep weighed alike the lowest is step {ranking.best_by_timestep}: high timesteps, where a "
        "picture's composition is decided, have small losses and hardly count in the plain mean."
    )


def _about_memory(ranking: HeldoutRanking) -> str:
    best = ranking.minimum
    if best.gap is None or best.auc is None:
        return ""
    compared = "more" if best.gap < 0 else "less"
    return (
        f"At step {best.step} the loss fell by {abs(best.gap):.4f} {compared} on trained pictures than on held-out "
        f"ones, and that tells them apart with AUC {best.auc:.2f} (0.5: not at all, 1: by heart). It is context only."
    )


def _about_norms(ranking: HeldoutRanking) -> str:
    if not ranking.blown_up:
        return ""
    return f"The weights of {_steps(ranking.blown_up)} leap up: they blew up."


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


def _percent(ratio: float) -> str:
    change = 100 * (ratio - 1)
    return f"{abs(change):.2f} % {'below' if change <= 0 else 'above'}"
