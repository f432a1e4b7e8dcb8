"""Follow what a run saves: each checkpoint is read as soon as it is whole, and gets its true step and name.

sd-scripts announces a checkpoint before it writes it, and numbers the steps of a resumed run from 1. So a resumed run
saves into a directory of its own, and what is whole gets a second name, the true one, in the output directory; a file
that is there already is never written over.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from spyke_kohya.engine.events import (
    CheckpointAnnounced,
    CheckpointRemoved,
    EngineFault,
    EngineWarning,
    Event,
    StateSaved,
)
from spyke_kohya.engine.filenames import CHECKPOINT_SUFFIXES
from spyke_kohya.engine.states import checkpoint_beside, epoch_of_state
from spyke_kohya.record.record import SavedCheckpoint, SavedState
from spyke_kohya.run.inspection import inspect
from spyke_kohya.run.launch import Launch

_Stamp = tuple[int, int, int]


class SavedFiles:
    """Folds the console's events into ``checkpoints``, in step order, and ``states``, oldest first."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._numbering = launch.numbering
        self._announced: list[CheckpointAnnounced] = []
        self._saved: dict[Path, SavedCheckpoint] = {}
        self._stood_before = {file: _stamp(file) for file in self._files()}
        self.states: list[SavedState] = list(launch.segment.states) if launch.segment else []

    @property
    def checkpoints(self) -> list[SavedCheckpoint]:
        earlier = self._launch.segment.checkpoints if self._launch.segment else ()
        return sorted([*earlier, *self._saved.values()], key=lambda saved: saved.step)

    @property
    def fresh(self) -> list[SavedCheckpoint]:
        """Those of this run alone."""
        return list(self._saved.values())

    def handle(self, event: Event) -> bool:
        """Follow one event, as the engine gives it. Return whether something was saved that should be recorded now.

        Whatever sd-scripts prints next, but for a warning, it prints after the file that it announced is written.
        """
        if isinstance(event, EngineWarning | EngineFault):
            return False
        changed = self._read_announced()
        match event:
            case CheckpointAnnounced():
                self._announced.append(event)
            case CheckpointRemoved(path):
                changed = self._forget(self._launch.root / path) or changed
            case StateSaved(path):
                changed = self._keep_state(self._launch.root / path) or changed
        return changed

    def end(self) -> bool:
        """Read what was announced last, and any file whose announcement was missed. Return whether there was any."""
        changed = [self._read_announced(), *(self._read(file, 0) for file in self._files() if file not in self._saved)]
        self._drop_first_names()
        return any(changed)

    def _files(self) -> list[Path]:
        """Return the network files of this name where the engine saves."""
        folder = self._launch.engine_output_dir
        files = [file for suffix in CHECKPOINT_SUFFIXES for file in folder.glob(f"*{suffix}")]
        named = [(file, self._numbering.parse(file.name)) for file in files]
        return [file for file, name in named if name and name.output_name == self._numbering.output_name]

    def _read_announced(self) -> bool:
        announced, self._announced = self._announced, []
        read = [self._read(self._launch.root / event.path, event.after_step) for event in announced]
        return any(read)

    def _read(self, file: Path, after_step: int) -> bool:
        """Read one file that this run has written; an older file of the same name does not count."""
        if not file.exists() or _stamp(file) == self._stood_before.get(file):
            return False
        step = self._numbering.true_step(file.name, after_step)
        seen = inspect(file)
        found = SavedCheckpoint(step, file.name, seen.size_bytes, seen.sha256, seen.problem)
        self._saved[file] = self._named_truly(file, found) if self._launch.segment else found
        return True

    def _named_truly(self, file: Path, found: SavedCheckpoint) -> SavedCheckpoint:
        """Give a resumed run's file its true name in the output directory, where nothing stands in its place."""
        named = self._numbering.parse(file.name)
        is_epoch = named is not None and named.kind == "epoch"
        goes_with_state = is_epoch and self._launch.plan.states.epoch_files_unasked
        name = self._numbering.true_name(file.name)
        if found.problem or goes_with_state or not _link(file, self._launch.output_dir / name):
            return replace(found, file=str(file.relative_to(self._launch.output_dir)))
        return replace(found, file=name)

    def _forget(self, file: Path) -> bool:
        """Remove the true name of a checkpoint that sd-scripts has removed (save_last_n_steps)."""
        gone = self._saved.pop(file, None)
        if gone and self._launch.segment:
            with suppress(OSError):
                (self._launch.output_dir / gone.file).unlink()
        return gone is not None

    def _keep_state(self, state: Path) -> bool:
        """Note a state at an epoch's end. An unasked state is removed, an unasked checkpoint moved into its state."""
        launch, name = self._launch, self._numbering.output_name
        epoch, saving = epoch_of_state(state, name), launch.plan.states
        if epoch is None:
            if saving.other_states_unasked:
                shutil.rmtree(state, ignore_errors=True)
            return False
        beside = checkpoint_beside(state, name, epoch, launch.extension)
        if saving.epoch_files_unasked and beside in self._saved:
            with suppress(OSError):
                beside.replace(state / beside.name)
                del self._saved[beside]
        self.states.append(SavedState(epoch, epoch * launch.plan.steps_per_epoch, str(state)))
        return True

    def _drop_first_names(self) -> None:
        """Remove the first names of a resumed run's files: they keep their true names."""
        for file, saved in self._saved.items():
            true_name = self._launch.output_dir / saved.file
            if true_name != file and true_name.is_file():
                with suppress(OSError):
                    file.unlink()


def _stamp(file: Path) -> _Stamp | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _link(file: Path, target: Path) -> bool:
    """Give ``file`` a second name, or copy it where the file system has no links. Never writes over anything."""
    try:
        os.link(file, target)
    except FileExistsError:
        return False
    except OSError:
        try:
            with file.open("rb") as source, target.open("xb") as copy:
                shutil.copyfileobj(source, copy)
        except OSError:
            return False
    return True
