"""The numbers of a safetensors file. Apart from its header, which is read where numpy is too slow to import."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from spyke_kohya.formats.tensor_file import Header, Tensor, TensorFileError

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_values(stream: BinaryIO, header: Header, name: str) -> NDArray[Any]:
    """A tensor in its shape and type; bfloat16, which numpy has not, as float32.

    ``stream`` is the header's file. Raises TensorFileError for other types, and for bytes that don't fit the shape.
    """
    tensor = header.tensors[name]
    if tensor.dtype not in _DTYPES:
        raise TensorFileError(f"{name} is of the type {tensor.dtype}, which no LoRA of sd-scripts has")
    stream.seek(header.data_start + tensor.start)
    data = stream.read(tensor.end - tensor.start)
    try:
        return _numbers(data, tensor)
    except (ValueError, OverflowError) as fault:
        raise TensorFileError(f"{name} has {len(data)} bytes, which are not those of its shape") from fault


def _numbers(data: bytes, tensor: Tensor) -> NDArray[Any]:
    numbers: NDArray[Any] = np.frombuffer(data, _DTYPES[tensor.dtype])
    if tensor.dtype == "BF16":  # the upper half of a float32
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    return numbers.reshape(tensor.shape)
