"""``losses.csv``: every optimizer step's loss in full precision, taken from the TensorBoard files of the run.

A resumed run's own files count its steps from 1 and average from nothing: here the steps go on where the run before
left off, and avr_loss is computed again over both.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from spyke_kohya.engine.scalars import StepLoss, step_losses
from spyke_kohya.errors import EngineError
from spyke_kohya.files import write_whole
from spyke_kohya.formats.tfevents import Scalar, find_event_files, read_scalars
from spyke_kohya.plan.plan import Plan
from spyke_kohya.record.record import read_record
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.run.launch import Launch

_EVERY_S = 30.0
# A long run's file takes longer to write: writing may take a hundredth of the time.
_SHARE = 100.0


class LossFile:
    """Follows the event files as they grow, and writes ``losses.csv`` whole each time."""

    def __init__(self, launch: Launch) -> None:
        self._run = launch.run.under(launch.root)
        self._plan = launch.plan
        self._steps_before = launch.steps_before
        self._earlier = history(launch.segment.earlier, launch.segment.step) if launch.segment else []
        self._tail = _TensorBoard(self._run.tensorboard)
        self._due_at = time.monotonic() + _EVERY_S

    def write_if_due(self) -> None:
        """Write the file if the last time is long enough ago. Raises OSError."""
        started = time.monotonic()
        if started < self._due_at:
            return
        self._due_at = started + _EVERY_S
        self.write()
        ended = time.monotonic()
        self._due_at = ended + max(_EVERY_S, _SHARE * (ended - started))

    def write(self) -> None:
        """Read what is new and write all steps known so far; nothing before the first one. Raises OSError."""
        own = [replace(loss, step=loss.step + self._steps_before) for loss in self._tail.read()]
        losses = joined(self._earlier, own, self._plan) if self._earlier else own
        if losses:
            write_whole(self._run.losses, losses_csv(losses))


class _TensorBoard:
    """The losses in a directory of event files that may still grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._scalars: dict[Path, list[Scalar]] = {}
        self._offsets: dict[Path, int] = {}

    def read(self) -> list[StepLoss]:
        for file in find_event_files(self._directory):
            try:
                fresh, self._offsets[file] = read_scalars(file, self._offsets.get(file, 0))
            except EngineError:  # a damaged event file must not end a healthy training: the console has the losses too
                continue
            self._scalars.setdefault(file, []).extend(fresh)
        return [loss for scalars in self._scalars.values() for loss in step_losses(scalars)]


def history(run: RunDirectory, last_step: int | None = None) -> list[StepLoss]:
    """Read the losses of a run and of those that it was resumed from, by true step up to ``last_step``.

    The event files come first: a run that was killed may not have written all of ``losses.csv``. Without event files
    the table counts. A run of which neither can be read has no losses.
    """
    before, steps_before = _earlier_of(run)
    own = [replace(loss, step=loss.step + steps_before) for loss in _TensorBoard(run.tensorboard).read()]
    if before and own:
        own = [*history(before, steps_before), *own]
    losses = own or _from_table(run.losses)
    return [loss for loss in losses if last_step is None or loss.step <= last_step]


def joined(earlier: Sequence[StepLoss], own: Sequence[StepLoss], plan: Plan) -> list[StepLoss]:
    """Return both parts, with the avr_loss of ``own`` as an uninterrupted run would show it.

    That is the mean of the last W micro-batches, or of all when there are fewer; W is the batches of an epoch. At the
    end of a step those are the micro-batches of the last steps, as many as an epoch has, of which the one that ends an
    epoch may hold fewer (LossRecorder, sd-scripts v0.10.1 train_util.py:6668).
    """
    losses = [*earlier, *own]
    weights = [_micro_batches(loss.step, plan) for loss in losses]
    counts = [0, *accumulate(weights)]
    sums = [0.0, *accumulate(loss.loss * weight for loss, weight in zip(losses, weights, strict=True))]
    averaged = list(earlier)
    for end in range(len(earlier) + 1, len(losses) + 1):
        start = max(0, end - plan.steps_per_epoch)
        mean = (sums[end] - sums[start]) / (counts[end] - counts[start])
        averaged.append(replace(losses[end - 1], avr_loss=mean))
    return averaged


def _micro_batches(step: int, plan: Plan) -> int:
    """Count the micro-batches of a step; the last step of an epoch may have fewer. Steps count from 1."""
    per_step = plan.gradient_accumulation_steps
    place = (step - 1) % plan.steps_per_epoch
    return min(per_step, plan.batches_per_epoch - place * per_step)


def _earlier_of(run: RunDirectory) -> tuple[RunDirectory | None, int]:
    """Return the run that ``run`` was resumed from, and after how many steps. An earlier run has a lower name."""
    resumed = read_record(run).resumed_from
    if resumed is None or resumed.run >= run.path.name:
        return None, 0
    return RunDirectory(run.path.parent / resumed.run), resumed.step


def _from_table(path: Path) -> list[StepLoss]:
    try:
        with path.open(encoding="utf-8", newline="") as table:
            return [_loss_of(row) for row in csv.DictReader(table)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []


def _loss_of(row: dict[str, str]) -> StepLoss:
    rates = {name.removeprefix("lr_"): float(value) for name, value in row.items() if name.startswith("lr_") and value}
    return StepLoss(int(row["step"]), float(row["loss"]), float(row["avr_loss"]), rates, 1)


def losses_csv(losses: Sequence[StepLoss]) -> str:
    """Return the columns step, loss, avr_loss, then a learning rate each (``lr_unet``); floats read back exactly."""
    rates = list(dict.fromkeys(name for loss in losses for name in loss.lr))
    header = ["step", "loss", "avr_loss", *(f"lr_{name}" for name in rates)]
    return "\n".join([",".join(header), *(",".join(_row(loss, rates)) for loss in losses), ""])


def _row(loss: StepLoss, rates: Iterable[str]) -> list[str]:
    values = [loss.loss, loss.avr_loss, *(loss.lr.get(name) for name in rates)]
    return [str(loss.step), *("" if value is None else repr(value) for value in values)]
