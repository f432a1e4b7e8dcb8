"""The locked command: ``accelerate launch train_network.py`` with nothing left to a user's configuration.

Without its own ``--config_file`` accelerate reads ``~/.cache/huggingface/accelerate/default_config.yaml``, where a
``use_cpu: true`` trains on the CPU silently and an old ``distributed_type: MPS`` crashes the launcher.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.engine.options import OptionValue, Scalar, option_arguments
from spyke_kohya.engine.targets import TARGET_ENVIRONMENT, Target

# Off a terminal rich wraps the log at 80 columns, in the middle of paths, and stdout is block-buffered.
COMMON_ENVIRONMENT: Mapping[str, str] = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "250"}

# ACCELERATE_* overrides options, TQDM_* changes the bar that is read, and a rank makes a multi-process run of it, MPI's
# too (accelerate 1.6.0 state.py:778).
DROPPED_PREFIXES = ("ACCELERATE_", "TQDM_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_", "MPI_LOCAL")
DROPPED_NAMES = frozenset(
    ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"]
)

_SHELL_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)

PATH_OPTIONS = frozenset(
    {
        "base_weights",
        "network_weights",
        "output_dir",
        "pretrained_model_name_or_path",
        "sample_prompts",
        "tokenizer_cache_dir",
        "vae",
    }
)


@dataclass(frozen=True)
class LaunchFiles:
    """Where the files are that the launcher hands to the engine; relative ones are relative to ``cwd``."""

    accelerate_config: Path
    dataset_config: Path
    logging_dir: Path


@dataclass(frozen=True)
class LockedCommand:
    """``argv`` runs in ``cwd`` under the caller's environment, less ``env_removed``, plus ``env``."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    env_removed: tuple[str, ...]
    cwd: Path

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of the engine's process."""
        kept = {name: value for name, value in inherited.items() if name not in self.env_removed}
        return kept | dict(self.env)

    def as_shell(self) -> str:
        """Write a shell script that runs the same command by hand."""
        names = [name for name in self.env_removed if _SHELL_NAME.fullmatch(name)]  # no shell hands on the others
        unset = [f"unset {' '.join(names)}"] if names else []
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]
        words = " \\\n  ".join(shlex.quote(word) for word in self.argv[2:])
        command = f"exec {shlex.join(self.argv[:2])} \\\n  {words}"
        return "\n".join(["#!/bin/sh", f"cd {shlex.quote(str(self.cwd))} || exit 1", *unset, *exports, command, ""])


def lock_command(
    *,
    accelerate: Path,
    script: Path,
    target: Target,
    num_cpu_threads_per_process: int,
    options: Mapping[str, OptionValue],
    launch_files: LaunchFiles,
    cwd: Path,
    inherited: Mapping[str, str],
) -> LockedCommand:
    """Build the command for checked options. ``inherited`` is the environment it will be started in."""
    given = {name: expand_home(name, value) for name, value in options.items()} | {
        "dataset_config": str(launch_files.dataset_config),
        "logging_dir": str(launch_files.logging_dir),
        "log_with": "tensorboard",
    }
    launcher = [
        str(accelerate),
        "launch",
        f"--config_file={launch_files.accelerate_config}",
        "--num_processes=1",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        f"--num_cpu_threads_per_process={num_cpu_threads_per_process}",
    ]
    return LockedCommand(
        argv=(*launcher, str(script), *option_arguments(given)),
        env={**COMMON_ENVIRONMENT, **TARGET_ENVIRONMENT[target]},
        env_removed=tuple(sorted(name for name in inherited if _interferes(name))),
        cwd=cwd,
    )


def program_environment(target: Target, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of another program of the engine: the caller's and the target's, less what interferes."""
    kept = {name: value for name, value in inherited.items() if not _interferes(name)}
    return {**kept, **COMMON_ENVIRONMENT, **TARGET_ENVIRONMENT[target]}


def accelerate_config(target: Target) -> str:
    """Return the YAML used instead of a user's ``default_config.yaml``: one process on the target's device."""
    return (
        "compute_environment: LOCAL_MACHINE\n"
        "debug: false\n"
        "distributed_type: 'NO'\n"
        "downcast_bf16: 'no'\n"
        "enable_cpu_affinity: false\n"
        "machine_rank: 0\n"
        "main_training_function: main\n"
        "mixed_precision: 'no'\n"
        "num_machines: 1\n"
        "num_processes: 1\n"
        "rdzv_backend: static\n"
        "same_network: true\n"
        f"use_cpu: {str(target == 'cpu').lower()}\n"
    )


def expand_home(name: str, value: OptionValue) -> OptionValue:
    """Expand ``~`` in the value of a path option: sd-scripts would take it for a directory named ``~``."""
    if name not in PATH_OPTIONS:
        return value
    return [_expanded(item) for item in value] if isinstance(value, list) else _expanded(value)


def path_option(options: Mapping[str, Any], name: str, root: Path) -> Path:
    """Return the path that an option names: relative to ``root``, with ``~`` expanded."""
    return root / expand_tilde(str(options[name]))


def expand_tilde(path: str) -> str:
    """Return ``path`` with ``~`` written out; the home of a user who is unknown here stays as it is."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def _expanded(value: Scalar) -> Scalar:
    return expand_tilde(value) if isinstance(value, str) else value


def _interferes(name: str) -> bool:
    return name in DROPPED_NAMES or name.startswith(DROPPED_PREFIXES)
