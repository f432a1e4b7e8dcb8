"""Training states: what sd-scripts saves to go on from, how to ask for it, and which files one has.

A run can be continued rightly from the end of an epoch only: a state from within an epoch repeats steps or numbers them
wrongly (measured). sd-scripts saves a state wherever it saves a checkpoint, so a state at the end of every epoch
brings an epoch checkpoint with it, and a state with every step checkpoint (sd-scripts v0.10.1 train_network.py:1497,
1693, 1722).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spyke_kohya.engine.filenames import epoch_file, epoch_state_dir
from spyke_kohya.engine.options import OptionValue

STATES_KEPT = 2
# Every file of a state: JSON, safetensors, and archives of torch.
TRAIN_STATE, WEIGHTS = "train_state.json", "model.safetensors"
ARCHIVES = ("optimizer.bin", "scheduler.bin", "random_states_0.pkl")


@dataclass(frozen=True)
class StateSaving:
    """The options that the launcher adds for states, and which files come with them that the preset did not ask for."""

    options: Mapping[str, OptionValue]
    epoch_files_unasked: bool = False
    other_states_unasked: bool = False

    @property
    def is_on(self) -> bool:
        return bool(self.options)


NO_STATES = StateSaving({})


def state_saving(options: Mapping[str, Any], *, total_steps: int, steps_per_epoch: int) -> StateSaving:
    """Return the options for a state at the end of each epoch but the last, the newest two kept.

    Off where nothing could be continued: a run of one epoch, and one that ends within an epoch, which a resumed
    sd-scripts would train to its end. ``save_n_epoch_ratio`` and ``save_every_n_epochs`` of the preset stay.
    """
    if not steps_per_epoch or total_steps % steps_per_epoch or total_steps <= steps_per_epoch:
        return NO_STATES
    added: dict[str, OptionValue] = {} if options.get("save_state") else {"save_state": True}
    saves_epochs = bool(options.get("save_every_n_epochs") or options.get("save_n_epoch_ratio"))
    if not saves_epochs:
        added["save_every_n_epochs"] = 1
    if not options.get("save_last_n_epochs_state"):
        added["save_last_n_epochs_state"] = STATES_KEPT
    if "save_state" in added and options.get("save_every_n_steps") and not options.get("save_last_n_steps_state"):
        added["save_last_n_steps_state"] = 1  # the preset did not ask for them: the newest is enough
    return StateSaving(added, epoch_files_unasked=not saves_epochs, other_states_unasked="save_state" in added)


def epoch_of_state(directory: Path, output_name: str) -> int | None:
    """Return the epoch at the end of which this state was saved, by its name; None for any other state."""
    epoch = directory.name.removeprefix(f"{output_name}-").removesuffix("-state")
    return int(epoch) if epoch.isdecimal() and directory.name == epoch_state_dir(output_name, int(epoch)) else None


def checkpoint_beside(state: Path, output_name: str, epoch: int, extension: str) -> Path:
    """Return the epoch checkpoint that was saved with a state."""
    return state.parent / epoch_file(output_name, epoch, extension)
