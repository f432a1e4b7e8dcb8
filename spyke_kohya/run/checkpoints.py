"""The checkpoints that a run really left on the disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SavedCheckpoint:
    """A network file of the run: ``file`` is its name in the output directory."""

    step: int
    file: str
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_checkpoints(
    expected: Sequence[tuple[int, Path]], *, newer_than: float
) -> tuple[list[SavedCheckpoint], list[Path]]:
    """Split expected (step, file) pairs into those that this run wrote whole, and the others.

    ``newer_than`` is in seconds since the epoch: an older file is left from an earlier run.
    """
    saved, missing = [], []
    for step, file in expected:
        if is_whole(file) and file.stat().st_mtime >= newer_than - 1.0:
            saved.append(SavedCheckpoint(step, file.name, file.stat().st_size))
        else:
            missing.append(file)
    return saved, missing


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its own header says; the tensors are not read."""
    try:
        with file.open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
            if header_bytes > file.stat().st_size:
                return False
            header = json.loads(stream.read(header_bytes))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(file.stat().st_size == 8 + header_bytes + max(ends, default=0))
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
