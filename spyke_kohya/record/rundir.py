"""A run directory: the one place that knows the names of the files that record a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from spyke_kohya.errors import PresetError

RUNS = "runs"
_STAMP_FORMAT = "%Y%m%d-%H%M%S"
_STAMP = re.compile(r"\d{8}-\d{6}")


class _Inside:
    """A file or a folder of a run directory, by its name there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunDirectory, _: type[RunDirectory]) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunDirectory:
    """``OUTPUT_DIR/runs/YYYYmmdd-HHMMSS-OUTPUT_NAME``; ``path`` may be relative to the run's root."""

    path: Path

    record = _Inside("run.json")
    command = _Inside("command.sh")
    accelerate_config = _Inside("accelerate.yaml")
    dataset_config = _Inside("dataset.toml")
    console = _Inside("console.log")
    lock = _Inside("lock.json")  # the lock that a run was held to, where it was
    losses = _Inside("losses.csv")
    events = _Inside("events.jsonl")
    tensorboard = _Inside("tensorboard")
    reserve = _Inside(".reserve")  # bytes kept for the last record of a run that fills the disk, until the run ends
    segment = _Inside("segment")  # where sd-scripts saves what a resumed run saves: its step numbers start anew
    evaluation = _Inside("evaluate.csv")  # every loss that `evaluate` measured, a row each
    evaluation_request = _Inside("evaluate.json")  # what was measured, on which pictures and how
    samples = _Inside("samples")  # the pictures that `samples` rendered
    contact_sheet = _Inside("samples.png")  # the same pictures, side by side

    @classmethod
    def named(cls, output_dir: Path, output_name: str, now: datetime) -> RunDirectory:
        """Return the directory of a run that starts now; nothing is made."""
        return cls(output_dir / RUNS / f"{now.strftime(_STAMP_FORMAT)}-{output_name}")

    @property
    def output_dir(self) -> Path:
        """Where sd-scripts puts the checkpoints of this run."""
        return self.path.parent.parent

    def under(self, root: Path) -> RunDirectory:
        """Return the same directory, as an absolute path where ``root`` is one."""
        return RunDirectory(root / self.path)

    def create(self) -> None:
        """Make the directory. Raises PresetError when the output directory can't be written or it exists already."""
        try:
            self.path.mkdir(parents=True, exist_ok=False)
        except FileExistsError as fault:
            remedy = "wait a second and start again" if self.path.is_dir() else "move that file, or change output_dir"
            raise PresetError("there is something of this name already", where=str(self.path), remedy=remedy) from fault
        except OSError as fault:
            raise unwritable(self.output_dir, fault) from fault

    def append_event(self, event: Mapping[str, Any]) -> None:
        with self.events.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event, ensure_ascii=False) + "\n")


def unwritable(output_dir: Path, fault: OSError) -> PresetError:
    """Return the error of an output directory that can't be written."""
    return PresetError(
        f"the output directory can't be written: {fault.strerror}",
        where=str(output_dir),
        remedy="choose another [train_network] output_dir, or give yourself the right to write there",
    )


def not_before(output_dir: Path, now: datetime) -> datetime:
    """Return ``now``, or a second after the newest run where the clock has gone back: the names stay in order."""
    newest = next((moment for run in runs_under(output_dir) if (moment := _stamp_of(run))), None)
    try:
        return max(now, newest + timedelta(seconds=1)) if newest else now
    except OverflowError:  # no year comes after 9999
        return now


def _stamp_of(run: RunDirectory) -> datetime | None:
    """Return when a run began by its name; None where that is no time, such as the 30th of February."""
    stamp = run.path.name[:15]
    try:
        return datetime.strptime(stamp, _STAMP_FORMAT) if _STAMP.fullmatch(stamp) else None
    except ValueError:
        return None


def runs_under(output_dir: Path) -> list[RunDirectory]:
    """Return the runs recorded under an output directory, newest first: a run's name begins with its time."""
    return [RunDirectory(path) for path in sorted((output_dir / RUNS).glob("*/"), reverse=True)]
