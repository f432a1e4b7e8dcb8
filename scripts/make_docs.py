"""Write what is made from the code: two pages of docs/ and the JSON Schemas in schemas/. Run by `make docs`."""

from __future__ import annotations

import json
from pathlib import Path

from spyke_kohya.audit.catalogue import catalogue_page
from spyke_kohya.presets.reference import reference_page
from spyke_kohya.presets.schemas import dataset_schema, training_schema

PROJECT = Path(__file__).resolve().parents[1]


def made_files() -> dict[str, str]:
    """Every made file's path in the project, and its content."""
    return {
        "docs/findings.md": catalogue_page(),
        "docs/preset-reference.md": reference_page(),
        "schemas/dataset.schema.json": json.dumps(dataset_schema(), indent=2) + "\n",
        "schemas/training.schema.json": json.dumps(training_schema(), indent=2) + "\n",
    }


def main() -> None:
    for name, text in made_files().items():
        file = PROJECT / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
