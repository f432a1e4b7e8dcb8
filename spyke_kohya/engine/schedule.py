"""What sd-scripts does when: how many steps it takes, and which checkpoints are there when it has ended."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spyke_kohya.engine.filenames import CheckpointKind, epoch_file, last_file, step_file


@dataclass(frozen=True)
class PlannedCheckpoint:
    """A file that is there after the run, saved after ``step`` optimizer steps."""

    step: int
    kind: CheckpointKind
    file: str


@dataclass(frozen=True)
class Saving:
    """sd-scripts' options about saving; None where one isn't set. ``extension`` has its dot."""

    output_name: str | None = None
    extension: str = ".safetensors"
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    n_epoch_ratio: int | None = None
    last_n_steps: int | None = None
    last_n_epochs: int | None = None


def steps_per_epoch(batches: int, num_processes: int = 1, gradient_accumulation_steps: int = 1) -> int:
    """Count the optimizer steps of an epoch (sd-scripts v0.10.1 train_network.py:799)."""
    return math.ceil(batches / num_processes / gradient_accumulation_steps)


def epochs_of(total_steps: int, steps_an_epoch: int) -> int:
    """Count the epochs begun, the last of which may be cut short (sd-scripts v0.10.1 train_network.py:979)."""
    return math.ceil(total_steps / steps_an_epoch)


def checkpoints(saving: Saving, total_steps: int, steps_an_epoch: int) -> list[PlannedCheckpoint]:
    """List the checkpoints that remain when the run has ended, in the order in which they were saved.

    Steps: sd-scripts v0.10.1 train_network.py:1497, epochs (never the last one): 1693, the end: 1726.
    """
    saved = _step_checkpoints(saving, total_steps) + _epoch_checkpoints(saving, total_steps, steps_an_epoch)
    saved.sort(key=lambda checkpoint: checkpoint.step)
    return [*saved, PlannedCheckpoint(total_steps, "final", last_file(saving.output_name, saving.extension))]


def _step_checkpoints(saving: Saving, total_steps: int) -> list[PlannedCheckpoint]:
    every = saving.every_n_steps
    if every is None:
        return []
    steps = dict.fromkeys(range(every, total_steps + 1, every))
    if saving.last_n_steps is not None:
        for step in list(steps):  # train_util.py:5796
            removed = step - saving.last_n_steps - 1
            steps.pop(removed - removed % every, None)
    return [PlannedCheckpoint(step, "step", step_file(saving.output_name, step, saving.extension)) for step in steps]


def _epoch_checkpoints(saving: Saving, total_steps: int, steps_an_epoch: int) -> list[PlannedCheckpoint]:
    num_epochs = epochs_of(total_steps, steps_an_epoch)
    every = saving.every_n_epochs
    if saving.n_epoch_ratio is not None and saving.n_epoch_ratio > 0:  # train_network.py:980
        every = num_epochs // saving.n_epoch_ratio or 1
    if every is None:
        return []
    epochs = dict.fromkeys(range(every, num_epochs, every))
    if saving.last_n_epochs is not None:
        for epoch in list(epochs):  # train_util.py:5786
            epochs.pop(epoch - every * saving.last_n_epochs, None)
    return [
        PlannedCheckpoint(epoch * steps_an_epoch, "epoch", epoch_file(saving.output_name, epoch, saving.extension))
        for epoch in epochs
    ]
