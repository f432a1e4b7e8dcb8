"""The names sd-scripts gives the checkpoints it saves."""

from __future__ import annotations


def step_file(output_name: str | None, step: int, extension: str) -> str:
    """The checkpoint saved at a step; ``extension`` has its dot (sd-scripts v0.10.1 train_util.py:97, 5776)."""
    return f"{_or_default(output_name, 'at')}-step{step:08d}{extension}"


def epoch_file(output_name: str | None, epoch: int, extension: str) -> str:
    """The checkpoint saved at the end of an epoch, counted from 1 (sd-scripts v0.10.1 train_util.py:90, 5771)."""
    return f"{_or_default(output_name, 'epoch')}-{epoch:06d}{extension}"


def last_file(output_name: str | None, extension: str) -> str:
    """The checkpoint saved when training ends (sd-scripts v0.10.1 train_util.py:94, 5781)."""
    return f"{_or_default(output_name, 'last')}{extension}"


def _or_default(output_name: str | None, default: str) -> str:
    return default if output_name is None else output_name
