"""Read what an evaluation measured: ``evaluate.csv``, a row a loss, and what ``evaluate.json`` says of its rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spyke_kohya.errors import NothingToRank
from spyke_kohya.rank.windows import FloatArray
from spyke_kohya.record.rundir import RunDirectory

BASE, BASE_AGAIN = "base", "base again"
"""The base model without a LoRA, measured first and last."""

COLUMNS = ("checkpoint", "image", "group", "timestep", "replicate", "loss")

Role = Literal["heldout", "trained"]


@dataclass(frozen=True)
class Row:
    """One measured loss."""

    checkpoint: str
    image: str
    group: str
    timestep: int
    replicate: int
    loss: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.checkpoint, self.image, self.timestep, self.replicate

    def cells(self) -> list[str]:
        return [self.checkpoint, self.image, self.group, str(self.timestep), str(self.replicate), repr(self.loss)]


@dataclass(frozen=True, eq=False)
class Measured:
    """Losses of one role's pictures, grouped: ``losses`` (checkpoints, pictures, cells), a cell a timestep and noise.

    ``base`` and ``base_again`` are (pictures, cells); ``groups`` gives each picture's group as an index from 0.
    """

    losses: FloatArray
    base: FloatArray
    base_again: FloatArray | None
    groups: tuple[int, ...]

    @property
    def group_count(self) -> int:
        return len(set(self.groups))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A measured run: ``steps`` and ``files`` of the checkpoints whose rows are whole, and their losses by role.

    ``unfinished`` names checkpoints whose rows aren't all there, ``broken`` those with a loss that is not a number.
    """

    steps: tuple[int, ...]
    files: tuple[Path, ...]
    heldout: Measured | None
    trained: Measured | None
    timesteps: tuple[int, ...]
    unfinished: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    source: str = ""


def read_rows(path: Path) -> list[Row]:
    """The rows of an evaluation; a last line that was cut off is left out. Raises NothingToRank for any other fault."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # what stands behind the last line end was being written
    rows = csv.reader(whole.splitlines())
    if tuple(next(rows, ())) != COLUMNS:
        raise NothingToRank("not an evaluation: the columns are others", where=str(path))
    return list(_parsed(rows, path))


def _parsed(rows: Iterator[list[str]], path: Path) -> Iterator[Row]:
    for number, cells in enumerate(rows, start=2):
        try:
            checkpoint, image, group, timestep, replicate, loss = cells
            yield Row(checkpoint, image, group, int(timestep), int(replicate), float(loss))
        except ValueError as fault:
            remedy = "remove that line and evaluate again: only what is missing is measured"
            raise NothingToRank(f"line {number} can't be read: {cells}", where=str(path), remedy=remedy) from fault


def has_evaluation(run: RunDirectory) -> bool:
    return run.evaluation.is_file() and run.evaluation_request.is_file()


def read_evaluation(run: RunDirectory) -> Evaluation:
    """What the run's last evaluation measured, finished or not. Raises NothingToRank when there is nothing whole."""
    remedy = "measure it: spyke-kohya evaluate RUN"
    if not has_evaluation(run):
        raise NothingToRank("this run was not evaluated", where=str(run.path), remedy=remedy)
    try:
        request = json.loads(run.evaluation_request.read_text(encoding="utf-8"))
        return _evaluation(request, read_rows(run.evaluation), run)
    except (ValueError, KeyError, TypeError) as fault:
        raise NothingToRank("its record can't be read", where=str(run.evaluation_request), remedy=remedy) from fault


def _evaluation(request: Mapping[str, Any], rows: list[Row], run: RunDirectory) -> Evaluation:
    table = {row.key: row.loss for row in rows}
    cells = [(t, replicate) for replicate in range(request["replicates"]) for t in request["timesteps"]]
    images = [picture["name"] for picture in request["pictures"]]
    measured = {entry["name"]: _losses(table, entry["name"], images, cells) for entry in request["checkpoints"]}
    found = {name: losses for name, losses in measured.items() if losses is not None}
    if BASE not in found:
        raise NothingToRank(
            "the evaluation has not got through the base model yet",
            where=str(run.evaluation),
            remedy="go on with it: spyke-kohya evaluate RUN",
        )
    saved = [entry for entry in request["checkpoints"] if entry["path"]]
    broken = [entry["name"] for entry in saved if entry["name"] in found and not _is_finite(found[entry["name"]])]
    sound = [entry for entry in saved if entry["name"] in found and entry["name"] not in broken]
    roles = {
        role: _measured(request, role, [found[entry["name"]] for entry in sound], found)
        for role in ("heldout", "trained")
    }
    return Evaluation(
        steps=tuple(entry["step"] for entry in sound),
        files=tuple(run.output_dir / entry["name"] for entry in sound),
        heldout=roles["heldout"],
        trained=roles["trained"],
        timesteps=tuple(request["timesteps"]),
        unfinished=tuple(entry["name"] for entry in saved if entry["name"] not in found),
        broken=tuple(broken),
        source=str(run.evaluation),
    )


def _is_finite(losses: FloatArray) -> bool:
    return bool(np.isfinite(losses).all())


def _losses(
    table: Mapping[tuple[str, str, int, int], float], name: str, images: list[str], cells: list[tuple[int, int]]
) -> FloatArray | None:
    """Losses (pictures, cells) of one checkpoint, or None when one is missing."""
    values = [[table.get((name, image, *cell)) for cell in cells] for image in images]
    return None if any(None in row for row in values) else np.array(values, dtype=np.float64)


def _measured(
    request: Mapping[str, Any], role: str, losses: list[FloatArray], found: Mapping[str, FloatArray]
) -> Measured | None:
    pictures = request["pictures"]
    mine = [index for index, picture in enumerate(pictures) if picture["role"] == role]
    if not mine:
        return None
    base, again = found[BASE], found.get(BASE_AGAIN)
    names = list(dict.fromkeys(pictures[index]["group"] for index in mine))
    return Measured(
        losses=np.array([loss[mine] for loss in losses]).reshape(-1, len(mine), base.shape[1]),
        base=base[mine],
        base_again=None if again is None else again[mine],
        groups=tuple(names.index(pictures[index]["group"]) for index in mine),
    )
