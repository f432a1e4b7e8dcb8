"""A ranking in words: one sentence that is never stronger than the evidence, and the notes that qualify it."""

from __future__ import annotations

from collections.abc import Iterable

from spyke_kohya.rank.result import Ranking

CANNOT = "training loss cannot show generalisation"


def verdict_on(ranking: Ranking) -> str:
    """One sentence for a person. A training loss never demonstrates a winner; "weak" is the most it can be."""
    sentence = f"{_finding(ranking)}; {CANNOT}."
    if ranking.window is None and ranking.by == "avr_loss" and len(ranking.rows) > 1:
        sentence = f"with the window of avr_loss unknown ({ranking.assumed_window} batches assumed), {sentence}"
    if ranking.diverged_step is not None:
        sentence = f"training diverged at step {ranking.diverged_step} (loss is not a number); before that, {sentence}"
    return sentence[0].upper() + sentence[1:]


def notes_on(ranking: Ranking) -> tuple[str, ...]:
    """What a person should know besides, the most important first; each a sentence or two."""
    notes = (
        *_about_files(ranking),
        _about_divergence(ranking),
        _about_averages(ranking),
        _about_noise(ranking),
        _about_flatness(ranking),
        _about_rise(ranking),
        _about_order(ranking),
    )
    return tuple(note for note in notes if note)


def listed(steps: Iterable[int], conjunction: str = "and") -> str:
    """ "1000, 1200 and 1400" """
    words = [str(step) for step in steps]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def _finding(ranking: Ranking) -> str:
    best, count, tied = ranking.minimum, len(ranking.rows), ranking.tied_steps
    name = "avr_loss" if ranking.by == "avr_loss" else "mean loss around it"
    lowest = f"step {best.step} has the lowest {name} ({ranking.value_of(best):.4g})"
    if count == 1:
        only = f"step {best.step} is the only checkpoint to rank ({name} {ranking.value_of(best):.4g})"
        return f"{only}, no demonstrated winner"
    if ranking.regime == "cumulative":
        return (
            f"avr_loss is a mean over all steps since the first (its window of {ranking.window} batches never filled), "
            "and such a cumulative mean cannot rank checkpoints: no demonstrated winner"
        )
    if len(tied) == count:
        return f"{lowest}, but all {count} checkpoints are tied within the noise: no demonstrated winner"
    if len(tied) > 1:
        return f"{lowest}, but {_those(ranking)} are tied within the noise: weak evidence, no demonstrated winner"
    return f"{lowest}, below all others by more than the noise: weak evidence, no demonstrated winner"


def _those(ranking: Ranking) -> str:
    """The tied steps, or the few that aren't when that is shorter."""
    others = [row.step for row in ranking.by_step if not row.tied]
    tied = ranking.tied_steps
    return f"all except {_steps(others)}" if 2 * len(others) < len(tied) else f"steps {listed(tied)}"


def _about_files(ranking: Ranking) -> list[str]:
    unread = [f"Not ranked: {file.name}, {reason}." for file, reason in ranking.unreadable]
    return [*unread, *(f"Not ranked: step {step}, {reason}." for step, reason in ranking.not_ranked)]


def _about_divergence(ranking: Ranking) -> str:
    latest = ranking.by_step[-1].step
    if ranking.diverged_step is None or latest != ranking.diverged_step - 1:
        return ""
    return f"The weights of step {latest} gave the first loss that is not a number: they may be broken."


def _about_averages(ranking: Ranking) -> str:
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
    if ranking.regime == "cumulative":
        return "Between two checkpoints the mean loss can be told: see the block means."
    if ranking.regime == "mixed":
        first = [
            row.step for row in ranking.by_step if row.step * ranking.micro_batches_per_step < (ranking.window or 0)
        ]
        return f"At {_steps(first)} avr_loss is a mean over all steps since the first, which includes the start."
    lag = f"avr_loss describes weights that are on average {ranking.lag_steps:.0f} steps older than the checkpoint."
    return lag + (" The centred loss does not lag." if ranking.minimum.centred_loss is not None else "")


def _about_noise(ranking: Ranking) -> str:
    if ranking.assumed_cv is None or len(ranking.rows) < 2 or ranking.regime == "cumulative":
        return ""
    low, high = min(ranking.sensitivity), max(ranking.sensitivity)
    return (
        f"The noise is assumed (at batch size 1 one loss varies by {ranking.assumed_cv:g} times its mean). Were it "
        f"{low:g}, {_tied(ranking.sensitivity[low])}; were it {high:g}, {_tied(ranking.sensitivity[high])}. "
        "Per-step losses (loss/current in TensorBoard) would settle it."
    )


def _about_flatness(ranking: Ranking) -> str:
    if ranking.flat_p is None or ranking.regime == "cumulative":
        return ""
    if ranking.flat_p < 0.05:
        return f"The differences are larger than a flat loss would give (p = {ranking.flat_p:.2g})."
    return f"A loss that never changed would give differences as large as these with p = {ranking.flat_p:.2f}."


def _about_rise(ranking: Ranking) -> str:
    if ranking.rise is None:
        return ""
    rise = ranking.rise
    return (
        f"The loss around step {rise.to_step} is above that around step {rise.from_step} (p = {_p(rise.p)}): "
        "training may have become unstable."
    )


def _about_order(ranking: Ranking) -> str:
    beside = "Look at the base model without a LoRA beside them, with the same prompts and seeds."
    if ranking.regime == "cumulative" or len(ranking.rows) < 2:
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


def _steps(steps: list[int]) -> str:
    return f"step{'s' * (len(steps) > 1)} {listed(steps)}"


def _tied(steps: tuple[int, ...]) -> str:
    return f"{_steps(list(steps))} would be tied" if len(steps) > 1 else f"step {steps[0]} would stand alone"


def _p(p: float) -> str:
    return f"{p:.2g}" if p > 0 else "less than 0.001"
