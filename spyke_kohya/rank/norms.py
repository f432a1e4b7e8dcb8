"""How large a LoRA's change of the weights is, from its file alone. It grows all through training, with no optimum."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spyke_kohya.errors import NothingToRank
from spyke_kohya.rank.windows import FloatArray

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_MOST_HEADER_BYTES = 100_000_000
BLOW_UP = 3.0
"""A norm that grows by this factor from one checkpoint to the next, when it had grown steadily, has blown up."""


@dataclass(frozen=True)
class WeightNorm:
    """The Frobenius norm of all changes of the base's weights together; ``largest`` names the layer with the most."""

    total: float
    largest: str


def weight_norm(file: Path) -> WeightNorm:
    """The norm of ``alpha / rank * B A`` over all layers, without multiplying it out: sqrt(sum((B'B) * (A A'))).

    A convolution's down weights are (rank, in, h, w): they are one matrix of in x h x w columns. Raises NothingToRank
    when the file can't be read as a LoRA.
    """
    try:
        tensors = _read(file)
        squares = {name: _squared_norm(tensors, name) for name in _layers(tensors)}
    except (OSError, ValueError, KeyError, struct.error) as fault:
        raise NothingToRank(f"its weights can't be read: {fault}", where=str(file)) from fault
    if not squares:
        raise NothingToRank("there is no LoRA in it", where=str(file))
    return WeightNorm(float(np.sqrt(sum(squares.values()))), max(squares, key=squares.__getitem__))


def blown_up(norms: list[float]) -> list[int]:
    """The indices of norms, in step order, that are not finite or leap above the one before."""
    leaps = [i for i in range(2, len(norms)) if norms[i] > BLOW_UP * norms[i - 1]]
    return sorted({*leaps, *(i for i, norm in enumerate(norms) if not np.isfinite(norm))})


def _layers(tensors: dict[str, FloatArray]) -> list[str]:
    return [name.removesuffix(".lora_down.weight") for name in tensors if name.endswith(".lora_down.weight")]


def _squared_norm(tensors: dict[str, FloatArray], name: str) -> float:
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    rank = len(down)
    a, b = down.reshape(rank, -1), up.reshape(-1, rank)
    alpha = float(tensors.get(f"{name}.alpha", np.array(rank)))
    return float((alpha / rank) ** 2 * np.sum((b.T @ b) * (a @ a.T)))


def _read(file: Path) -> dict[str, FloatArray]:
    """Every tensor as 64-bit floats; numpy has no bfloat16, which is the upper half of a 32-bit float."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _MOST_HEADER_BYTES:
            raise ValueError("not a safetensors file")
        header = json.loads(stream.read(length))
        data = stream.read()
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: _tensor(entry, data) for name, entry in entries.items() if _is_lora(name)}


def _is_lora(name: str) -> bool:
    return name.endswith((".lora_down.weight", ".lora_up.weight", ".alpha"))


def _tensor(entry: dict[str, Any], data: bytes) -> FloatArray:
    begin, end = entry["data_offsets"]
    raw = data[begin:end]
    if entry["dtype"] == "BF16":
        values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        values = np.frombuffer(raw, _DTYPES[entry["dtype"]]).astype(np.float64)
    return np.asarray(values.reshape(entry["shape"]), dtype=np.float64)
