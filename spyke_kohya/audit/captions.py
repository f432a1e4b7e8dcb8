"""The captions: those that stop sd-scripts, those that are missing or cut short, and where the trigger isn't or is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from spyke_kohya.audit.tags import tags_in_all, tags_of
from spyke_kohya.dataset.scan import Caption, Scan, ScannedSubset
from spyke_kohya.findings import Finding, Severity, error, warning
from spyke_kohya.formats.clip_tokens import DEFAULT_LIMIT, TokenCounter
from spyke_kohya.presets.resolved import ResolvedSubset

_STOPS = {
    "empty": ("captions.empty", "the caption file is empty: sd-scripts asserts", "write a caption, or remove the file"),
    "not-utf8": ("captions.not-utf8", "the caption is not UTF-8: sd-scripts stops", "save it as UTF-8"),
    "unreadable": ("captions.unreadable", "the caption can't be read", "give yourself the right to read it"),
}
_EXTENSIONS = (".txt", ".caption", ".cap", ".tags")
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Rules:
    """What captions are held against. ``count`` and ``limit`` are in tokens of the text encoder."""

    trigger: str | None = None
    counter: TokenCounter = field(default_factory=TokenCounter)
    limit: int = DEFAULT_LIMIT


def check_captions(scan: Scan, captions: Iterable[Caption], rules: Rules) -> list[Finding]:
    """Return findings on the captions that ``read_captions`` gives, in the order of the scan's images."""
    remaining = iter(captions)
    findings: dict[Finding, None] = {}  # a folder of two datasets is reported once
    for dataset in scan.datasets:
        for subset in dataset.subsets:
            of_subset = [caption for _, caption in zip(subset.images, remaining, strict=False)]
            findings |= dict.fromkeys(_check_subset(subset, of_subset, rules))
    return list(findings)


def _check_subset(scanned: ScannedSubset, captions: Sequence[Caption], rules: Rules) -> Iterator[Finding]:
    for caption in captions:
        if caption.problem in _STOPS:
            code, message, remedy = _STOPS[caption.problem]
            yield error(code, caption.file, message, remedy)
    yield from _missing(scanned, captions)
    read = [caption for caption in captions if caption.file and not caption.problem]
    for caption in read:
        yield from _as_read(caption, scanned.subset)
        yield from _too_long(caption, scanned.subset, rules)
    if rules.trigger and scanned.subset.is_reg:
        yield from _trigger_in_regularisation(scanned, captions, rules.trigger)
    elif rules.trigger:
        yield from _without_trigger(scanned, captions, rules.trigger)
        yield from _trigger_moves(scanned.subset, rules.trigger)
    if not scanned.subset.is_reg:
        yield from _tags_everywhere(scanned, read, rules.trigger)


def _missing(scanned: ScannedSubset, captions: Sequence[Caption]) -> Iterator[Finding]:
    without = [caption for caption in captions if not caption.file]
    if not without:
        return
    subset = scanned.subset
    other = _other_extension(without)
    if other and len(without) == len(captions):
        yield _other_named(scanned, other, len(captions))
        return
    missing = [caption for caption in without if caption.problem == "missing"]
    if not missing:
        return
    count = f"{len(missing)} of {len(captions)} images"
    message = f"{count} have no {subset.caption_extension} caption and train with an empty one"
    looked_for = f"{PurePath(missing[0].image).stem}{subset.caption_extension}"
    if subset.is_reg:
        remedy = 'set class_tokens, for example "anime character"; or write captions'
    else:
        remedy = f"write captions, or set class_tokens; sd-scripts looks for {looked_for}"
    yield warning("captions.missing", scanned.folder, message, remedy)


def _other_extension(captions: Sequence[Caption]) -> str | None:
    """Return the ending of caption files beside most of these images, which sd-scripts doesn't look for."""
    for extension in _EXTENSIONS:
        beside = sum(Path(caption.image).with_suffix(extension).is_file() for caption in captions)
        if 2 * beside > len(captions):
            return extension
    return None


def _other_named(scanned: ScannedSubset, other: str, count: int) -> Finding:
    subset = scanned.subset
    happens = f"class_tokens {subset.class_tokens!r} stands for all" if subset.class_tokens else "all train without one"
    message = f"the captions end with {other}, and sd-scripts looks for {subset.caption_extension}: {happens} ({count})"
    severity: Severity = "warning" if subset.class_tokens else "error"
    return Finding("captions.extension", severity, scanned.folder, message, f'set caption_extension = "{other}"')


