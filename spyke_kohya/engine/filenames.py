"""The names that sd-scripts gives to the files it saves. Names only: no file is opened.

Source: sd-scripts v0.10.1 train_util.py:85-99 and 5767-5783.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

CheckpointKind = Literal["step", "epoch", "final"]

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".ckpt")  # --save_model_as

_STEP = re.compile(r"(?P<name>.+)-step(?P<number>\d{8,})")
_EPOCH = re.compile(r"(?P<name>.+)-(?P<number>\d{6,})")


class FileName(NamedTuple):
    """What a checkpoint's name says: ``number`` is the step, the epoch (counted from 1), or None for the final one."""

    output_name: str
    kind: CheckpointKind
    number: int | None


def step_file(output_name: str | None, step: int, suffix: str = ".safetensors") -> str:
    return f"{output_name or 'at'}-step{step:08d}{suffix}"


def epoch_file(output_name: str | None, epoch: int, suffix: str = ".safetensors") -> str:
    return f"{output_name or 'epoch'}-{epoch:06d}{suffix}"


def last_file(output_name: str | None, suffix: str = ".safetensors") -> str:
    return f"{output_name or 'last'}{suffix}"


def epoch_state_dir(output_name: str | None, epoch: int) -> str:
    return epoch_file(output_name, epoch, "-state")


def parse_file_name(name: str) -> FileName | None:
    """Read a checkpoint's file name back; None when sd-scripts would not have written it.

    An output name that itself ends in six digits reads as an epoch: the name alone cannot tell.
    """
    stem, dot, extension = name.rpartition(".")
    if not stem or f"{dot}{extension}" not in CHECKPOINT_SUFFIXES:
        return None
    if match := _STEP.fullmatch(stem) or _EPOCH.fullmatch(stem):
        return FileName(match["name"], "step" if match.re is _STEP else "epoch", int(match["number"]))
    return FileName(stem, "final", None)
