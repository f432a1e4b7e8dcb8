"""Write what is made from the code: two pages of docs/ and the JSON Schemas in schemas/. Run by `make docs`."""

from __future__ import annotations

import json
from pathlib import Path

from preset_reference import reference_page
from preset_schemas import dataset_schema, training_schema

from spyke_kohya.audit.catalogue import CATALOGUE

PROJECT = Path(__file__).resolve().parents[1]


def made_files() -> dict[str, str]:
    """Every made file's path in the project, and its content."""
    return {
        "docs/findings.md": findings_page(),
        "docs/preset-reference.md": reference_page(),
        "schemas/dataset.schema.json": json.dumps(dataset_schema(), indent=2) + "\n",
        "schemas/training.schema.json": json.dumps(training_schema(), indent=2) + "\n",
    }


def findings_page() -> str:
    """Return docs/findings.md."""
    lines = [
        "# Findings",
        "",
        "What `validate` and `train` can find, by code. An error blocks a launch, a warning does not; `--strict` makes",
        "errors of all. `spyke-kohya validate --explain CODE` says the same. Made by `make docs` from the code.",
    ]
    room = ""
    for code in sorted(CATALOGUE):
        if code.partition(".")[0] != room:
            room = code.partition(".")[0]
            lines += ["", f"## {room}", "", "| code | why | source |", "|---|---|---|"]
        entry = CATALOGUE[code]
        lines.append(f"| `{code}` | {entry.why.replace('|', chr(92) + '|')} | {entry.source} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    for name, text in made_files().items():
        file = PROJECT / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
