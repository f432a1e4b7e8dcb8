"""How large a LoRA's change of the weights is, from its file alone. It grows all through training, with no optimum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spyke_kohya.errors import NothingToRank
from spyke_kohya.formats.tensor_file import read_header, read_values
from spyke_kohya.rank.windows import FloatArray

BLOW_UP = 3.0
"""A norm that grows by this factor from one checkpoint to the next, when it had grown steadily, has blown up."""


@dataclass(frozen=True)
class WeightNorm:
    """The Frobenius norm of all changes of the base's weights together; ``largest`` names the layer with the most."""

    total: float
    largest: str


def weight_norm(file: Path) -> WeightNorm:
    """Return the norm of ``alpha / rank * B A`` over all layers, without multiplying it out: sqrt(sum((B'B) * (A A'))).

    A convolution's down weights are (rank, in, h, w): they are one matrix of in x h x w columns. Raises NothingToRank
    when the file can't be read as a LoRA.
    """
    try:
        tensors = _read(file)
        squares = {name: _squared_norm(tensors, name) for name in _layers(tensors)}
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError) as fault:
        raise NothingToRank(f"its weights can't be read: {fault}", where=str(file)) from fault
    if not squares:
        raise NothingToRank("there is no LoRA in it", where=str(file))
    return WeightNorm(float(np.sqrt(sum(squares.values()))), max(squares, key=squares.__getitem__))


def blown_up(norms: list[float]) -> list[int]:
    """Return the indices of norms, in step order, that are not finite or leap above the one before."""
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
    """Every tensor of a LoRA, in its shape, as 64-bit floats. Raises OSError and TensorFileError."""
    header = read_header(file)
    names = [name for name in header.tensors if _is_lora(name)]
    with file.open("rb") as stream:
        return {name: read_values(stream, header, name).astype(np.float64) for name in names}


def _is_lora(name: str) -> bool:
    return name.endswith((".lora_down.weight", ".lora_up.weight", ".alpha"))
