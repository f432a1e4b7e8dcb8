"""What the engine's console tells, as values: the events that ``console.py`` reads out of it, and why a run failed.

How sd-scripts prints them is left to ``console.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from spyke_kohya.engine.filenames import parse_file_name

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
    """One optimizer step, told when the next one shows or the console ends: only then is its ``avr_loss`` sure.

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
        """The step it was saved at: the one in its name, since a bar may skip a rendering; else the last one shown."""
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
    """``model saved.``, the engine's last word on a run that ended well (train_network.py:1729)."""


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
    """The one sentence that tells a person why the engine failed, or None where nothing on the console does.

    The engine's own words go before the launcher's; where an image could not be read, its path is added.
    """
    told = list(events)
    faults = {event.kind: event.text for event in told if isinstance(event, EngineFault)}
    kinds: tuple[FaultKind, ...] = ("usage", "no-data", "traceback", "log-error", "launcher")
    kind = next((kind for kind in kinds if kind in faults), None)
    if kind is None:
        return None
    file = next(filter(None, map(_names_the_file, reversed(told))), None) if kind == "traceback" else None
    return f"{_english(faults[kind])} ({file})" if file else _english(faults[kind])


def _names_the_file(event: Event) -> str | None:
    if isinstance(event, EngineFault | EngineWarning) and event.text.startswith(_NAMES_THE_FILE):
        return event.text
    return None


def _english(text: str) -> str:
    """sd-scripts says most things twice, ``english / japanese``."""
    english, _, japanese = text.partition(" / ")
    return english if any(character > "\u3000" for character in japanese) else text
