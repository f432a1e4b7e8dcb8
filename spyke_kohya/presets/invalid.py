"""What Pydantic finds wrong with a preset, as findings."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from spyke_kohya.engine.options import described
from spyke_kohya.findings import Finding, error

_SHAPES = {
    "tuple_type": "expected a list of tables",
    "model_type": "expected a table",
    "dict_type": "expected a table",
    "string_type": "expected text in quotes",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
}


def finding_of(fault: ErrorDetails, place: str, tables: Mapping[tuple[str, ...], type[BaseModel]]) -> Finding:
    """Return the finding for an error of Pydantic's; ``tables`` has each table's model by the names that lead to it."""
    key = str(fault["loc"][-1]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        known = tables[tuple(part for part in fault["loc"][:-1] if isinstance(part, str))].model_fields
        if close := get_close_matches(key, known, n=1):
            message = f"unknown key `{key}`; did you mean `{close[0]}`?"
            return error("schema.unknown-key", place, message, f"write `{close[0]}`")
        remedy = f"known here: {', '.join(sorted(known))}"
        return error("schema.unknown-key", place, f"unknown key `{key}`", remedy)
    if fault["type"] == "missing":
        return error("schema.missing-key", place, f"`{key}` is required here", f"add `{key}`")
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
    expected = _SHAPES.get(fault["type"], message)
    return error("schema.wrong-type", place, f"{expected}, got {described(fault['input'])}", "correct the value")
