"""Which checkpoint of a training is shipped, and what is on record about it. Nothing is copied here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.engine.command import expand_home
from spyke_kohya.errors import DeployError, NothingToRank, UsageError
from spyke_kohya.presets.training import lora_name
from spyke_kohya.rank.checkpoints import find_checkpoints, recorded
from spyke_kohya.rank.directory import RankResult, rank_best
from spyke_kohya.record.rundir import RunDirectory, runs_under


@dataclass(frozen=True)
class Shipment:
    """A checkpoint to deploy and what is known of it; ``base`` is the model it was trained on, where recorded."""

    checkpoint: Path
    name: str
    step: int | None
    run: Path | None = None
    output_name: str = ""
    trigger: str | None = None
    verdict: str = ""
    base: Path | None = None


def choose(directory: Path, *, step: int | None = None, name: str | None = None) -> Shipment:
    """Return the first checkpoint of the test order in an output or run directory, or that of ``step``.

    ``name`` is what it will be called; else [deploy] name, else the output_name. Raises NothingToRank, and UsageError
    or DeployError for a name that no LoRA can have.
    """
    if name is not None:
        check_name(name)
    result = rank_best(directory)
    record = record_of(result.run_dir)
    chosen = result.ranking.test_order[0].candidate
    file = chosen.file if step is None else _file_of(result, step)
    if file is None:
        raise NothingToRank("no checkpoint file is here", where=str(result.directory))
    output_name = str(record.get("output_name") or file.stem.partition("-step")[0])
    document = _table(_table(record, "preset"), "document")
    return Shipment(
        checkpoint=file,
        name=name or _recorded_name(document, output_name),
        step=chosen.step if step is None else step,
        run=result.run_dir,
        output_name=output_name,
        trigger=_table(document, "expect").get("trigger"),
        verdict=result.ranking.verdict,
        base=_base_of(record),
    )


def place_on_record(directory: Path) -> str | None:
    """Return [deploy] to of the preset that a run, or the newest run of an output directory, was started with."""
    runs = [RunDirectory(directory), *runs_under(directory)]
    record = record_of(next((run.path for run in runs if run.record.is_file()), None))
    to = _table(_table(_table(record, "preset"), "document"), "deploy").get("to")
    return to if isinstance(to, str) else None


def check_name(name: str) -> str:
    """Return the name that a person gave a LoRA. Raises UsageError where it is no plain file's name."""
    try:
        return lora_name(name)
    except ValueError as fault:
        raise UsageError(f"--name {name!r}: {fault}", remedy="choose another --name") from fault


def _recorded_name(document: Mapping[str, Any], output_name: str) -> str:
    named = _table(document, "deploy").get("name")
    name, where = (output_name, "output_name") if named is None else (str(named), "[deploy] name")
    try:
        return lora_name(name)
    except ValueError as fault:
        raise DeployError(f"{where} is {name!r}: {fault}", remedy="give it another name with --name") from fault


def record_of(run: Path | None) -> dict[str, Any]:
    """A run's record, empty where there is none. Raises NothingToRank where it can't be read."""
    if run is None or not RunDirectory(run).record.is_file():
        return {}
    try:
        return RunDirectory(run).read_record()
    except json.JSONDecodeError as fault:
        raise NothingToRank(f"this run's record is not JSON: {fault}", where=str(run)) from fault


def _file_of(result: RankResult, step: int) -> Path:
    record = record_of(result.run_dir)
    found = recorded(find_checkpoints(result.directory, record.get("output_name")), record, result.directory)
    files = [one.file for one in found if one.readable and one.step == step]
    if not files:
        steps = sorted({one.step for one in found if one.readable and one.step is not None})
        remedy = f"there are: {', '.join(map(str, steps))}"
        raise NothingToRank(f"no checkpoint of step {step}", where=str(result.directory), remedy=remedy)
    return files[0]


def _base_of(record: Mapping[str, Any]) -> Path | None:
    base = _table(record, "settings").get("pretrained_model_name_or_path")
    if not isinstance(base, str):
        return None
    path = Path(str(record.get("cwd", "."))) / str(expand_home("pretrained_model_name_or_path", base))
    return path if path.exists() else None


def _table(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}
