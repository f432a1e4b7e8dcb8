"""The processes of this machine: which one a number means, and what is left of a group.

psutil reads them on every system. It is imported late: that takes 0.03 s. A zombie counts as ended.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PATIENCE_S = 10.0
_POLL_S = 0.05
_SAME_START_S = 3.0  # the machine's clock may be corrected meanwhile
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ENDED = ("zombie", "dead")


@dataclass(frozen=True)
class ProcessMark:
    """A process and when it began: numbers are used again, both together are not.

    ``started`` is in seconds since 1970, on Linux with ``@`` and the namespace of the number. Earlier versions wrote
    the start of the machine and clock ticks since then, ``BOOT+TICKS``, and on a Mac the words of ps.
    """

    pid: int
    started: str


@dataclass(frozen=True)
class RunningProcess:
    """One line of the process table; ``command`` is its whole command line, ``started_s`` in seconds since 1970."""

    pid: int
    group: int
    started_s: float
    command: str


def mark_of(pid: int) -> ProcessMark | None:
    """Return the mark of a running process, or None where there is none of this number."""
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() not in _ENDED:
            return ProcessMark(pid, f"{process.create_time():.2f}{_namespace()}")
    return None


def is_running(mark: ProcessMark) -> bool | None:
    """Tell whether a marked process still runs.

    None where that can't be known: a number of another namespace, such as a container's; a process that may not be
    seen; a number in use, with a start in an unknown form.
    """
    import psutil

    if "@" in mark.started and not mark.started.endswith(_namespace() or "@"):
        return None
    try:
        process = psutil.Process(mark.pid)
        return process.status() not in _ENDED and _began_then(mark, process.create_time())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return None


def is_marked(process: RunningProcess, mark: ProcessMark) -> bool:
    """Tell whether a process is surely the marked one."""
    return process.pid == mark.pid and _began_then(mark, process.started_s) is True


def running_processes() -> list[RunningProcess]:
    """Return all processes of this machine that can be seen."""
    import psutil

    found = []
    for process in psutil.process_iter(["status", "create_time", "cmdline"]):
        seen = process.info
        with suppress(OSError):  # it has ended meanwhile
            if seen["status"] not in _ENDED and seen["create_time"] is not None:
                command = " ".join(seen["cmdline"] or ())
                found.append(RunningProcess(process.pid, os.getpgid(process.pid), seen["create_time"], command))
    return found


def members_of_group(group: int) -> list[RunningProcess]:
    """Return the running processes of a process group."""
    return [process for process in running_processes() if process.group == group]


def working_directory(pid: int) -> Path | None:
    """Return where a process runs; None where that can't be known."""
    import psutil

    try:
        return Path(psutil.Process(pid).cwd())
    except psutil.Error:
        return None


def end_group(group: int) -> bool:
    """Ask a group to end, and kill it after 10 seconds. Return whether nothing of it is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            if not members_of_group(group):
                return True
            time.sleep(_POLL_S)
    return False


def physical_memory_bytes() -> int:
    """Return the memory of this machine."""
    import psutil

    return int(psutil.virtual_memory().total)


def _began_then(mark: ProcessMark, started_s: float) -> bool | None:
    """Tell whether a process that began at ``started_s`` began when the mark says; None for a form that isn't known."""
    import psutil

    _, plus, ticks = mark.started.partition("+")
    try:
        marked_s = float(mark.started.partition("@")[0]) if not plus else psutil.boot_time() + int(ticks) / _TICKS_PER_S
    except ValueError:
        return None
    return abs(started_s - marked_s) <= _SAME_START_S


def _namespace() -> str:
    """Return what tells apart the numbers of this process namespace (pid_namespaces(7)); "" where there are none."""
    try:
        return f"@{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
