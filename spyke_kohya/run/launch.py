"""Decide what a run will be started with, before anything happens: the locked command and all its files."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import toml

from spyke_kohya.engine.command import (
    LaunchFiles,
    LockedCommand,
    accelerate_config,
    expand_tilde,
    lock_command,
    path_option,
)
from spyke_kohya.engine.filenames import step_file
from spyke_kohya.engine.release import Engine
from spyke_kohya.engine.schedule import PlannedCheckpoint, Saving, checkpoints
from spyke_kohya.engine.targets import Target
from spyke_kohya.findings import Finding
from spyke_kohya.plan.plan import Plan, saving_of
from spyke_kohya.presets.loading import Loaded
from spyke_kohya.record.record import SavedCheckpoint, SavedState
from spyke_kohya.record.rundir import RunDirectory, not_before
from spyke_kohya.run.numbering import Numbering


@dataclass(frozen=True)
class Segment:
    """Where a resumed run goes on: after ``step`` steps, ``epoch`` whole epochs, from ``state``.

    ``earlier`` is the directory of the run before, ``checkpoints`` and ``states`` all that is on record up to now, and
    ``steps_lost`` the steps after the state that have to be trained again. Paths are absolute.
    """

    earlier: RunDirectory
    state: Path
    epoch: int
    step: int
    steps_lost: int
    checkpoints: tuple[SavedCheckpoint, ...] = ()
    states: tuple[SavedState, ...] = ()

    @property
    def in_words(self) -> str:
        lost = f"; the {self.steps_lost} steps after it are trained again" if self.steps_lost else ""
        return f"resuming {self.earlier.path.name} at step {self.step}, the end of epoch {self.epoch}{lost}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.earlier.path.name,
            "state": str(self.state),
            "epoch": self.epoch,
            "step": self.step,
            "steps_lost": self.steps_lost,
        }


@dataclass(frozen=True)
class Launch:
    """One run, ready to start. ``files`` maps the names of files in the run directory to their content.

    ``identity`` holds the hashes of all that the run depends on; ``segment`` is None but for a resumed run.
    ``findings`` are those that do not prevent the start.
    """

    preset: Loaded
    plan: Plan
    engine: Engine
    target: Target
    run: RunDirectory
    command: LockedCommand
    files: Mapping[str, str]
    root: Path
    identity: Mapping[str, str] = field(default_factory=dict)
    segment: Segment | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def output_dir(self) -> Path:
        return self.root / self.run.output_dir

    @property
    def output_name(self) -> str:
        return str(self.preset.training.options["output_name"]) if self.preset.training else ""

    @property
    def extension(self) -> str:
        """What the names of its checkpoints end with."""
        return f".{self.preset.training.effective_options['save_model_as']}" if self.preset.training else ""

    @property
    def numbering(self) -> Numbering:
        return Numbering(self.output_name, self.plan.steps_per_epoch, self.plan.total_steps, self.steps_before)

    @property
    def auto_resume(self) -> bool:
        """Whether a crashed run is resumed without asking."""
        return self.preset.training is not None and self.preset.training.launch.auto_resume

    @property
    def engine_output_dir(self) -> Path:
        """Where the engine itself saves: a resumed run numbers its files anew, so it has a place of its own."""
        return self.root / (self.run.segment if self.segment else self.run.output_dir)

    @property
    def steps_before(self) -> int:
        """Steps that were trained before this run."""
        return self.segment.step if self.segment else 0

    @property
    def checkpoints(self) -> tuple[PlannedCheckpoint, ...]:
        """The checkpoints that this run leaves if it ends well, by their true steps and names."""
        if self.segment is None:
            return self.plan.checkpoints
        saving = saving_of(self.preset.training.effective_options) if self.preset.training else Saving()
        left = checkpoints(saving, self.plan.total_steps - self.segment.step, self.plan.steps_per_epoch)
        numbers = [saved.step + self.segment.step for saved in left if saved.kind == "step"]
        steps = [PlannedCheckpoint(n, "step", step_file(saving.output_name, n, saving.extension)) for n in numbers]
        others = [saved for saved in self.plan.checkpoints if saved.kind != "step" and saved.step > self.segment.step]
        return tuple(sorted([*steps, *others], key=lambda saved: saved.step))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON shape of ``train --dry-run --json``."""
        return {
            "argv": list(self.command.argv),
            "env": dict(self.command.env),
            "env_removed": list(self.command.env_removed),
            "cwd": str(self.command.cwd),
            "run_directory": str(self.run.path),
            "files": dict(self.files),
        }


def prepare_launch(
    loaded: Loaded,
    plan: Plan,
    engine: Engine,
    *,
    root: Path,
    now: datetime,
    inherited: Mapping[str, str],
    identity: Mapping[str, str] | None = None,
    segment: Segment | None = None,
) -> Launch:
    """Lock the command of a training preset without faults. ``inherited`` is the environment it will start in.

    With a ``segment`` the run goes on from its state: ``--resume`` and ``--initial_epoch``, and no
    ``--skip_until_initial_step``, which numbers the steps wrongly and dilutes avr_loss.
    """
    preset = loaded.training
    assert preset is not None
    output_dir = path_option(preset.options, "output_dir", Path())
    run = RunDirectory.named(output_dir, str(preset.options["output_name"]), not_before(root / output_dir, now))
    options = {**preset.options, **plan.states.options}
    if segment:
        options |= {"output_dir": str(run.segment), "resume": str(segment.state), "initial_epoch": segment.epoch + 1}
    command = lock_command(
        accelerate=engine.accelerate,
        script=engine.script,
        target=preset.launch.target,
        num_cpu_threads_per_process=preset.launch.num_cpu_threads_per_process,
        options=options,
        launch_files=LaunchFiles(run.accelerate_config, run.dataset_config, run.tensorboard),
        cwd=root,
        inherited=inherited,
    )
    files = {
        run.accelerate_config.name: accelerate_config(preset.launch.target),
        run.dataset_config.name: _dataset_text(loaded),
        run.command.name: command.as_shell(),
    }
    return Launch(loaded, plan, engine, preset.launch.target, run, command, files, root, identity or {}, segment)


def _dataset_text(loaded: Loaded) -> str:
    """Return the dataset preset as it is; written anew from JSON, or with a ``~``, which sd-scripts does not expand."""
    document = deepcopy(loaded.dataset_document)
    subsets = [subset for dataset in document.get("datasets", []) for subset in dataset.get("subsets", [])]
    tilde = [subset for subset in subsets if subset["image_dir"].startswith("~")]
    for subset in tilde:
        subset["image_dir"] = expand_tilde(subset["image_dir"])
    is_toml = loaded.dataset_path is not None and loaded.dataset_path.suffix.lower() == ".toml"
    return loaded.dataset_text if is_toml and not tilde else toml.dumps(document)
