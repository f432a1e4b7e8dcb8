"""Watch a run from another terminal: its console as it grows, its record for the end. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from spyke_kohya.engine.console import ConsoleParser
from spyke_kohya.engine.events import Event
from spyke_kohya.errors import PresetError
from spyke_kohya.record.record import UNFINISHED, read_record
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.run.numbering import Numbering
from spyke_kohya.run.progress import Progress

_CHUNK_BYTES = 1 << 16


def follow(run: RunDirectory, pause: Callable[[], None]) -> Iterator[tuple[Event | None, Progress]]:
    """Yield every event of a run from its beginning, by its true step, and None whenever there was none.

    Ends when the run has ended. ``pause`` waits a moment before the console is read again. Raises PresetError where no
    run is recorded.
    """
    record = read_record(run, or_raise=PresetError)
    plan, before = record.plan, record.resumed_from.step if record.resumed_from else 0
    numbering = Numbering(record.output_name or "", plan.steps_per_epoch or 1, plan.total_steps or 0, before)
    parser, progress = ConsoleParser(), Progress(plan, record.target or "cpu")
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
            ended = read_record(run).true_now.status not in UNFINISHED
            if not ended:
                yield None, progress
                pause()


def _next_bytes(run: RunDirectory, offset: int) -> bytes:
    if not run.console.is_file():
        return b""
    with run.console.open("rb") as log:
        log.seek(offset)
        return log.read(_CHUNK_BYTES)
