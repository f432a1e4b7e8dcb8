"""What a run will be started with: the locked command and every file it is given, decided before anything happens."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import toml

from spyke_kohya.engine.command import (
    LaunchFiles,
    LockedCommand,
    accelerate_config,
    expand_home,
    expand_tilde,
    lock_command,
)
from spyke_kohya.engine.release import Engine
from spyke_kohya.engine.targets import Target
from spyke_kohya.plan import Plan
from spyke_kohya.presets.loading import Loaded
from spyke_kohya.run.rundir import RunDirectory


@dataclass(frozen=True)
class Launch:
    """One run, ready to start. ``files`` maps the names of files in the run directory to their content."""

    preset: Loaded
    plan: Plan
    engine: Engine
    target: Target
    run: RunDirectory
    command: LockedCommand
    files: Mapping[str, str]
    root: Path

    @property
    def output_dir(self) -> Path:
        return self.root / self.run.output_dir

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of ``train --dry-run --json``."""
        return {
            "argv": list(self.command.argv),
            "env": dict(self.command.env),
            "env_removed": list(self.command.env_removed),
            "cwd": str(self.command.cwd),
            "run_directory": str(self.run.path),
            "files": dict(self.files),
        }


def prepare_launch(
    loaded: Loaded, plan: Plan, engine: Engine, *, root: Path, now: datetime, inherited: Mapping[str, str]
) -> Launch:
    """Lock the command of a training preset without faults. ``inherited`` is the environment it will start in."""
    preset = loaded.training
    assert preset is not None
    output_dir = Path(str(expand_home("output_dir", preset.options["output_dir"])))
    run = RunDirectory.named(output_dir, str(preset.options["output_name"]), now)
    command = lock_command(
        accelerate=engine.accelerate,
        script=engine.script,
        target=preset.launch.target,
        num_cpu_threads_per_process=preset.launch.num_cpu_threads_per_process,
        options=preset.options,
        launch_files=LaunchFiles(run.accelerate_config, run.dataset_config, run.tensorboard),
        cwd=root,
        inherited=inherited,
    )
    files = {
        run.accelerate_config.name: accelerate_config(preset.launch.target),
        run.dataset_config.name: _dataset_text(loaded),
        run.command.name: command.as_shell(),
    }
    return Launch(loaded, plan, engine, preset.launch.target, run, command, files, root)


def _dataset_text(loaded: Loaded) -> str:
    """The dataset preset as it is; anew where it is JSON, or has a ``~``, which sd-scripts does not expand."""
    document = deepcopy(loaded.dataset_document)
    subsets = [subset for dataset in document.get("datasets", []) for subset in dataset.get("subsets", [])]
    tilde = [subset for subset in subsets if subset["image_dir"].startswith("~")]
    for subset in tilde:
        subset["image_dir"] = expand_tilde(subset["image_dir"])
    is_toml = loaded.dataset_path is not None and loaded.dataset_path.suffix.lower() == ".toml"
    return loaded.dataset_text if is_toml and not tilde else toml.dumps(document)
