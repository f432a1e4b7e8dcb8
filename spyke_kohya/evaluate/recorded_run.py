"""The run that is evaluated: its checkpoints, and what its record says of the base, the options and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toml

from spyke_kohya.engine.targets import Target
from spyke_kohya.errors import NothingToRank, UsageError
from spyke_kohya.presets.dataset import parse_dataset_config
from spyke_kohya.presets.resolved import ResolvedDataset, resolve
from spyke_kohya.rank.checkpoints import OVERWRITTEN, FoundCheckpoint, find_checkpoints, one_per_step, place, recorded
from spyke_kohya.rank.directory import find_run
from spyke_kohya.rank.result import Candidate
from spyke_kohya.record.record import Record, read_record
from spyke_kohya.record.rundir import RunDirectory


@dataclass(frozen=True)
class RecordedRun:
    """A recorded run. ``root`` is the directory that its relative paths start from; ``settings`` are the options of
    train_network.py that were in force; ``candidates`` its checkpoints, one a step, each with a file.

    ``overwritten`` are files that are not the run's own any more.
    """

    run: RunDirectory
    root: Path
    record: Record
    settings: Mapping[str, Any]
    target: Target
    candidates: tuple[Candidate, ...]
    datasets: tuple[ResolvedDataset, ...]
    overwritten: tuple[Path, ...] = ()

    @property
    def heldout_dir(self) -> Path | None:
        """The folder of held-out pictures that the run's preset named."""
        named = self.record.evaluate.heldout_dir
        return self.root / Path(named).expanduser() if named else None

    @property
    def engine_dir(self) -> Path | None:
        """The engine that trained this run, where it is still there."""
        named = self.record.engine.directory
        directory = Path(named).expanduser() if named else None
        return directory if directory and directory.is_dir() else None

    @property
    def base(self) -> Path:
        return self.path_in("pretrained_model_name_or_path") or Path()

    def path_in(self, option: str) -> Path | None:
        """Return the path that an option names, from anywhere; None where it isn't set."""
        value = self.settings.get(option)
        return self.root / Path(str(value)).expanduser() if value else None


def read_recorded_run(directory: Path, name: str | None = None) -> RecordedRun:
    """Return the run of a run directory, or the newest one of an output directory (of the training ``name``).

    Raises UsageError when there is none or its record can't be used, NothingToRank when it left no checkpoint.
    """
    run = find_run(directory.absolute(), name)
    if run is None:
        raise UsageError(
            "no recorded run here",
            where=str(directory),
            remedy="give a run directory, or the output directory of a run that spyke-kohya started",
        )
    record = read_record(run, or_raise=UsageError)
    found = find_checkpoints(run.output_dir, name or record.output_name)
    found = recorded(found, record, run.output_dir)
    overwritten = tuple(one.file for one in found if one.problem == OVERWRITTEN)
    steps = one_per_step(place(found, record.plan.steps_per_epoch, record.plan.total_steps))
    candidates = tuple(one for one in steps if one.file)
    if not candidates:
        why = f"; {OVERWRITTEN}: {', '.join(file.name for file in overwritten)}" if overwritten else ""
        raise NothingToRank(f"no readable checkpoint of this run{why}", where=str(run.output_dir))
    return RecordedRun(
        run=run,
        root=Path(record.cwd or run.output_dir),
        record=record,
        settings={**record.settings, **_from_metadata(found)},
        target=record.target or "cpu",
        candidates=candidates,
        datasets=_read_datasets(run, record.settings),
        overwritten=overwritten,
    )


def _from_metadata(found: list[FoundCheckpoint]) -> dict[str, Any]:
    """Return what the checkpoints themselves say of how their loss is to be measured; it wins over the record."""
    facts = next((one.facts for one in reversed(found) if one.readable), None)
    names = ("clip_skip", "v2", "v_parameterization")
    said = {name: getattr(facts, name) for name in names} if facts else {}
    return {name: value for name, value in said.items() if value is not None}


def _read_datasets(run: RunDirectory, settings: Mapping[str, Any]) -> tuple[ResolvedDataset, ...]:
    try:
        document = toml.loads(run.dataset_config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UsageError(f"the run's dataset can't be read: {fault}", where=str(run.dataset_config)) from fault
    config, _ = parse_dataset_config(document, run.dataset_config.name)
    datasets, _ = resolve(config, settings) if config else (None, [])
    if not datasets:
        raise UsageError("the run's dataset can't be read: it has faults", where=str(run.dataset_config))
    return datasets
