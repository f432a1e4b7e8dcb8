"""``docs/preset-reference.md``: every key of both kinds of preset, made from the models and the option table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from preset_schemas import Schema, dataset_schema, training_schema

from spyke_kohya.engine.options import RESERVED, train_network_options
from spyke_kohya.presets.training import REQUIRED

_HEAD = """\
# The presets, key by key

Made from the code by `make docs`: do not edit. The same is in `schemas/` as JSON Schema, for editors.

A **training preset** says what to train and how; a **dataset preset** is sd-scripts' own dataset config, nothing added.
"""


def reference_page() -> str:
    """The whole page."""
    lines = [
        _HEAD,
        "## Training preset",
        "",
        *_training_tables(training_schema()),
        *_option_table(),
        "## Dataset preset",
        "",
        *_dataset_tables(dataset_schema()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _training_tables(schema: Schema) -> Iterator[str]:
    own = {name: entry for name, entry in schema["properties"].items() if not _names_table(entry)}
    yield from _table("At the top", own, schema["required"])
    for name, entry in schema["properties"].items():
        if _names_table(entry):
            table = schema["$defs"][_table_of(entry)]
            yield from _table(f"`[{name}]`: {table['description']}", table["properties"], table.get("required", []))


def _dataset_tables(schema: Schema) -> Iterator[str]:
    for table in schema["$defs"].values():
        yield from _table(table["description"], table["properties"], table.get("required", []))


def _names_table(entry: Schema) -> bool:
    return bool(_table_of(entry))


def _table_of(entry: Schema) -> str:
    """The name of the table that an entry is, or ""; one that may be left out stands among alternatives."""
    refs = [one["$ref"] for one in (entry, *entry.get("anyOf", ()), *entry.get("allOf", ())) if "$ref" in one]
    return refs[0].rpartition("/")[2] if refs else ""


def _table(title: str, properties: Mapping[str, Schema], required: list[str]) -> list[str]:
    rows = [
        f"| `{name}` | {_kind(entry)} | {_default(name, entry, required)} | {_cell(entry.get('description', ''))} |"
        for name, entry in properties.items()
    ]
    return [f"### {title}", "", "| key | value | default | what it does |", "|---|---|---|---|", *rows, ""]


def _kind(entry: Schema) -> str:
    if "enum" in entry:
        return ", ".join(f"`{choice}`" for choice in entry["enum"])
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(map(_kind, entry["anyOf"])))
    if "$ref" in entry:
        return f"a `{entry['$ref'].rpartition('/')[2]}`"
    words = {"string": "text", "boolean": "true or false", "integer": "a whole number", "number": "a number"}
    if entry.get("type") == "array":
        return "a list" if "items" not in entry else f"a list of {_kind(entry['items']).removeprefix('a ')}s"
    return words.get(entry.get("type", ""), "a table")


def _default(name: str, entry: Schema, required: list[str]) -> str:
    if name in required:
        return "**required**"
    return f"`{_toml(entry['default'])}`" if entry.get("default") not in (None, {}, "") else ""


def _option_table() -> list[str]:
    rows = [
        f"| `{name}` | {_cell(option.expected)} | {_option_default(name, option.default)} |"
        for name, option in train_network_options().items()
        if name not in RESERVED
    ]
    reserved = [f"| `{name}` | {_cell(why)} |" for name, why in RESERVED.items()]
    return [
        "### `[train_network]`: train_network.py's own options, by their own names",
        "",
        "What each does is sd-scripts' to say: `python train_network.py --help`, or its `docs/train_network.md`.",
        "",
        "| option | value | default |",
        "|---|---|---|",
        *rows,
        "",
        "These belong to the launcher, and a preset that sets them is refused:",
        "",
        "| option | why |",
        "|---|---|",
        *reserved,
        "",
    ]


def _option_default(name: str, value: object) -> str:
    if name in REQUIRED:
        return "**required**"
    return "" if value in (None, False) else f"`{_toml(value)}`"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
