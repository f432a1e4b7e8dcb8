"""The per-step losses that sd-scripts v0.10.1 writes into TensorBoard event files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spyke_kohya.formats.tfevents import Scalar, read_scalars


@dataclass(frozen=True)
class StepLoss:
    """One optimizer step: ``loss`` is the mean of its micro-batches, ``avr_loss`` and ``lr`` are those at its end.

    ``lr`` holds every ``lr/...`` scalar by its tag without that prefix, such as ``unet`` and ``textencoder``.
    """

    step: int
    loss: float
    avr_loss: float
    lr: Mapping[str, float]
    micro_batches: int


def losses_from_events(paths: Iterable[Path]) -> list[StepLoss]:
    """Read the losses of each optimizer step that is complete, in the order of the files."""
    return [loss for path in paths for loss in step_losses(read_scalars(path)[0])]


def step_losses(scalars: Iterable[Scalar]) -> list[StepLoss]:
    """Group one event file's scalars by optimizer step.

    A batch is logged after the step counter moved (train_network.py:1488, 1532). So the first batch with a new number
    is the one that completed that step, and batches repeating a number (0 at first) belong to the next step. A step
    shows as soon as its ``loss/average`` is there; learning rates are written right after it and may be missing yet.
    """
    losses: list[StepLoss] = []
    waiting: list[float] = []
    last_step = 0
    for batch in _batches(scalars):
        waiting.append(batch.loss)
        if batch.step != last_step:
            mean = sum(waiting) / len(waiting)
            losses.append(StepLoss(batch.step, mean, batch.avr_loss, batch.lr, len(waiting)))
            waiting, last_step = [], batch.step
    return losses


@dataclass
class _Batch:
    """What one call of the engine's logger wrote: ``loss/current`` opens it, ``loss/average`` follows."""

    step: int
    loss: float
    avr_loss: float
    lr: dict[str, float] = field(default_factory=dict)


def _batches(scalars: Iterable[Scalar]) -> Iterator[_Batch]:
    current: float | None = None
    batch: _Batch | None = None
    for scalar in scalars:
        if scalar.tag == "loss/current":
            if batch:
                yield batch
            current, batch = scalar.value, None
        elif scalar.tag == "loss/average" and current is not None:
            batch = _Batch(scalar.step, current, scalar.value)
        elif batch and scalar.tag.startswith("lr/"):
            batch.lr[scalar.tag.removeprefix("lr/")] = scalar.value
    if batch:
        yield batch
