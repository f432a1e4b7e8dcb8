"""The options of ``train_network.py``, as its own parser declares them."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


@cache
def parser_defaults() -> dict[str, object]:
    """What each option is when nobody sets it."""
    rows = json.loads(files(__package__).joinpath("train_network_options.json").read_text(encoding="utf-8"))
    return {row["dest"]: row["default"] for row in rows}
