"""An evaluation in words: one sentence that is never stronger than the evidence, and the notes that qualify it."""

from __future__ import annotations

from dataclasses import replace

from spyke_kohya.rank.heldout_result import FEWEST_GROUPS, HeldoutRanking
from spyke_kohya.rank.verdict import listed

NOT_LOOKS = "predicts unseen pictures best, which is not the same as looks best"
_NOISY = 1e-3


def with_words(ranking: HeldoutRanking) -> HeldoutRanking:
    return replace(ranking, verdict=_verdict(ranking), notes=tuple(note for note in _notes(ranking) if note))


def _verdict(ranking: HeldoutRanking) -> str:
    sentence = f"{_finding(ranking)}."
    return sentence[0].upper() + sentence[1:]


def _finding(ranking: HeldoutRanking) -> str:
    best, count, tied = ranking.minimum, len(ranking.rows), ranking.tied_steps
    if ranking.kind == "memorisation":
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


def _notes(ranking: HeldoutRanking) -> list[str]:
    return [
        *(f"Not ranked: {name}, it is not measured whole yet." for name in ranking.unfinished),
        *(f"Not ranked: {name}, its loss is not a number." for name in ranking.broken),
        _about_floor(ranking),
        _about_pictures(ranking),
        _about_timesteps(ranking),
        _about_memory(ranking),
        _about_norms(ranking),
        _about_order(ranking),
    ]


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
    if ranking.kind == "memorisation":
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
    return f"The weights of step{'s' * (len(ranking.blown_up) > 1)} {listed(ranking.blown_up)} leap up: they blew up."


def _about_order(ranking: HeldoutRanking) -> str:
    if ranking.kind == "memorisation":
        return ""
    return (
        "Look at the base model without a LoRA beside them, with the same prompts and seeds: spyke-kohya samples RUN."
    )


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


def _percent(ratio: float) -> str:
    change = 100 * (ratio - 1)
    return f"{abs(change):.2f} % {'below' if change <= 0 else 'above'}"
