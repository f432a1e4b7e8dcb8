"""A program other than the training, run to its end: every byte goes to a log, every line to the caller."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from spyke_kohya.errors import EngineError, Interrupted
from spyke_kohya.process.engine_process import EngineProcess
from spyke_kohya.process.stop_signals import StopRequest, stop_signals

_POLL_S = 0.5


def run_program(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: Path,
    log: Path,
    on_line: Callable[[str], None],
) -> None:
    """Run ``argv`` to its end; ``on_line`` is given every whole line it prints, and each is in ``log``.

    Raises EngineError with the program's last lines when it fails, Interrupted when a signal stopped it; nothing of it
    is left running in either case.
    """
    with (
        stop_signals(StopRequest()) as stop,
        log.open("wb", buffering=0) as kept,
        EngineProcess(argv, env=environment, cwd=cwd, awake=True) as process,
    ):
        lines = _Lines(kept, on_line)
        code = _pump(process, stop.signals, lines.feed)
    if stop.signals:
        raise Interrupted(f"stopped by {stop.signals[0].name}; what was done is kept", where=str(log.parent))
    if code != 0:
        last = " / ".join(lines.last) or "it printed nothing"
        raise EngineError(f"{Path(argv[1]).name} failed: {last}", where=str(log), remedy="read that log")


def _pump(process: EngineProcess, stopped_by: list[signal.Signals], take: Callable[[bytes], None]) -> int:
    while not stopped_by:
        data = process.read(_POLL_S)
        if data == b"":
            return process.wait()
        if data:
            take(data)
    return process.stop(lambda _: None, take, lambda: len(stopped_by))


class _Lines:
    """Writes bytes in any chunks to the log, and passes on whole lines; a carriage return ends one too."""

    def __init__(self, log: BinaryIO, on_line: Callable[[str], None]) -> None:
        self._log = log
        self._on_line = on_line
        self._rest = b""
        self.last: deque[str] = deque(maxlen=3)

    def feed(self, data: bytes) -> None:
        self._log.write(data)
        *whole, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for raw in whole:
            if line := raw.decode("utf-8", errors="replace").rstrip():
                self.last.append(line)
                self._on_line(line)
