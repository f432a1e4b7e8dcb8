"""How many tokens the CLIP text encoder makes of a caption: exactly with its vocabulary at hand, else at least.

sd-scripts cuts off what is beyond the limit, and prints nothing (sd-scripts v0.10.1 strategy_base.py:234).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

TOKENIZER = "openai/clip-vit-large-patch14"
DEFAULT_LIMIT = 75
"""Tokens of a caption that count: the encoder's 77 less its start and end; --max_token_length makes it 150 or 225."""

# CLIP's own pattern, in the words of re: what regex calls letters and numbers is \w here, less the underscore.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
_END = "</w>"


class TokenCounter:
    """Counts as CLIP's byte-pair encoding does; without ``ranks`` each word counts as one token, the least there is."""

    def __init__(self, ranks: Mapping[tuple[str, str], int] | None = None) -> None:
        self.is_exact = ranks is not None
        self._tokens_of = cache(lambda word: 1 if ranks is None else len(_merged(word, ranks)))

    def count(self, caption: str) -> int:
        return sum(map(self._tokens_of, _WORD.findall(unicodedata.normalize("NFC", caption).lower())))


def _merged(word: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Return the tokens of one word: its bytes, merged pair by pair, the best-ranked pair first."""
    letters = _byte_letters()
    parts = [letters[byte] for byte in word.encode(errors="replace")]
    parts[-1] += _END
    while len(parts) > 1:
        pair = min(pairwise(parts), key=lambda two: ranks.get(two, len(ranks)))
        if pair not in ranks:
            break
        parts = list(_joined(parts, pair))
    return parts


def _joined(parts: list[str], pair: tuple[str, str]) -> Iterator[str]:
    place = 0
    while place < len(parts):
        both = tuple(parts[place : place + 2]) == pair
        yield "".join(pair) if both else parts[place]
        place += 2 if both else 1


@cache
def _byte_letters() -> tuple[str, ...]:
    """Return the printable letter that stands for each byte in the vocabulary."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def read_token_counter(directories: Iterable[Path]) -> TokenCounter:
    """Read the first directory with a readable vocabulary; without one, the counter is not exact."""
    for directory in directories:
        try:
            lines = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        if all(len(pair) == 2 for pair in pairs):
            return TokenCounter({(pair[0], pair[1]): rank for rank, pair in enumerate(pairs)})
    return TokenCounter()


def tokenizer_directories(cache_dir: Path | None, environment: Mapping[str, str], home: Path) -> Iterator[Path]:
    """Find the tokenizer's files where sd-scripts does: under --tokenizer_cache_dir, else in the hub's cache."""
    if cache_dir:
        yield cache_dir / TOKENIZER.replace("/", "_")
    hub = Path(environment.get("HF_HUB_CACHE") or hub_home(environment, home) / "hub")
    yield from sorted(hub.glob(f"models--{TOKENIZER.replace('/', '--')}/snapshots/*"))


def hub_home(environment: Mapping[str, str], home: Path) -> Path:
    """Return where Hugging Face's libraries keep their files."""
    if environment.get("HF_HOME"):
        return Path(environment["HF_HOME"]).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache").expanduser() / "huggingface"
