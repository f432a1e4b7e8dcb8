"""A run directory: the one place that knows the names of the files that record a run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from spyke_kohya.errors import PresetError
from spyke_kohya.record.redact import restored

SCHEMA_VERSION = 1
RUNS = "runs"
_STAMP_FORMAT = "%Y%m%d-%H%M%S"
_STAMP = re.compile(r"20\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])-([01]\d|2[0-3])[0-5]\d[0-5]\d")


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

    def write_text(self, file: Path, text: str) -> None:
        """Write a file so that a reader sees the old or the new one, whole."""
        beside = file.with_name(f".{file.name}.new")
        try:
            with beside.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(file)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def write_record(self, record: Mapping[str, Any]) -> None:
        self.write_text(self.record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def read_record(self) -> dict[str, Any]:
        """``run.json``, with this machine's home directory where a recorded path begins with ``~``."""
        record: dict[str, Any] = restored(json.loads(self.record.read_text(encoding="utf-8")), Path.home())
        return record

    def append_event(self, event: Mapping[str, Any]) -> None:
        with self.events.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event, ensure_ascii=False) + "\n")


def not_before(output_dir: Path, now: datetime) -> datetime:
    """``now``, or a second after the newest run here where the clock has gone back: the names stay in order."""
    stamps = (run.path.name[:15] for run in runs_under(output_dir))
    newest = next((stamp for stamp in stamps if _STAMP.fullmatch(stamp)), None)
    after = datetime.strptime(newest, _STAMP_FORMAT) + timedelta(seconds=1) if newest else now
    return max(now, after)


def runs_under(output_dir: Path) -> list[RunDirectory]:
    """The runs recorded under an output directory, newest first: a run's name begins with its time."""
    return [RunDirectory(path) for path in sorted((output_dir / RUNS).glob("*/"), reverse=True)]
