"""The captions: those that stop sd-scripts, those that are missing, and those without the trigger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.scan import Caption, Scan, ScannedSubset

_STOPS = {
    "empty": ("captions.empty", "the caption file is empty: sd-scripts asserts", "write a caption, or remove the file"),
    "not-utf8": ("captions.not-utf8", "the caption is not UTF-8: sd-scripts stops", "save it as UTF-8"),
    "unreadable": ("captions.unreadable", "the caption can't be read", "give yourself the right to read it"),
}


def check_captions(scan: Scan, captions: Iterable[Caption], trigger: str | None) -> list[Finding]:
    """Findings on the captions of every subset, as ``read_captions`` gives them. The trigger must be the first tag."""
    by_image = {caption.image: caption for caption in captions}
    findings = [
        error(code, caption.file, message, remedy)
        for caption in by_image.values()
        if caption.problem in _STOPS
        for code, message, remedy in [_STOPS[caption.problem]]
    ]
    for dataset in scan.datasets:
        for subset in dataset.subsets:
            told = [by_image[image.path] for image in subset.images]
            findings += _missing(subset, told)
            if trigger and not subset.subset.is_reg:
                findings += _without_trigger(subset, told, trigger)
    return findings


def _missing(scanned: ScannedSubset, captions: Sequence[Caption]) -> list[Finding]:
    missing = [caption for caption in captions if caption.problem == "missing"]
    if not missing:
        return []
    extension = scanned.subset.caption_extension
    message = f"{len(missing)} of {len(captions)} images have no {extension} caption and train with an empty one"
    remedy = f"write captions, or set class_tokens; sd-scripts looks for {PurePath(missing[0].image).stem}{extension}"
    return [warning("captions.missing", scanned.folder, message, remedy)]


def _without_trigger(scanned: ScannedSubset, captions: Sequence[Caption], trigger: str) -> list[Finding]:
    subset = scanned.subset
    without = [
        caption
        for caption in captions
        if caption.problem in ("", "missing")
        and _first_tag(_as_trained(caption, subset.caption_prefix), subset.caption_separator) != trigger
    ]
    if not without:
        return []
    message = f"{len(without)} of {len(captions)} captions do not start with the trigger {trigger!r}"
    first = PurePath(without[0].file or without[0].image).name
    more = f" and {len(without) - 1} more" if len(without) > 1 else ""
    remedy = f"put it first, followed by {subset.caption_separator!r}, in {first}{more}"
    return [error("captions.trigger-missing", scanned.folder, message, remedy)]


def _as_trained(caption: Caption, prefix: str | None) -> str:
    return f"{prefix} {caption.text}" if prefix else caption.text


def _first_tag(text: str, separator: str) -> str:
    return text.split(separator)[0].strip()
