"""Read what an evaluation measured: ``evaluate.json``, what was asked for, and ``evaluate.csv``, a row a loss.

A row belongs to a checkpoint and to a picture by their content: a name may be another file's by now.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from spyke_kohya.errors import NothingToRank
from spyke_kohya.files import sha256_of
from spyke_kohya.rank.result import Candidate
from spyke_kohya.rank.windows import FloatArray
from spyke_kohya.record.rundir import RunDirectory

BASE, BASE_AGAIN = "base", "base again"
"""The base model without a LoRA, measured first and last."""

SCHEMA_VERSION = 2
COLUMNS = ("checkpoint", "image", "group", "timestep", "replicate", "loss", "checkpoint_id", "picture_id")
_OLD_COLUMNS = COLUMNS[:6]
_PREPARED = ("sha256", "bucket", "resized", "interpolation", "caption")
_LINES_SHOWN = 5

_Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class MeasuredLoss:
    """A row. ``checkpoint_id`` is the SHA-256 of the file, or the base's name; the names are for people alone."""

    checkpoint: str
    image: str
    group: str
    timestep: int
    replicate: int
    loss: float
    checkpoint_id: str
    picture_id: str

    @property
    def key(self) -> _Key:
        return self.checkpoint_id, self.picture_id, self.timestep, self.replicate

    def cells(self) -> list[str]:
        return [value if isinstance(value, str) else repr(value) for value in astuple(self)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class EvaluatedCheckpoint(_Entry):
    """``name`` is the file's path from the output directory, ``step`` None for the base."""

    name: str
    id: str
    step: int | None


class EvaluatedPicture(_Entry):
    """A picture; those of one ``group`` are copies of each other."""

    id: str
    role: Literal["heldout", "trained"]
    group: str


class EvaluationRecord(BaseModel):
    """``evaluate.json``; what is read elsewhere is in ``model_extra``.

    ``checkpoint_ids`` and ``picture_ids`` are whom the names in rows of schema 1 mean.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    schema_version: Literal[2]
    checkpoints: list[EvaluatedCheckpoint]
    pictures: list[EvaluatedPicture] = Field(min_length=1)
    timesteps: list[int] = Field(min_length=1)
    replicates: int = Field(ge=1, le=1000)
    checkpoint_ids: dict[str, str] = {}
    picture_ids: dict[str, str] = {}


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
    """A measured run: the checkpoints whose rows are whole, and their losses by role.

    By name: ``unfinished`` lack rows, ``broken`` have a loss that is not a number, ``overwritten`` are other files by
    now. ``damaged`` names the lines that can't be read.
    """

    candidates: tuple[Candidate, ...]
    heldout: Measured | None
    trained: Measured | None
    timesteps: tuple[int, ...]
    unfinished: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()
    damaged: str = ""
    source: str = ""

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(one.step for one in self.candidates)


def picture_id(picture: Mapping[str, Any]) -> str:
    """Return the hash of a picture's content and of how it is prepared."""
    return hashlib.sha256(json.dumps([picture[key] for key in _PREPARED]).encode()).hexdigest()


def name_in(output_dir: Path, file: Path) -> str:
    """Return the path of a file from the output directory, or its whole path where it is not in there."""
    return file.relative_to(output_dir).as_posix() if file.is_relative_to(output_dir) else str(file)


def has_evaluation(run: RunDirectory) -> bool:
    return run.evaluation.is_file() and run.evaluation_request.is_file()


def read_record(run: RunDirectory) -> EvaluationRecord:
    """Read ``evaluate.json``, of schema 1 too. Raises NothingToRank where it is missing or damaged."""
    path = run.evaluation_request
    try:
        document = json.loads(path.read_bytes())
        return EvaluationRecord.model_validate(_upgraded(document) if document["schema_version"] == 1 else document)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as fault:
        raise NothingToRank("its record can't be read", where=str(path), remedy=_remedy(run)) from fault


def read_rows(run: RunDirectory, record: EvaluationRecord) -> tuple[list[MeasuredLoss], list[int]]:
    """Read the rows, and the numbers of the lines that can't be read.

    A last line that was cut off is left out. So is a row of schema 1 whose name doesn't say which checkpoint it was.
    Raises NothingToRank where the file has other columns.
    """
    try:
        lines = run.evaluation.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
    except OSError as fault:
        raise NothingToRank("its losses can't be read", where=str(run.evaluation), remedy=_remedy(run)) from fault
    columns = tuple(lines[0].strip().split(",")) if lines else ()
    if columns not in (COLUMNS, _OLD_COLUMNS):
        raise NothingToRank("its columns are others", where=str(run.evaluation), remedy=_remedy(run))
    rows, damaged = [], []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(_row(next(csv.reader([line])), None if columns == COLUMNS else record))
        except (ValueError, csv.Error):
            damaged.append(number)
    return (rows if columns == COLUMNS else _unambiguous(rows)), damaged


def read_evaluation(run: RunDirectory) -> Evaluation:
    """Read what the run's last evaluation measured, finished or not. Raises NothingToRank when there is nothing whole.

    Each file is hashed: one that was overwritten since is not what was measured.
    """
    if not has_evaluation(run):
        raise NothingToRank("this run was not evaluated", where=str(run.path), remedy=_remedy(run))
    record = read_record(run)
    rows, damaged = read_rows(run, record)
    found = _losses_by_id(record, {row.key: row.loss for row in rows})
    _check_base(found.get(BASE), run)
    broken = {id_ for id_, losses in found.items() if not np.isfinite(losses).all()}
    saved = [one for one in record.checkpoints if one.step is not None]
    overwritten = {one.id for one in saved if one.id in found and _is_another(run.output_dir / one.name, one.id)}
    sound = [one for one in saved if one.id in found and one.id not in broken | overwritten]
    roles = [_measured(record, role, sound, found, broken) for role in ("heldout", "trained")]
    return Evaluation(
        candidates=tuple(Candidate(one.step or 0, run.output_dir / one.name, sha256=one.id) for one in sound),
        heldout=roles[0],
        trained=roles[1],
        timesteps=tuple(record.timesteps),
        unfinished=tuple(one.name for one in saved if one.id not in found),
        broken=tuple(one.name for one in record.checkpoints if one.id in broken),
        overwritten=tuple(one.name for one in saved if one.id in overwritten),
        damaged=_lines(damaged),
        source=str(run.evaluation),
    )


def _remedy(run: RunDirectory) -> str:
    return f"measure it: spyke-kohya evaluate {run.path}"


def _upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """Give a record of schema 1, which knew a checkpoint by its file's bare name, the ids of schema 2.

    A name that several checkpoints share means none of them.
    """
    output_dir, known = Path(document["out"]).parents[2], document["known"]
    shared = Counter(name for name, _ in {(one["name"], one["sha256"]) for one in document["checkpoints"]})
    return {
        **document,
        "schema_version": SCHEMA_VERSION,
        "checkpoints": [
            {
                "name": name_in(output_dir, Path(one["path"])) if one["path"] else one["name"],
                "id": one["sha256"] or one["name"],
                "step": one["step"],
            }
            for one in document["checkpoints"]
        ],
        "pictures": [{**one, "id": picture_id(one)} for one in document["pictures"]],
        "checkpoint_ids": {name: id_ or name for name, id_ in known["checkpoints"].items() if shared[name] < 2},
        "picture_ids": {
            name: picture_id(dict(zip(_PREPARED, prepared, strict=False)))
            for name, prepared in known["pictures"].items()
        },
    }


def _row(cells: Sequence[str], record: EvaluationRecord | None) -> MeasuredLoss:
    checkpoint, image, group, timestep, replicate, loss, *ids = cells
    if record:
        ids = [record.checkpoint_ids.get(checkpoint, ""), record.picture_ids.get(image, "")]
    checkpoint_id, picture = ids
    return MeasuredLoss(checkpoint, image, group, int(timestep), int(replicate), float(loss), checkpoint_id, picture)


def _unambiguous(rows: Sequence[MeasuredLoss]) -> list[MeasuredLoss]:
    """Leave out the rows that mean nobody, and those that contradict each other."""
    losses = Counter(key for key, _ in {(row.key, row.loss) for row in rows})
    return [row for row in rows if row.checkpoint_id and row.picture_id and losses[row.key] == 1]


def _losses_by_id(record: EvaluationRecord, table: Mapping[_Key, float]) -> dict[str, FloatArray]:
    """Return the losses (pictures, cells) of each checkpoint that has all of them."""
    cells = [(timestep, replicate) for replicate in range(record.replicates) for timestep in record.timesteps]
    found = {}
    for one in record.checkpoints:
        values = [[table.get((one.id, picture.id, *cell)) for cell in cells] for picture in record.pictures]
        if not any(None in row for row in values):
            found[one.id] = np.array(values, dtype=np.float64)
    return found


def _check_base(base: FloatArray | None, run: RunDirectory) -> None:
    if base is None:
        raise NothingToRank(
            "the evaluation has not got through the base model yet",
            where=str(run.evaluation),
            remedy=f"go on with it: spyke-kohya evaluate {run.path}",
        )
    if not (np.isfinite(base) & (base > 0)).all():
        raise NothingToRank(
            "a loss of the base model is not a number above 0",
            where=str(run.evaluation),
            remedy=f"remove the rows of {BASE} there; then spyke-kohya evaluate {run.path}",
        )


def _is_another(file: Path, sha256: str) -> bool:
    """Tell whether a file is there and is not the one with this hash, as far as it can be read."""
    try:
        return file.is_file() and sha256_of(file) != sha256
    except OSError:
        return True


def _lines(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _LINES_SHOWN} more" if len(numbers) > _LINES_SHOWN else ""
    shown = ", ".join(map(str, numbers[:_LINES_SHOWN]))
    return f"line{'s' * (len(numbers) > 1)} {shown}{more}" if numbers else ""


def _measured(
    record: EvaluationRecord,
    role: str,
    sound: Sequence[EvaluatedCheckpoint],
    found: Mapping[str, FloatArray],
    broken: set[str],
) -> Measured | None:
    mine = [index for index, picture in enumerate(record.pictures) if picture.role == role]
    if not mine:
        return None
    base, again = found[BASE], None if BASE_AGAIN in broken else found.get(BASE_AGAIN)
    names = list(dict.fromkeys(record.pictures[index].group for index in mine))
    return Measured(
        losses=np.array([found[one.id][mine] for one in sound]).reshape(-1, len(mine), base.shape[1]),
        base=base[mine],
        base_again=None if again is None else again[mine],
        groups=tuple(names.index(record.pictures[index].group) for index in mine),
    )
