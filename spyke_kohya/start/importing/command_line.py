"""Settings as other front ends write them, as flat values by ``train_network.py``'s own option names.

Here a ``--config_file`` and an ``accelerate launch`` line; ``kohya_ss.py`` has the window's. What is not among the
options is said.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from spyke_kohya.engine.options import Option, train_network_options
from spyke_kohya.errors import PresetError

LAUNCHER_THREADS = "num_cpu_threads_per_process"


@dataclass
class ForeignSettings:
    """What was read: ``values`` by option name, not checked yet, and ``notes`` on what was left behind or doubtful."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, value: object) -> None:
        """Keep a value under an option's name, in the option's type; note what can't be one."""
        option = train_network_options().get(name)
        if name == LAUNCHER_THREADS:
            option = Option(name, "int", many=False, choices=None, default=None)
        if option is None:
            self.notes.append(f"{name}: train_network.py of this release has no such option")
            return
        try:
            self.values[name] = _typed(option, value)
        except (ValueError, TypeError, OverflowError):
            self.notes.append(f"{name} = {value!r}: expected {option.expected}")


def read_config_file(document: Mapping[str, Any]) -> ForeignSettings:
    """Tables are flattened, as sd-scripts does (sd-scripts v0.10.1 train_util.py:4748)."""
    found = ForeignSettings()
    for name, value in document.items():
        for key, inner in value.items() if isinstance(value, dict) else [(name, value)]:
            found.put(key, inner)
    return found


def split_words(text: str) -> list[str]:
    """Return the words of a shell; of a text with an open quote, what blanks divide."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def read_command(text: str) -> ForeignSettings:
    """Return the words of a shell's command; a trailing backslash, caret or backtick goes on with the next line."""
    joined = re.sub(r"[\\^`][ \t]*\r?\n", " ", text)
    try:
        words = shlex.split(joined, comments=True)
    except ValueError as fault:
        raise PresetError(f"the command can't be taken apart: {fault}", remedy="close its quotes") from fault
    script = next((place for place, word in enumerate(words) if word.endswith("train_network.py")), None)
    if script is None:
        raise PresetError("the command does not run train_network.py", remedy="give the whole command")
    found = ForeignSettings()
    if re.split(r"[/\\]", words[script])[-1] != "train_network.py":
        found.notes.append(f"{words[script]}: it is imported as train_network.py, which trains SD1.5 and SD2")
    _read_launcher(words[:script], found)
    read_words(words[script + 1 :], found)
    return found


def _read_launcher(words: list[str], found: ForeignSettings) -> None:
    for flag, values in _flags(words):
        if flag == LAUNCHER_THREADS and values:
            found.put(flag, values[0])
        else:
            found.notes.append(f"accelerate's --{flag} {' '.join(values)}".rstrip() + ": the launcher decides it")
    for word in words:
        if re.match(r"[A-Z_][A-Z0-9_]*=", word):
            found.notes.append(f"{word}: the target's environment stands in for it")


def read_words(words: list[str], found: ForeignSettings) -> None:
    for flag, values in _flags(words):
        name = _whole_name(flag, found)
        option = train_network_options().get(name)
        if option is None:
            found.put(name, values)
        elif option.is_switch:
            found.put(name, True)
        else:
            found.put(name, values if option.many else values[0] if values else "")


def _flags(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words that follow it, or the one after its ``=``."""
    flag, values = "", list[str]()
    for word in [*words, "--"]:
        if not word.startswith("--"):
            values.append(word)
            continue
        if flag:
            yield flag, values
        flag, equals, value = word[2:].partition("=")
        values = [value] if equals else []


def _whole_name(flag: str, found: ForeignSettings) -> str:
    """argparse takes an unambiguous beginning for the whole name; so does this, and says so."""
    names = train_network_options()
    if flag in names:
        return flag
    meant = [name for name in names if name.startswith(flag)]
    if len(meant) != 1:
        return flag
    found.notes.append(f"--{flag}: sd-scripts takes it for --{meant[0]}, so it is imported as that")
    return meant[0]


def _typed(option: Option, value: object) -> object:
    if option.is_switch:
        if value in (True, 1, "true", "True"):
            return True
        if value in (False, 0, "false", "False"):
            return False
        raise ValueError
    if option.many:
        items = value if isinstance(value, list) else [value]
        return [_scalar(option.type, item) for item in items]
    return _scalar(option.type, value)


def _scalar(kind: str | None, value: object) -> object:
    if isinstance(value, bool | dict | list):
        raise TypeError
    if kind in ("str", "Path"):
        return str(value)
    text = str(value)
    if kind == "int_or_float" and text.endswith("%"):
        return float(text[:-1]) / 100
    number = float(text)
    if kind == "float":
        return number
    if kind == "int" and number != int(number):
        raise ValueError
    return int(number) if kind == "int" or number == int(number) else number
