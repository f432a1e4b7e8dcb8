"""The events that ``console.py`` reads from the engine's console, as values, and why a run failed.

How sd-scripts prints them is left to ``console.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from spyke_kohya.engine.filenames import parse_file_name

# In the order of what explains a failure best: the engine's own words go before the launcher's.
FaultKind = Literal["usage", "no-data", "traceback", "log-error", "launcher"]


@dataclass(frozen=True)
class DeviceReported:
    """``accelerator device: mps`` (train_util.py:5503)."""

    device: str


@dataclass(frozen=True)
class Header:
    """The 8 summary lines before the first step (train_network.py:988); ``total_steps`` are optimizer steps."""

    num_train_images: int
    num_validation_images: int
    num_reg_images: int
    batches_per_epoch: int
    epochs: int
    batch_size: str
    gradient_accumulation_steps: int
    total_steps: int


@dataclass(frozen=True)
class EpochStarted:
    """``epoch 1/4``, counted from 1."""

    epoch: int
    epochs: int


@dataclass(frozen=True)
class Step:
    """One optimizer step, reported when the next one begins or the console ends: only then is its ``avr_loss`` sure.

    ``avr_loss`` has 3 significant digits and may be nan; it is None where the bar never showed one.
    ``seconds_per_step`` is the mean since the start. ``total`` is the bar's, which a resumed run doesn't reach.
    """

    step: int
    total: int
    avr_loss: float | None
    elapsed_s: int
    seconds_per_step: float | None


@dataclass(frozen=True)
class CheckpointAnnounced:
    """``saving checkpoint: PATH``, printed before the file is written (train_network.py:1300)."""

    path: str
    after_step: int

    @property
    def step(self) -> int:
        """The step it was saved at: the one in its name, else the last one shown, for a bar may skip a step."""
        named = parse_file_name(PurePath(self.path).name)
        return named.number if named and named.kind == "step" and named.number is not None else self.after_step


@dataclass(frozen=True)
class CheckpointRemoved:
    """``removing old checkpoint: PATH`` (train_network.py:1316)."""

    path: str


@dataclass(frozen=True)
class StateSaved:
    """A training state is whole: its last file, the random states, is written (accelerate checkpointing.py:170)."""

    path: str


@dataclass(frozen=True)
class ModelSaved:
    """``model saved.``, the engine's last line of a run that ended well (train_network.py:1729)."""


@dataclass(frozen=True)
class EngineWarning:
    """A WARNING of the log, or a Python warning that concerns the run and not the engine's source."""

    text: str


@dataclass(frozen=True)
class EngineFault:
    """Something that ends a run: ``text`` is one line, ``detail`` the end of a traceback (60 lines at most)."""

    kind: FaultKind
    text: str
    detail: str = ""


Event = (
    DeviceReported
    | Header
    | EpochStarted
    | Step
    | CheckpointAnnounced
    | CheckpointRemoved
    | StateSaved
    | ModelSaved
    | EngineWarning
    | EngineFault
)

_NAMES_THE_FILE = ("Error loading file: ", "failed to get image size: ")


def cause_of(events: Iterable[Event]) -> str | None:
    """Find the one sentence that says why the engine failed, or None where nothing on the console does.

    Where an image could not be read, its path is added.
    """
    seen = list(events)
    faults = {event.kind: event.text for event in seen if isinstance(event, EngineFault)}
    kind = next((kind for kind in get_args(FaultKind) if kind in faults), None)
    if kind is None:
        return None
    texts = [event.text for event in seen if isinstance(event, EngineFault | EngineWarning)]
    files = [text for text in texts if text.startswith(_NAMES_THE_FILE)] if kind == "traceback" else []
    return f"{_english(faults[kind])} ({files[-1]})" if files else _english(faults[kind])


def _english(text: str) -> str:
    """Return the English of a text that sd-scripts prints twice, as ``english / japanese``."""
    english, _, japanese = text.partition(" / ")
    return english if any(character > "\u3000" for character in japanese) else text
