"""What the engine's console spreads over several lines: wrapped log records and tracebacks.

Knows how rich wraps and how Python prints a failure; which line opens one is ``console.py``'s business.
"""

from __future__ import annotations

import re
from collections import deque
from unicodedata import east_asian_width

MAX_LINES = 60
MAX_LINE_CHARS = 1000
TRACEBACK_HEAD = "Traceback (most recent call last):"
_MESSAGE_COLUMN = 29  # "YYYY-mm-dd HH:MM:SS " and the level, padded to 8, and a blank
_SOURCE = re.compile(r"[\w.-]+\.py:\d+")
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_LAUNCHER_FRAME = re.compile(r'  File ".*accelerate[/\\]commands[/\\]')
_LAUNCHER_END = re.compile(r"(died with [^']*|returned non-zero exit status \d+)\.$")


class LogRecord:
    """One record of rich's RichHandler: time, level, text, and ``file.py:NNN`` at the right of its first line."""

    def __init__(self, level: str, line: str) -> None:
        self.level = level
        message, _, source = line.rstrip().rpartition(" ")
        if not _SOURCE.fullmatch(source):
            message, source = line, ""
        self._width = _cells(message) - _MESSAGE_COLUMN if source else 0
        self._lines = [message[_MESSAGE_COLUMN:].strip()]

    def takes(self, line: str) -> bool:
        """Tell whether ``line`` belongs to the record, and keep it if so (the first 60)."""
        if not line.startswith(" " * _MESSAGE_COLUMN):
            return False
        if len(self._lines) < MAX_LINES:
            self._lines.append(line.strip())
        return True

    @property
    def text(self) -> str:
        """The message on one line: a word that rich had to fold is whole again."""
        joined = previous = ""
        for line in filter(None, self._lines):
            joined += ("" if not previous or self._folds(previous, line) else " ") + line
            previous = line
        return joined

    def _folds(self, line: str, following: str) -> bool:
        return " " not in line and _cells(line) + _cells(following[0]) > self._width > 0


class Traceback:
    """One traceback with all those chained to it, from its first line on; the last exception is the one that counts."""

    def __init__(self) -> None:
        self.exception = ""
        self.of_launcher = False
        self._lines: deque[str] = deque([TRACEBACK_HEAD], maxlen=MAX_LINES)
        self._after_frame = False

    def takes(self, line: str) -> bool:
        """Tell whether ``line`` belongs to the traceback: all do, except another one that isn't chained to it."""
        if line.startswith(TRACEBACK_HEAD) and self._lines[-1] not in _CHAINED:
            return False
        self._note_exception(line)
        self._lines.append(line.rstrip()[:MAX_LINE_CHARS])
        return True

    @property
    def text(self) -> str:
        """The traceback's last 60 lines."""
        return "\n".join(self._lines)

    def _note_exception(self, line: str) -> None:
        if line.startswith('  File "'):
            self._after_frame = True
            self.of_launcher = self.of_launcher or bool(_LAUNCHER_FRAME.match(line))
        elif self._after_frame and not line.startswith(" "):
            self._after_frame = False
            self.exception = _short(line.rstrip())


def _short(exception: str) -> str:
    """Shorten a launcher's CalledProcessError: its command is the longest and least useful part."""
    if exception.startswith("subprocess.CalledProcessError: ") and (end := _LAUNCHER_END.search(exception)):
        return end[1]
    return exception[:MAX_LINE_CHARS]


def _cells(text: str) -> int:
    """Count the columns that ``text`` takes on a terminal."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
