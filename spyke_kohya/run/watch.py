"""Watch a run from another terminal: its console as it grows, its record for the end. It touches nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spyke_kohya.engine.console import ConsoleParser
from spyke_kohya.engine.events import Event
from spyke_kohya.errors import PresetError
from spyke_kohya.record.exclusive import as_it_is
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.run.numbering import Numbering
from spyke_kohya.run.progress import Progress

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class RecordedPlan:
    """What the engine's header is compared with, from a run's record."""

    num_train_images: int
    num_reg_images: int
    batches_per_epoch: int
    total_steps: int


def follow(run: RunDirectory, pause: Callable[[], None]) -> Iterator[tuple[Event | None, Progress]]:
    """Yield every event of a run from its beginning, by its true step, and None whenever there was none.

    Ends when the run has ended. ``pause`` waits a moment before the console is read again. Raises PresetError where no
    run is recorded.
    """
    record = _read(run)
    plan = RecordedPlan(**{name: record["plan"][name] for name in RecordedPlan.__dataclass_fields__})
    numbering, parser, progress = _numbering(record), ConsoleParser(), Progress(plan, record["target"])
    offset, ended = 0, False
    while True:
        data = _next_bytes(run, offset)
        offset += len(data)
        events = parser.feed(data) if data or not ended else parser.finish()
        for event in map(numbering.true_event, events):
            progress.handle(event)
            yield event, progress
        if ended and not data:
            return
        if not data:
            ended = _read(run)["status"] not in ("running", "prepared")
            if not ended:
                yield None, progress
                pause()


def _numbering(record: Mapping[str, Any]) -> Numbering:
    plan, resumed = record["plan"], record.get("resumed_from") or {"step": 0}
    return Numbering(record["output_name"], plan["steps_per_epoch"], plan["total_steps"], resumed["step"])


def _next_bytes(run: RunDirectory, offset: int) -> bytes:
    if not run.console.is_file():
        return b""
    with run.console.open("rb") as log:
        log.seek(offset)
        return log.read(_CHUNK_BYTES)


def _read(run: RunDirectory) -> dict[str, Any]:
    try:
        return as_it_is(run.read_record())
    except FileNotFoundError as fault:
        remedy = "name a run directory: `spyke-kohya runs` lists them"
        raise PresetError("this is no recorded run", where=str(run.path), remedy=remedy) from fault
