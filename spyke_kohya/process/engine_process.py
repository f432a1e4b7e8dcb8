"""Processes: the only module that starts one. Argument lists, never a shell; bytes, never text.

The engine runs in a session of its own, because ``accelerate launch`` forwards no signals: a signal that reaches only
the launcher orphans the trainer, which keeps training. So every signal goes to the whole group.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.errors import EngineError

_CHUNK_BYTES = 1 << 16
STRAGGLER_S = 3.0


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder that ends a group: the signal, and how long to wait for the end after it."""

    signal: signal.Signals
    patience_s: float


LADDER = (Rung(signal.SIGINT, 15.0), Rung(signal.SIGTERM, 5.0), Rung(signal.SIGKILL, 5.0))


class EngineProcess:
    """A started engine: read its merged output until ``b""``, then ``wait`` for its exit code.

    As a context it kills at its end what still runs.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        ladder: Sequence[Rung] = LADDER,
        straggler_s: float = STRAGGLER_S,
        awake: bool = False,
    ) -> None:
        """Start ``argv`` as the leader of a new session. Raises EngineError when it can't be started.

        ``straggler_s`` is how long its group may outlive the leader. ``awake`` keeps a Mac from sleeping as long as it
        runs, where its ``caffeinate`` is in the PATH of ``env``.
        """
        self._ladder = ladder
        self._straggler_s = straggler_s
        try:
            self._popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as fault:
            remedy = "run `spyke-kohya doctor`: it names what is missing in the engine's Python"
            raise EngineError(f"could not start: {fault.strerror}", where=argv[0], remedy=remedy) from fault
        assert self._popen.stdout is not None
        self._output = self._popen.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._output_ended = False
        self._caffeinate = _caffeinate(self._popen.pid, env) if awake else None
        self._leader_ended_at: float | None = None

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal_group(signal.SIGKILL)
        self.wait()

    @property
    def pid(self) -> int:
        """The leader's process id, which is the group's too."""
        return self._popen.pid

    def read(self, timeout_s: float) -> bytes | None:
        """Return the next bytes; None when there were none in time; ``b""`` when the output and the leader have ended.

        A leader that ends while its group still holds the pipe has orphaned its trainer: the group is then killed.
        """
        self._end_stragglers()
        if not self._output_ended:
            if not self._selector.select(timeout_s):
                return None
            if data := os.read(self._output.fileno(), _CHUNK_BYTES):
                return data
            self._output_ended = True
        with suppress(subprocess.TimeoutExpired):  # a leader that closed its output may still train
            self._popen.wait(timeout_s)
            return b""
        return None

    def wait(self) -> int:
        """Reap the leader, end what is left of its group, and return the exit code (negative: the signal)."""
        code = self._popen.wait()
        self._signal_group(signal.SIGKILL)
        if self._caffeinate:
            self._caffeinate.kill()
            self._caffeinate.wait()
        self._selector.close()
        self._output.close()
        return code

    def stop(
        self, on_rung: Callable[[Rung], None], on_output: Callable[[bytes], None], requests: Callable[[], int]
    ) -> int:
        """End the whole group, rung by rung, and pass on its output. Return the leader's exit code.

        ``requests`` counts how often a person has asked for the end: each time more goes to the next rung at once.
        """
        asked = requests()
        for index, rung in enumerate(self._ladder):
            on_rung(rung)
            self._signal_group(rung.signal)
            deadline = time.monotonic() + rung.patience_s
            while (left_s := deadline - time.monotonic()) > 0 and requests() <= asked + index:
                data = self.read(min(left_s, 0.2))
                if data == b"":
                    return self.wait()
                if data:
                    on_output(data)
        return self.wait()

    def _end_stragglers(self) -> None:
        if self._leader_ended_at is None:
            self._leader_ended_at = time.monotonic() if self._popen.poll() is not None else None
        elif time.monotonic() - self._leader_ended_at > self._straggler_s:
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)


def _caffeinate(pid: int, env: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    """Start Apple's caffeinate(8): the Mac does not sleep until ``pid`` has ended."""
    program = shutil.which("caffeinate", path=env.get("PATH"))
    if program is None:
        return None
    null = subprocess.DEVNULL
    argv = [program, "-i", "-w", str(pid)]
    return subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True)


def ask(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout_s: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a short program to its end. Raises EngineError when it can't be started or takes too long."""
    try:
        return subprocess.run(
            list(argv), env=dict(env), cwd=cwd, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as fault:
        raise EngineError(f"gave no answer in {timeout_s:.0f} s", where=argv[0], remedy="try again") from fault
    except OSError as fault:
        raise EngineError(f"could not start: {fault.strerror}", where=argv[0], remedy="check the path") from fault
