"""``losses.csv``: every optimizer step's loss in full precision, taken from the TensorBoard files of the run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from spyke_kohya.engine.tfevents import Scalar, StepLoss, find_event_files, read_scalars, step_losses
from spyke_kohya.errors import EngineError
from spyke_kohya.run.rundir import RunDirectory

_EVERY_S = 30.0
# A long run's file takes longer to write: it is written so seldom that writing takes under a hundredth of the time.
_SHARE = 100.0


class LossFile:
    """Follows the event files as they grow, and writes ``losses.csv`` whole each time."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._scalars: dict[Path, list[Scalar]] = {}
        self._offsets: dict[Path, int] = {}
        self._due_at = time.monotonic() + _EVERY_S

    def write_if_due(self) -> None:
        """Write the file if the last time is long enough ago."""
        started = time.monotonic()
        if started < self._due_at:
            return
        self.write()
        ended = time.monotonic()
        self._due_at = ended + max(_EVERY_S, _SHARE * (ended - started))

    def write(self) -> list[StepLoss]:
        """Read what is new and write all steps known so far; nothing is written before the first one."""
        for file in find_event_files(self._run.tensorboard):
            try:
                fresh, self._offsets[file] = read_scalars(file, self._offsets.get(file, 0))
            except EngineError:  # a damaged event file must not end a healthy training: the console has the losses too
                continue
            self._scalars.setdefault(file, []).extend(fresh)
        losses = [loss for scalars in self._scalars.values() for loss in step_losses(scalars)]
        if losses:
            self._run.write_text(self._run.losses, losses_csv(losses))
        return losses


def losses_csv(losses: Sequence[StepLoss]) -> str:
    """Columns step, loss, avr_loss, then a learning rate each (``lr_unet``); floats read back exactly."""
    rates = list(dict.fromkeys(name for loss in losses for name in loss.lr))
    header = ["step", "loss", "avr_loss", *(f"lr_{name}" for name in rates)]
    return "\n".join([",".join(header), *(",".join(_row(loss, rates)) for loss in losses), ""])


def _row(loss: StepLoss, rates: Iterable[str]) -> list[str]:
    values = [loss.loss, loss.avr_loss, *(loss.lr.get(name) for name in rates)]
    return [str(loss.step), *("" if value is None else repr(value) for value in values)]
