"""A run while it runs: one live line on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, TextIO

from spyke_kohya.engine.events import CheckpointAnnounced, EngineWarning, Event, Header, Step
from spyke_kohya.report.plain_text import duration
from spyke_kohya.run.faults import Notice
from spyke_kohya.run.progress import Progress

if TYPE_CHECKING:
    from rich.live import Live

_PLAIN_EVERY_S = 30.0


class PlainDisplay:
    """Lines for a log file or a pipe: the start, every checkpoint, and the state about twice a minute."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._told_at = clock()

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event | Notice | None, progress: Progress) -> None:
        if notice := notice_of(event, progress):
            self._say(notice)
        elif isinstance(event, Step) and self._is_time(event):
            self._say(state_line(progress))

    def _is_time(self, step: Step) -> bool:
        return step.step == step.total or self._clock() - self._told_at > _PLAIN_EVERY_S

    def _say(self, line: str) -> None:
        self._told_at = self._clock()
        with suppress(BrokenPipeError):  # who reads along may leave: the run goes on
            print(line, file=self._stream, flush=True)


class TerminalDisplay:
    """One line that is redrawn in place; notices scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None

    def __enter__(self) -> TerminalDisplay:
        from rich.live import Live

        self._live = Live("starting the engine …", console=self._console, refresh_per_second=4, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._live is not None
        with suppress(OSError):  # the terminal may be closed
            self._live.stop()

    def __call__(self, event: Event | Notice | None, progress: Progress) -> None:
        assert self._live is not None
        if notice := notice_of(event, progress):
            self._console.print(notice, markup=False)
        if isinstance(event, Step):
            from rich.text import Text

            self._live.update(Text(state_line(progress), no_wrap=True, overflow="ellipsis"))


def notice_of(event: Event | Notice | None, progress: Progress) -> str:
    """What is worth a line of its own, or ""."""
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
    """Step, smoothed loss, lowest so far, s/step, time left and last checkpoint, in one line."""
    step = progress.step
    if step is None:
        return "starting the engine …"
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


class ProgressLine:
    """The progress of a program in one line that is redrawn on a terminal, and told every half minute elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told_at = -_PLAIN_EVERY_S
        self._width = 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            self._stream.write("\n")

    def show(self, text: str) -> None:
        """Show the text in the place of the last one."""
        if self._stream.isatty():
            self._stream.write(f"\r{text:<{self._width}}")
            self._width = max(len(text), 1)
        elif time.monotonic() - self._told_at > _PLAIN_EVERY_S:
            self._stream.write(f"{text}\n")
            self._told_at = time.monotonic()
        self._stream.flush()
