"""Choose which checkpoint of a training is deployed, and find its record. Nothing is copied here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.engine.command import path_option
from spyke_kohya.errors import DeployError, NothingToRank, UsageError
from spyke_kohya.presets.training import lora_name
from spyke_kohya.rank.checkpoints import find_checkpoints, recorded
from spyke_kohya.rank.directory import RankResult, rank_best
from spyke_kohya.record.record import Record, read_record
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
    record = _record_of(result.run_dir)
    chosen = result.ranking.test_order[0].candidate
    file = chosen.file if step is None else _file_of(result, step)
    if file is None:
        raise NothingToRank("no checkpoint file is here", where=str(result.directory))
    output_name = record.output_name or file.stem.partition("-step")[0]
    document = record.preset.document
    return Shipment(
        checkpoint=file,
        name=name or _recorded_name(document.deploy.name, output_name),
        step=chosen.step if step is None else step,
        run=result.run_dir,
        output_name=output_name,
        trigger=document.expect.trigger,
        verdict=result.ranking.verdict,
        base=_base_of(record),
    )


def place_on_record(directory: Path) -> str | None:
    """Return [deploy] to of the preset that a run, or the newest run of an output directory, was started with."""
    runs = [RunDirectory(directory), *runs_under(directory)]
    return _record_of(next((run.path for run in runs if run.record.is_file()), None)).preset.document.deploy.to


def check_name(name: str) -> str:
    """Return the name that a person gave a LoRA. Raises UsageError where it is no plain file's name."""
    try:
        return lora_name(name)
    except ValueError as fault:
        raise UsageError(f"--name {name!r}: {fault}", remedy="choose another --name") from fault


def _recorded_name(named: str | None, output_name: str) -> str:
    name, where = (output_name, "output_name") if named is None else (named, "[deploy] name")
    try:
        return lora_name(name)
    except ValueError as fault:
        raise DeployError(f"{where} is {name!r}: {fault}", remedy="give it another name with --name") from fault


def _record_of(run_dir: Path | None) -> Record:
    run = RunDirectory(run_dir) if run_dir else None
    return read_record(run, or_raise=NothingToRank) if run and run.record.exists() else Record()


def _file_of(result: RankResult, step: int) -> Path:
    record = _record_of(result.run_dir)
    found = recorded(find_checkpoints(result.directory, record.output_name), record, result.directory)
    files = [one.file for one in found if one.readable and one.step == step]
    if not files:
        steps = sorted({one.step for one in found if one.readable and one.step is not None})
        remedy = f"there are: {', '.join(map(str, steps))}"
        raise NothingToRank(f"no checkpoint of step {step}", where=str(result.directory), remedy=remedy)
    return files[0]


def _base_of(record: Record) -> Path | None:
    if not isinstance(record.settings.get("pretrained_model_name_or_path"), str):
        return None
    path = path_option(record.settings, "pretrained_model_name_or_path", Path(record.cwd or "."))
    return path if path.exists() else None
