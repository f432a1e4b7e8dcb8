"""An evaluation as it lies on the disk, without a model: losses that are a known multiple of the base's."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spyke_kohya.files import sha256_of
from spyke_kohya.rank.heldout_file import COLUMNS, picture_id

BASE, BASE_AGAIN = "base", "base again"
TIMESTEPS = (125, 375, 625, 875)
PREPARED = {"bucket": [512, 512], "resized": [512, 512], "interpolation": None, "caption": "spyke"}
_OLD_COLUMNS = ("checkpoint", "image", "group", "timestep", "replicate", "loss")


def write_evaluation(
    run: Path,
    levels: Mapping[str, tuple[int, float]],
    *,
    pictures: int = 8,
    schema: int = 2,
    measured: Iterable[str] | None = None,
) -> list[list[str]]:
    """Write evaluate.json and evaluate.csv of a run: ``levels`` gives each file's step and its loss over the base's.

    ``measured`` are the names whose losses are there (default: all). Gives the rows that were written.
    """
    output = run.parent.parent
    checkpoints = [_entry(output, name, step) for name, (step, _) in levels.items()]
    checkpoints = [_base(BASE), *checkpoints, _base(BASE_AGAIN)]
    images = [_picture(number) for number in range(pictures)]
    there = None if measured is None else set(measured)
    rows = [
        [*[entry["name"], image["name"], image["name"], str(t), "0"], repr(loss), entry["id"], image["id"]]
        for entry in checkpoints
        if there is None or entry["name"] in there
        for number, image in enumerate(images)
        for t in TIMESTEPS
        for loss in [_loss(entry, number, t, levels)]
    ]
    if schema == 1:
        rows = [[Path(row[0]).name, *row[1:6]] for row in rows]
    write_rows(run, rows, COLUMNS if schema == 2 else _OLD_COLUMNS)
    document = _document(run, checkpoints, images) if schema == 2 else _old_document(run, checkpoints, images)
    (run / "evaluate.json").write_text(json.dumps(document))
    return rows


def write_rows(run: Path, rows: Iterable[list[str]], columns: Iterable[str] = COLUMNS) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    (run / "evaluate.csv").write_text(text.getvalue())


def _document(run: Path, checkpoints: list[dict[str, Any]], images: list[dict[str, Any]]) -> dict[str, Any]:
    asked = {"timesteps": list(TIMESTEPS), "replicates": 1, "seed": 0, "out": str(run / "evaluate.csv")}
    return {"schema_version": 2, "checkpoints": checkpoints, "pictures": images, **asked}


def _old_document(run: Path, checkpoints: list[dict[str, Any]], images: list[dict[str, Any]]) -> dict[str, Any]:
    """As evaluations were recorded before rows had an identity: a checkpoint is known by its file's bare name."""
    entries = [
        {"name": Path(one["name"]).name, "path": one["path"], "step": one["step"], "sha256": one["sha256"]}
        for one in checkpoints
    ]
    pictures = [{name: value for name, value in image.items() if name != "id"} for image in images]
    known = {
        "checkpoints": {entry["name"]: entry["sha256"] for entry in entries},
        "pictures": {
            image["name"]: [image["sha256"], *PREPARED.values(), image["role"], image["group"]] for image in pictures
        },
    }
    return {**_document(run, entries, pictures), "schema_version": 1, "known": known}


def _entry(output: Path, name: str, step: int) -> dict[str, Any]:
    sha256 = sha256_of(output / name)
    return {"name": name, "id": sha256, "path": str(output / name), "step": step, "sha256": sha256}


def _base(name: str) -> dict[str, Any]:
    return {"name": name, "id": name, "path": None, "step": None, "sha256": None}


def _picture(number: int) -> dict[str, Any]:
    name, sha256 = f"heldout/{number}.png", hashlib.sha256(bytes([number])).hexdigest()
    about = {"name": name, "path": name, "role": "heldout", "group": name, "sha256": sha256, **PREPARED}
    return about | {"id": picture_id(about)}


def _loss(entry: Mapping[str, Any], number: int, timestep: int, levels: Mapping[str, tuple[int, float]]) -> float:
    level = levels[entry["name"]][1] if entry["name"] in levels else 1.0
    own = 1 + 0.001 * ((number * 7 + (entry["step"] or 0)) % 5) if entry["path"] else 1.0
    return level * own * (0.5 + 0.1 * number) * (1000 - timestep) / 1000