def _as_read(caption: Caption, subset: ResolvedSubset) -> Iterator[Finding]:
    """Return what of the file sd-scripts reads (sd-scripts v0.10.1 train_util.py:1960)."""
    if caption.text.startswith(_BYTE_ORDER_MARK):
        message = "it begins with a byte order mark, which becomes part of the first tag"
        yield error("captions.byte-order-mark", caption.file, message, "save it as UTF-8 without one")
    if not caption.text:
        rest = "its first line is blank, and the others are not read" if caption.lines else "it holds only blanks"
        yield warning(
            "captions.blank", caption.file, f"{rest}: the image trains without a caption", "write the first line"
        )
    elif caption.lines > 1 and not subset.enable_wildcard:
        message = f"it has {caption.lines} lines, and only the first is used"
        remedy = "write one line; or set enable_wildcard = true to draw one of them each time"
        yield warning("captions.more-lines", caption.file, message, remedy)


def _too_long(caption: Caption, subset: ResolvedSubset, rules: Rules) -> Iterator[Finding]:
    text = " ".join(part for part in (subset.caption_prefix, caption.text, subset.caption_suffix) if part)
    if len(text.encode(errors="replace")) <= rules.limit:
        return  # a token is at least a byte
    tokens = rules.counter.count(text)
    if tokens > rules.limit:
        least = "" if rules.counter.is_exact else "at least "
        message = f"it has {least}{tokens} tokens: the text encoder does not see those after {rules.limit}"
        remedy = "shorten it, or set max_token_length = 150 or 225 under [train_network]"
        yield warning("captions.too-long", caption.file, message, remedy)


def _without_trigger(scanned: ScannedSubset, captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    subset = scanned.subset
    without = [
        caption
        for caption in captions
        if caption.problem in ("", "missing")
        and _first_tag(_as_trained(caption, subset.caption_prefix), subset.caption_separator) != trigger
    ]
    if without:
        message = f"{len(without)} of {len(captions)} captions do not start with the trigger {trigger!r}"
        first = PurePath(without[0].file or without[0].image).name
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        remedy = f"put it first, followed by {subset.caption_separator!r}, in {first}{more}"
        yield error("captions.trigger-missing", scanned.folder, message, remedy)


def _trigger_moves(subset: ResolvedSubset, trigger: str) -> Iterator[Finding]:
    """Only the first keep_tokens tags stay when the rest is shuffled (sd-scripts v0.10.1 train_util.py:879)."""
    if subset.keep_tokens > 0 or subset.keep_tokens_separator:
        return
    moves = "moved by shuffle_caption" if subset.shuffle_caption else ""
    if subset.caption_tag_dropout_rate > 0:
        moves += " and " * bool(moves) + "dropped by caption_tag_dropout_rate"
    if moves:
        message = f"keep_tokens is 0, so the trigger {trigger!r} is {moves}"
        yield warning("captions.trigger-moves", subset.where, message, "set keep_tokens = 1")


def _trigger_in_regularisation(scanned: ScannedSubset, captions: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    subset = scanned.subset
    with_it = [
        caption
        for caption in captions
        if trigger in tags_of(_as_trained(caption, subset.caption_prefix), subset.caption_separator)
    ]
    if with_it:
        message = f"{len(with_it)} of {len(captions)} regularisation captions hold the trigger {trigger!r}"
        first = PurePath(with_it[0].file or with_it[0].image).name
        remedy = f"remove it, first in {first}: these images say what the model should know without it"
        yield warning("captions.trigger-in-regularisation", scanned.folder, message, remedy)


def _tags_everywhere(scanned: ScannedSubset, captions: Sequence[Caption], trigger: str | None) -> Iterator[Finding]:
    subset = scanned.subset
    everywhere = tags_in_all([caption.text for caption in captions], subset.caption_separator)
    if trigger is None:  # the first tag of all captions is the trigger by any other name
        firsts = {_first_tag(caption.text, subset.caption_separator) for caption in captions}
        trigger = firsts.pop() if len(firsts) == 1 else None
    common = [tag for tag in everywhere if tag != trigger]
    if common:
        named = ", ".join(repr(tag) for tag in common[:5]) + ("" if len(common) <= 5 else ", ...")
        message = (
            f"{named} in each of {len(captions)} captions: nothing tells it from the trigger, so it is learnt as one"
        )
        remedy = "leave it out of the captions where the trigger is to mean it"
        yield warning("captions.tag-everywhere", scanned.folder, message, remedy)


def _as_trained(caption: Caption, prefix: str | None) -> str:
    return f"{prefix} {caption.text}" if prefix else caption.text


def _first_tag(text: str, separator: str) -> str:
    return (text.split(separator)[0] if separator else text).strip()
