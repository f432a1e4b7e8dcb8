"""A run directory: the one place that knows the names of the files that record a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from spyke_kohya.errors import PresetError

SCHEMA_VERSION = 1
RUNS = "runs"


@dataclass(frozen=True)
class RunDirectory:
    """``OUTPUT_DIR/runs/YYYYmmdd-HHMMSS-OUTPUT_NAME``; ``path`` may be relative to the run's root."""

    path: Path

    @classmethod
    def named(cls, output_dir: Path, output_name: str, now: datetime) -> RunDirectory:
        """The directory of a run that starts now; nothing is made."""
        return cls(output_dir / RUNS / f"{now:%Y%m%d-%H%M%S}-{output_name}")

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
    def losses(self) -> Path:
        return self.path / "losses.csv"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

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
        """The pictures that `samples` rendered, and their contact sheet."""
        return self.path / "samples"

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
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)

    def write_record(self, record: Mapping[str, Any]) -> None:
        self.write_text(self.record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def read_record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        return record

    def append_event(self, event: Mapping[str, Any]) -> None:
        with self.events.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event, ensure_ascii=False) + "\n")


def runs_under(output_dir: Path) -> list[RunDirectory]:
    """The runs recorded under an output directory, newest first: a run's name begins with its time."""
    return [RunDirectory(path) for path in sorted((output_dir / RUNS).glob("*/"), reverse=True)]
