"""What a run has saved so far: each checkpoint is read as soon as it is whole, and given its true step and name.

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
from spyke_kohya.engine.filenames import CHECKPOINT_SUFFIXES, FileName, parse_file_name, step_file
from spyke_kohya.engine.states import checkpoint_beside, epoch_of_state
from spyke_kohya.record.record import SavedCheckpoint, SavedState
from spyke_kohya.run.inspection import inspect
from spyke_kohya.run.launch import Launch

_Stamp = tuple[int, int, int]


class Ledger:
    """Folds the console's events into ``checkpoints``, in step order, and ``states``, oldest first."""

    def __init__(self, launch: Launch) -> None:
        preset = launch.preset.training
        assert preset is not None
        self._launch = launch
        self._name = str(preset.options["output_name"])
        self._extension = f".{preset.effective_options['save_model_as']}"
        self._waiting: list[CheckpointAnnounced] = []
        self._saved: dict[Path, SavedCheckpoint] = {}
        self._asides: set[Path] = set()
        self._stood = {file: _stamp(file) for file in self._files()}
        self.states: list[SavedState] = list(launch.segment.states) if launch.segment else []

    @property
    def checkpoints(self) -> list[SavedCheckpoint]:
        earlier = self._launch.segment.checkpoints if self._launch.segment else ()
        return sorted([*earlier, *self._saved.values()], key=lambda saved: saved.step)

    @property
    def fresh(self) -> list[SavedCheckpoint]:
        """Those of this run alone."""
        return list(self._saved.values())

    def take(self, event: Event) -> bool:
        """Take one event. Whether something was saved that should be recorded now.

        Whatever sd-scripts says next, but for a warning, it says after the file that it announced is written.
        """
        if isinstance(event, EngineWarning | EngineFault):
            return False
        changed = self._settle()
        match event:
            case CheckpointAnnounced():
                self._waiting.append(event)
            case CheckpointRemoved(path):
                changed = self._forget(self._launch.root / path) or changed
            case StateSaved(path):
                changed = self._keep_state(self._launch.root / path) or changed
        return changed

    def finish(self) -> bool:
        """Read what was announced last, and any file of the plan whose announcement was missed."""
        changed = self._settle()
        for file in self._files():
            if file not in self._saved and file not in self._asides and _stamp(file) != self._stood.get(file):
                changed = self._read(file, 0) or changed
        self._drop_first_names()
        return changed

    def true_name(self, path: str) -> str:
        """The name in the output directory of what a resumed run announces under its own."""
        file = self._launch.root / path
        named = self._parsed(file)
        if named and named.kind == "step":
            return step_file(self._name, self._true_step(file, 0), file.suffix)
        return file.name

    def _files(self) -> list[Path]:
        """The network files of this name where the engine saves."""
        folder = self._launch.engine_output_dir
        files = [file for suffix in CHECKPOINT_SUFFIXES for file in folder.glob(f"*{suffix}")]
        return [file for file in files if (named := self._parsed(file)) and named.output_name == self._name]

    def _settle(self) -> bool:
        waiting, self._waiting = self._waiting, []
        read = [self._read(self._launch.root / event.path, event.after_step) for event in waiting]
        return any(read)

    def _read(self, file: Path, after_step: int) -> bool:
        """Read one file that this run has written; an older one of the same name is none of it."""
        if not file.exists() or _stamp(file) == self._stood.get(file):
            return False
        step = self._true_step(file, after_step)
        inspection = inspect(file)
        found = SavedCheckpoint(step, file.name, inspection.size_bytes, inspection.sha256, inspection.problem)
        self._saved[file] = self._named_truly(file, found) if self._launch.segment else found
        return True

    def _parsed(self, file: Path) -> FileName | None:
        """The file's name as sd-scripts means it: an output name may itself end like an epoch."""
        return FileName(self._name, "final", None) if file.stem == self._name else parse_file_name(file.name)

    def _true_step(self, file: Path, after_step: int) -> int:
        """The name tells more than the bar, which leaves out what comes within a tenth of a second."""
        plan, named = self._launch.plan, self._parsed(file)
        match named:
            case FileName(kind="step", number=int(number)):
                return number + self._launch.steps_before
            case FileName(kind="epoch", number=int(number)):
                return number * plan.steps_per_epoch
            case FileName(kind="final"):
                return plan.total_steps
        return after_step + self._launch.steps_before

    def _named_truly(self, file: Path, found: SavedCheckpoint) -> SavedCheckpoint:
        """Give a resumed run's file its true name in the output directory, where nothing stands in its place."""
        named = self._parsed(file)
        is_epoch = named is not None and named.kind == "epoch"
        goes_with_state = is_epoch and self._launch.plan.states.epoch_files_unasked
        name = self.true_name(str(file))
        if found.problem or goes_with_state or not _link(file, self._launch.output_dir / name):
            return replace(found, file=str(file.relative_to(self._launch.output_dir)))
        return replace(found, file=name)

    def _forget(self, file: Path) -> bool:
        """sd-scripts has removed an old checkpoint (save_last_n_steps): so goes its true name."""
        gone = self._saved.pop(file, None)
        if gone and self._launch.segment:
            with suppress(OSError):
                (self._launch.output_dir / gone.file).unlink()
        return gone is not None

    def _keep_state(self, state: Path) -> bool:
        """Note a state at an epoch's end; what came along unasked is put inside it, or removed."""
        epoch, saving = epoch_of_state(state, self._name), self._launch.plan.states
        if epoch is None:
            if saving.other_states_unasked:
                shutil.rmtree(state, ignore_errors=True)
            return False
        beside = checkpoint_beside(state, self._name, epoch, self._extension)
        if saving.epoch_files_unasked and beside in self._saved:
            del self._saved[beside]
            self._put_inside(beside, state)
        step = epoch * self._launch.plan.steps_per_epoch
        self.states.append(SavedState(epoch, step, str(state)))
        return True

    def _put_inside(self, checkpoint: Path, state: Path) -> None:
        """The epoch's checkpoint goes with its state: sd-scripts removes both together when the state is old."""
        self._asides.add(checkpoint)
        with suppress(OSError):
            checkpoint.replace(state / checkpoint.name)

    def _drop_first_names(self) -> None:
        """At the end a resumed run's files keep their true names only."""
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
