"""The options of ``train_network.py``, as its own parser declares them.

The table is a dump of that parser (``scripts/dump_engine_options.py``). sd-scripts checks nothing in a
``--config_file`` and takes abbreviations on its command line, so a name or a type that is off is refused here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias

Scalar: TypeAlias = str | int | float | bool
OptionValue: TypeAlias = Scalar | list[Scalar]
OptionFault: TypeAlias = Literal["unknown-key", "wrong-type", "bad-choice", "unsafe-value"]

# argparse takes a word of a list that begins with - for the next option, unless it reads as a number like these.
_NEGATIVE_NUMBER = re.compile(r"-(\d+|\d*\.\d+)")

# These belong to the launcher: it decides them for every run, so that the record of a run is always true.
RESERVED: Mapping[str, str] = {
    "dataset_config": "name the dataset preset in the top-level key `dataset`",
    "config_file": "write its keys into [train_network]; sd-scripts checks nothing in such a file",
    "output_config": "every run directory already holds the command and the presets",
    "logging_dir": "every run logs into its own run directory",
    "log_with": "every run logs to TensorBoard, the only source of per-step losses",
    "log_prefix": "the run directory names the run",
    "log_tracker_name": "the run directory names the run",
    "log_tracker_config": "every run logs into its own run directory",
    "resume": "use `spyke-kohya train PRESET --resume`",
    "resume_from_huggingface": "use `spyke-kohya train PRESET --resume`",
    "initial_epoch": "it is set when a run is resumed",
    "initial_step": "it is set when a run is resumed",
    "skip_until_initial_step": "sd-scripts numbers the steps wrongly with it",
    "console_log_file": "every run keeps its whole console in its run directory",
    "console_log_simple": "the console is read while it runs, in its usual form",
    "console_log_level": "the console is read while it runs, in its usual form",
    "debug_dataset": "it shows the dataset in windows and never trains; `spyke-kohya plan` says what it holds",
    "train_data_dir": "sd-scripts ignores it beside a dataset preset: name the folder there",
    "reg_data_dir": "sd-scripts ignores it beside a dataset preset: name the folder there, with is_reg = true",
    "in_json": "sd-scripts ignores it beside a dataset preset",
    "wandb_api_key": "a secret does not belong in a preset",
    "huggingface_token": "a secret does not belong in a preset; set HF_TOKEN in the environment",
}


@dataclass(frozen=True)
class Option:
    """One option: ``dest`` is its key in a preset, ``type`` is None for a switch, ``many`` allows a list."""

    dest: str
    type: str | None
    many: bool
    choices: tuple[Scalar | None, ...] | None
    default: Scalar | None

    @property
    def is_switch(self) -> bool:
        return self.type is None

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.is_switch:
            return "true or false"
        word = {"str": "a string", "Path": "a path", "int": "a whole number"}.get(self.type or "", "a number")
        return f"{word}, or a list of them" if self.many else word


@cache
def train_network_options() -> Mapping[str, Option]:
    """Return every option of ``train_network.py`` at the pinned release, by its key."""
    dumped = json.loads(files(__package__).joinpath("train_network_options.json").read_text(encoding="utf-8"))
    return {
        row["dest"]: Option(
            row["dest"], row["type"], row["nargs"] == "*", tuple(row["choices"] or ()) or None, row["default"]
        )
        for row in dumped
    }


def parser_defaults() -> dict[str, Scalar | None]:
    """Return what each option is when nobody sets it."""
    return {name: option.default for name, option in train_network_options().items()}


def check_option(name: str, value: object) -> tuple[OptionFault, str] | None:
    """Say what is wrong with one ``[train_network]`` key, or None: the kind of fault and a sentence."""
    option = train_network_options().get(name)
    if option is None:
        return "unknown-key", _did_you_mean(name)
    if not _fits(option, value):
        return "wrong-type", f"expected {option.expected}, got {described(value)}"
    if not is_finite(value):
        return "wrong-type", f"expected a finite number, got {value!r}"
    if option.choices is not None and value not in option.choices:
        choices = ", ".join(str(choice) for choice in option.choices if choice is not None)
        return "bad-choice", f"{value!r} is not one of {choices}"
    danger = next(filter(None, map(_danger, value)), None) if isinstance(value, list) else _unpassable(str(value))
    return ("unsafe-value", danger) if danger else None


def is_finite(value: object) -> bool:
    """Tell whether a number, or every number in a list or table, is one that a float can hold."""
    if isinstance(value, list | tuple | dict):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


def option_arguments(options: Mapping[str, OptionValue]) -> list[str]:
    """Return the command-line words for checked options, in their order, as ``--name=value``.

    A switch set to false is left out: every switch of the parser is off by default. A list becomes words after it.
    """
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        elif isinstance(value, list):
            words += [f"--{name}", *(str(item) for item in value)]
        else:
            words.append(f"--{name}={value}")
    return words


def _danger(item: object) -> str | None:
    """Say why a list's item can't stand as a word of its own on the command line, or return None."""
    word = str(item)
    if word.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(word):
        return f"{word!r} would be taken for another option"
    return f"{word!r} holds a line break" if "\n" in word or "\r" in word else _unpassable(word)


def _unpassable(word: str) -> str | None:
    """Say why ``word`` would not arrive as it is, or return None."""
    if word == "--":
        return "'--' alone is dropped by the parser of train_network.py"
    if "\0" in word:
        return f"{word!r} holds a null character"
    return f"{word!r} is no valid Unicode" if any("\ud800" <= character <= "\udfff" for character in word) else None


def _did_you_mean(name: str) -> str:
    close = get_close_matches(name.lower().replace("-", "_"), train_network_options(), n=1, cutoff=0.6)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"train_network.py has no option `{name}`{hint}"


def _fits(option: Option, value: object) -> bool:
    if option.is_switch:
        return isinstance(value, bool)
    if isinstance(value, list):
        return option.many and bool(value) and all(_fits_scalar(option.type, item) for item in value)
    return _fits_scalar(option.type, value)


def _fits_scalar(kind: str | None, value: object) -> bool:
    if isinstance(value, bool):
        return False
    if kind in ("str", "Path"):
        return isinstance(value, str)
    return isinstance(value, int) if kind == "int" else isinstance(value, int | float)


def described(value: object) -> str:
    """Describe a value of a preset as TOML's reader knows it: its kind, and itself."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    names = {int: "the whole number ", float: "the number ", str: "the text ", list: "the list "}
    return f"{names.get(type(value), '')}{value!r}"
