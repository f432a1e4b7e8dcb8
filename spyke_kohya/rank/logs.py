"""Losses from what the engine itself leaves behind: a saved console or TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spyke_kohya.engine.console import ConsoleParser
from spyke_kohya.engine.events import CheckpointAnnounced, Event, Header, Step
from spyke_kohya.engine.scalars import StepLoss, losses_from_events
from spyke_kohya.errors import EngineError, NothingToRank, UsageError
from spyke_kohya.formats.tfevents import find_event_files
from spyke_kohya.rank.losses import LossCurve, curve_of, read_losses_csv

CHUNK_BYTES = 1 << 20


def read_losses(path: Path) -> LossCurve:
    """Read losses from a CSV file, an event file, a folder of event files, or else a saved console, known by its name.

    Raises UsageError when there is no such file, NothingToRank or EngineError when it holds no usable losses.
    """
    if path.is_dir() and (events := find_event_files(path)):
        return curve_from_events(events)
    if not path.is_file():
        raise UsageError("no such file", where=str(path), remedy="give the file that holds the losses")
    if path.suffix.lower() == ".csv":
        return read_losses_csv(path)
    return curve_from_events([path]) if "tfevents" in path.name else curve_from_console(path)


def curve_from_console(path: Path) -> LossCurve:
    """avr_loss by step from a console's bytes: 3 significant digits, and the window from the summary it begins with."""
    events = _console_events(path)
    steps = [event for event in events if isinstance(event, Step)]
    if not steps:
        raise NothingToRank("no training step on this console", where=str(path))
    header = next((event for event in events if isinstance(event, Header)), None)
    averages = [event.avr_loss for event in steps]
    curve = curve_of(_ascending([step.step for step in steps], path), averages, None, source=str(path))
    saved = {event.step for event in events if isinstance(event, CheckpointAnnounced)}
    curve = replace(curve, saved_steps=tuple(sorted(saved & set(curve.steps.tolist()))))
    if header is None:
        return curve
    return replace(
        curve,
        window=header.batches_per_epoch,
        micro_batches_per_step=header.gradient_accumulation_steps,
        batch_size=int(header.batch_size) if header.batch_size.isdecimal() else None,
    )


def curve_from_events(paths: Sequence[Path]) -> LossCurve:
    """Read per-step losses and avr_loss from TensorBoard event files, in their order; name a damaged one."""
    where = ", ".join(str(path) for path in paths)
    losses, faults = _whole_losses(paths)
    if not losses:
        raise faults[0] if faults else NothingToRank("no training loss in these event files", where=where)
    steps = _ascending([one.step for one in losses], paths[0])
    curve = curve_of(steps, [one.avr_loss for one in losses], [one.loss for one in losses], source=where)
    problems = tuple(f"{Path(fault.where).name}: {fault.what}" for fault in faults)
    return replace(curve, micro_batches_per_step=max(one.micro_batches for one in losses), problems=problems)


def _whole_losses(paths: Sequence[Path]) -> tuple[list[StepLoss], list[EngineError]]:
    """Return the losses of the files that can be read, and what is wrong with the others."""
    losses: list[StepLoss] = []
    faults: list[EngineError] = []
    for path in paths:
        try:
            losses += losses_from_events([path])
        except EngineError as fault:
            faults.append(fault)
    return losses, faults


def _console_events(path: Path) -> list[Event]:
    parser = ConsoleParser()
    events: list[Event] = []
    with path.open("rb") as console:
        while chunk := console.read(CHUNK_BYTES):
            events += parser.feed(chunk)
    return events + parser.finish()


def _ascending(steps: list[int], path: Path) -> np.ndarray:
    if max(steps) >= 1 << 63:
        raise NothingToRank(f"step {max(steps)} is too large", where=str(path))
    array = np.array(steps, dtype=np.int64)
    wrong = np.flatnonzero(np.diff(array) <= 0) + 1
    if len(wrong):
        at = wrong[0]
        raise NothingToRank(
            f"step {array[at]} comes after step {array[at - 1]}: more than one training is recorded here",
            where=str(path),
            remedy="give the record of one training",
        )
    return array
