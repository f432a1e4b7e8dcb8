"""Who runs on this machine: a process told from a later one of the same number, and what is left of a group.

Reads ``/proc`` where there is one, else asks ``ps`` and ``lsof``. A zombie counts as ended.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spyke_kohya.errors import EngineError
from spyke_kohya.process.engine_process import ask

_PROC = Path("/proc")
_TIMEOUT_S = 10.0
_POLL_S = 0.05


@dataclass(frozen=True)
class ProcessMark:
    """A process and when it began, as the system says it: numbers are used again, both together are not."""

    pid: int
    started: str


@dataclass(frozen=True)
class RunningProcess:
    """One line of the process table; ``command`` is its whole command line."""

    pid: int
    group: int
    started: str
    command: str


def mark_of(pid: int) -> ProcessMark | None:
    """The mark of a running process, or None where there is none of this number."""
    found = next((process for process in _processes(pid) if process.pid == pid), None)
    return ProcessMark(pid, found.started) if found else None


def is_running(mark: ProcessMark) -> bool:
    return mark_of(mark.pid) == mark


def running_processes() -> list[RunningProcess]:
    """All processes of this machine."""
    return list(_processes())


def members_of_group(group: int) -> list[RunningProcess]:
    """The running processes of a process group."""
    return [process for process in _processes() if process.group == group]


def working_directory(pid: int) -> Path | None:
    """Where a process runs; None where that can't be known."""
    if (_PROC / "self/stat").exists():
        try:
            return (_PROC / str(pid) / "cwd").readlink()
        except OSError:
            return None
    told = _ask("lsof", "-a", "-p", str(pid), "-d", "cwd", "-Fn").splitlines()  # a line a field, after its letter
    return next((Path(line[1:]) for line in told if line.startswith("n/")), None)


def end_group(group: int, *, patience_s: float = 10.0) -> bool:
    """Ask a group to end, and kill it after ``patience_s``. Whether nothing of it is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if not members_of_group(group):
                return True
            time.sleep(_POLL_S)
    return False


def _processes(pid: int | None = None) -> Iterator[RunningProcess]:
    """All processes, or just the one of this number."""
    if (_PROC / "self/stat").exists():
        boot = _boot_id()
        places = [_PROC / str(pid)] if pid is not None else list(_PROC.glob("[0-9]*"))
        yield from filter(None, (_from_proc(place, boot) for place in places))
    else:
        yield from _from_ps(pid)


def _from_proc(place: Path, boot: str) -> RunningProcess | None:
    """One process from its directory (proc(5)): field 3 is its state, 5 its group, 22 its start in ticks since boot."""
    try:
        fields = (place / "stat").read_text(errors="replace").rpartition(") ")[2].split()
        words = (place / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    command = b" ".join(words).decode(errors="replace").strip()
    return RunningProcess(int(place.name), int(fields[2]), f"{boot}+{fields[19]}", command)


def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""


def _from_ps(pid: int | None) -> Iterator[RunningProcess]:
    which = ["-A"] if pid is None else ["-p", str(pid)]
    for line in _ask("ps", *which, "-ww", "-o", "pid=,pgid=,stat=,lstart=,command=").splitlines():
        words = line.split(maxsplit=8)  # lstart is five words: Sun Nov 22 12:16:01 2026
        if len(words) >= 8 and not words[2].startswith("Z"):
            command = words[8] if len(words) > 8 else ""
            yield RunningProcess(int(words[0]), int(words[1]), " ".join(words[3:8]), command)


def _ask(*argv: str) -> str:
    """What a program of the system says; empty where there is no such program: nothing can be said then."""
    environment = {"PATH": "/bin:/usr/bin:/usr/sbin", "LC_ALL": "C"}
    try:
        answer = ask(argv, env=environment, cwd=Path("/"), timeout_s=_TIMEOUT_S)
    except EngineError:
        return ""
    return answer.stdout.decode(errors="replace")
