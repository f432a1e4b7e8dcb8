"""Progress while it goes on: one live line on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, TextIO

from spyke_kohya.engine.events import CheckpointAnnounced, EngineWarning, Event, Header, Step
from spyke_kohya.report.plain_text import duration
from spyke_kohya.run.faults import Notice
from spyke_kohya.run.progress import Progress

if TYPE_CHECKING:
    from rich.live import Live

_PLAIN_EVERY_S = 30.0
_FEW_IMAGES = 100
STARTING = "starting the engine …"


class Display:
    """One line of progress: redrawn in place on a terminal, repeated twice a minute elsewhere. Notices stay.

    With ``at_once`` the first state is printed elsewhere too.
    """

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic, *, at_once: bool = False, begin: str = ""
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._shown_at = -math.inf if at_once else clock()
        self._begin = begin
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, highlight=False)
            self._live = Live(self._begin, console=console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with suppress(OSError):  # the terminal may be closed
                self._live.stop()

    def __call__(self, event: Event | Notice | None, progress: Progress) -> None:
        """Show an event of a training: as a line that stays, or as the new state."""
        if notice := notice_of(event, progress):
            self.note(notice)
        elif isinstance(event, Step):
            self.show(state_line(progress), is_last=event.step == event.total)

    def show(self, text: str, *, is_last: bool = False) -> None:
        """Show the state in the place of the last one."""
        if self._live:
            from rich.text import Text

            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif is_last or self._clock() - self._shown_at > _PLAIN_EVERY_S:
            self._print(text)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if self._live:
            self._live.console.print(text, markup=False)
        else:
            self._print(text)

    def _print(self, line: str) -> None:
        self._shown_at = self._clock()
        with suppress(BrokenPipeError):  # the reader may have closed the pipe: the run goes on
            print(line, file=self._stream, flush=True)


@contextmanager
def decoding_display(stream: TextIO) -> Iterator[Callable[[int], Callable[[int], object]]]:
    """Open a display of decoded images; it yields ``begin(count)``, which returns ``show(done)``."""
    with ExitStack() as opened:

        def begin(count: int) -> Callable[[int], object]:
            if count < _FEW_IMAGES:
                return lambda _: None
            display, started = opened.enter_context(Display(stream)), time.monotonic()

            def show(done: int) -> None:
                left = (time.monotonic() - started) / max(done, 1) * (count - done)
                display.show(f"decoding images {done}/{count} · {duration(left)} left")

            return show

        yield begin


def notice_of(event: Event | Notice | None, progress: Progress) -> str:
    """Return the line of its own that an event deserves, or ""."""
    match event:
        case Notice(kind, message, remedy) if kind != "cpu-fallback" or progress.warnings <= 5:
            return f"{message}\n  do: {remedy}"
        case Header():
            return (
                f"training on {progress.device}: {event.batches_per_epoch} batches an epoch, {event.epochs} "
                f"{'epoch' if event.epochs == 1 else 'epochs'}, {event.total_steps} steps"
            )
        case CheckpointAnnounced(path):
            return f"step {event.step}: saved {PurePath(path).name}"
        case EngineWarning(text) if progress.warnings <= 5:
            return f"engine warning: {text}"
    return ""


def state_line(progress: Progress) -> str:
    """Return step, smoothed loss, lowest so far, s/step, time left and last checkpoint, in one line."""
    step = progress.step
    if step is None:
        return STARTING
    parts = [f"step {step.step}/{step.total}"]
    if step.avr_loss is not None:
        parts.append(f"avr_loss {step.avr_loss:.4g}")
    if progress.lowest is not None and progress.lowest.avr_loss is not None:
        parts.append(f"lowest {progress.lowest.avr_loss:.4g} at {progress.lowest.step}")
    if step.seconds_per_step:
        parts.append(f"{step.seconds_per_step:.3g} s/step")
        parts.append(f"{duration((step.total - step.step) * step.seconds_per_step)} left")
    if progress.checkpoints:
        parts.append(f"saved {progress.checkpoints[-1].step}")
    return " · ".join(parts)
