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


@dataclass(frozen=True)
class RunDirectory:
    """``OUTPUT_DIR/runs/YYYYmmdd-HHMMSS-OUTPUT_NAME``; ``path`` may be relative to the run's root."""

    path: Path

    @classmethod
    def named(cls, output_dir: Path, output_name: str, now: datetime) -> RunDirectory:
        """The directory of a run that starts now; nothing is made."""
        return cls(output_dir / RUNS / f"{now.strftime(_STAMP_FORMAT)}-{output_name}")

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def command(self) -> Path:
        return self.path / "command.sh"

    @property
    def accelerate_config(self) -> Path:
        return self.path / "accelerate.yaml"

    @property
    def dataset_config(self) -> Path:
        return self.path / "dataset.toml"

    @property
    def console(self) -> Path:
        return self.path / "console.log"

    @property
    def lock(self) -> Path:
        """The lock that a run was held to, where it was."""
        return self.path / "lock.json"

    @property
    def losses(self) -> Path:
        return self.path / "losses.csv"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def reserve(self) -> Path:
        """Bytes kept for the last record of a run that fills the disk; gone when the run has ended."""
        return self.path / ".reserve"

    @property
    def segment(self) -> Path:
        """Where sd-scripts puts what a resumed run saves: its step numbers start anew."""
        return self.path / "segment"

    @property
    def evaluation(self) -> Path:
        """Every loss that `evaluate` measured, a row each."""
        return self.path / "evaluate.csv"

    @property
    def evaluation_request(self) -> Path:
        """What was measured, on which pictures and how."""
        return self.path / "evaluate.json"

    @property
    def samples(self) -> Path:
        """The pictures that `samples` rendered."""
        return self.path / "samples"

    @property
    def contact_sheet(self) -> Path:
        """The pictures that `samples` rendered, side by side."""
        return self.path / "samples.png"

    @property
    def output_dir(self) -> Path:
        """Where sd-scripts puts the checkpoints of this run."""
        return self.path.parent.parent

    def under(self, root: Path) -> RunDirectory:
        """The same directory, seen from anywhere."""
        return RunDirectory(root / self.path)

    def create(self) -> None:
        """Make the directory. Raises PresetError when the output directory can't be written or it exists already."""
        try:
            self.path.mkdir(parents=True, exist_ok=False)
        except FileExistsError as fault:
            remedy = "wait a second and start again" if self.path.is_dir() else "move that file, or change output_dir"
            raise PresetError("there is something of this name already", where=str(self.path), remedy=remedy) from fault
        except OSError as fault:
            raise PresetError(
                f"the output directory can't be written: {fault.strerror}",
                where=str(self.output_dir),
                remedy="choose another [train_network] output_dir, or give yourself the right to write there",
            ) from fault

    def append_event(self, event: Mapping[str, Any]) -> None:
        with self.events.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event, ensure_ascii=False) + "\n")


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
    """The runs recorded under an output directory, newest first: a run's name begins with its time."""
    return [RunDirectory(path) for path in sorted((output_dir / RUNS).glob("*/"), reverse=True)]
