"""Which checkpoint of a training is shipped, and what is on record about it. Nothing is copied here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.engine.command import expand_home
from spyke_kohya.errors import NothingToRank
from spyke_kohya.rank.checkpoints import find_checkpoints
from spyke_kohya.rank.directory import HeldoutResult, RankResult, rank_best
from spyke_kohya.record.record import Record, read_record
from spyke_kohya.record.rundir import RunDirectory


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
    """The first checkpoint of the test order in an output or run directory, or that of ``step``.

    ``name`` is what it will be called; else [deploy] name, else the output_name. Raises NothingToRank.
    """
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
        name=name or (document.deploy and document.deploy.name) or output_name,
        step=chosen.step if step is None else step,
        run=result.run_dir,
        output_name=output_name,
        trigger=document.expect.trigger,
        verdict=result.ranking.verdict,
        base=_base_of(record),
    )


def place_on_record(directory: Path) -> str | None:
    """[deploy] to of the preset that a directory's newest run was started with."""
    deploy = _record_of(rank_best(directory).run_dir).preset.document.deploy
    return deploy.to if deploy else None


def _record_of(run: Path | None) -> Record:
    return read_record(RunDirectory(run), or_raise=NothingToRank) if run else Record()


def _file_of(result: RankResult | HeldoutResult, step: int) -> Path:
    found = find_checkpoints(result.directory, _record_of(result.run_dir).output_name)
    files = [one.file for one in found if one.readable and one.step == step]
    if not files:
        steps = sorted({one.step for one in found if one.readable and one.step is not None})
        remedy = f"there are: {', '.join(map(str, steps))}"
        raise NothingToRank(f"no checkpoint of step {step}", where=str(result.directory), remedy=remedy)
    return files[0]


def _base_of(record: Record) -> Path | None:
    base = record.settings.get("pretrained_model_name_or_path")
    if not isinstance(base, str):
        return None
    path = Path(record.cwd or ".") / str(expand_home("pretrained_model_name_or_path", base))
    return path if path.exists() else None
