"""The tags of captions: which there are, how often, and which are in all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spyke_kohya.dataset.scan import Caption, Scan

_FEW = 3


@dataclass(frozen=True)
class TagTable:
    """The tags of one folder, the most frequent first, each with the number of its captions."""

    folder: str
    captions: int
    tags: tuple[tuple[str, int], ...]


def tags_of(text: str, separator: str) -> list[str]:
    """Return the tags of a caption, each once, in its order."""
    parts = text.split(separator) if separator else [text]
    return list(dict.fromkeys(tag for part in parts if (tag := part.strip())))


def tags_in_all(texts: Sequence[str], separator: str) -> list[str]:
    """Return the tags that every text has, in the order of the first; none where there are too few texts to say so."""
    if len(texts) < _FEW:
        return []
    common = tags_of(texts[0], separator)
    for text in texts:
        common = [tag for tag in common if tag in text and tag in tags_of(text, separator)]
        if not common:
            break
    return common


def tag_tables(scan: Scan, captions: Iterable[Caption]) -> list[TagTable]:
    """Return a table of every folder; ``captions`` are in the order of the scan's images."""
    remaining = iter(captions)
    tables = {}
    for dataset in scan.datasets:
        for subset in dataset.subsets:
            texts = [caption.text for _, caption in zip(subset.images, remaining, strict=False) if not caption.problem]
            counted = _counted(texts, subset.subset.caption_separator)
            tables[subset.folder] = TagTable(subset.folder, len(texts), tuple(counted.most_common()))
    return list(tables.values())


def _counted(texts: Iterable[str], separator: str) -> Counter[str]:
    return Counter(tag for text in texts for tag in tags_of(text, separator))
