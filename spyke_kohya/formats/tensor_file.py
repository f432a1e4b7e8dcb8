"""A safetensors file: its header, checked as the safetensors library checks it, and a tensor's numbers.

The layout is 8 bytes of header length, the header as JSON, then the tensors' bytes, to which the header's offsets are
relative. The library itself gives no offsets and takes no stream, and its numpy binding has no bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# By type: a number's bits, and those that are all set in what is infinite or no number; F8_E4M3 has no infinity.
_NOT_FINITE = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
_PIECE_BYTES = 1 << 22  # a multiple of every number's size
_MAX_HEADER_BYTES = 100_000_000  # as the safetensors library has it


class TensorFileError(ValueError):
    """The file is not safetensors, not whole, or not what it should hold; the text says why."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: ``start`` and ``end`` in bytes after the header. ``dtype`` is safetensors' own, like F16."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors by name, in the header's order; ``data_start`` is where in the file the first of them begins."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    data_start: int

    @property
    def file_bytes(self) -> int:
        """The size that a whole file with this header has."""
        return self.data_start + max((tensor.end for tensor in self.tensors.values()), default=0)


def read_header(path: Path) -> Header:
    """Read the header of a whole file. Raises TensorFileError, also for a file that can't be opened."""
    try:
        with path.open("rb") as stream:
            size_bytes = path.stat().st_size
            header = parse_header(stream.read, size_bytes)
    except OSError as fault:
        raise TensorFileError(str(fault)) from fault
    if size_bytes != header.file_bytes:
        how = "cut short" if size_bytes < header.file_bytes else "too long"
        raise TensorFileError(f"it is {how}: it has {size_bytes} bytes, and its header promises {header.file_bytes}")
    return header


def parse_header(read: Callable[[int], bytes], size_bytes: int) -> Header:
    """Read the header of a file of that size, up to where its tensors begin; those may be missing.

    ``read`` gives as many of the file's bytes as it is asked for, from the first on. Raises TensorFileError.
    """
    first = read(8)
    if len(first) < 8:
        raise TensorFileError("its header can't be read: the file ends before it")
    length = int.from_bytes(first, "little")
    if length > min(size_bytes - 8, _MAX_HEADER_BYTES):
        raise TensorFileError("its header can't be read: it would be longer than the file")
    metadata, tensors = _parse(read(length))
    _check_order(tensors.values())
    return Header(metadata, tensors, 8 + length)


def _parse(text: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata")
        return metadata, {name: _tensor(entry) for name, entry in entries.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
        message = f"its header can't be read: it is not safetensors' ({type(fault).__name__})"
        raise TensorFileError(message) from fault


def _tensor(entry: dict[str, Any]) -> Tensor:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not (isinstance(dtype, str) and all(isinstance(number, int) for number in (*shape, start, end))):
        raise TypeError("types")
    if min((*shape, start)) < 0 or start > end:
        raise ValueError("offsets")
    return Tensor(dtype, shape, start, end)


def _check_order(tensors: Iterable[Tensor]) -> None:
    """Raise TensorFileError where tensors overlap or leave a gap, both of which the library refuses to load."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise TensorFileError("its tensors do not follow one another")
        end = tensor.end


def read_values(stream: BinaryIO, header: Header, name: str) -> NDArray[Any]:
    """Return a tensor in its shape and type; bfloat16, which numpy has not, as float32.

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
    import numpy as np  # takes 0.1 s, and headers need none

    numbers: NDArray[Any] = np.frombuffer(data, _DTYPES[tensor.dtype])
    if tensor.dtype == "BF16":  # the upper half of a float32
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    return numbers.reshape(tensor.shape)


def not_finite(read: Callable[[int], bytes], header: Header) -> list[str]:
    """Return the names of the tensors that hold a number that is infinite or not a number, in the file's order.

    ``read`` gives the file's next bytes, from the first tensor's on; all are read, 4 MB at a time. Whole numbers are
    finite.
    """
    in_order = sorted(header.tensors.items(), key=lambda item: item[1].start)
    return [name for name, tensor in in_order if not _is_finite(read, tensor)]


def _is_finite(read: Callable[[int], bytes], tensor: Tensor) -> bool:
    import numpy as np

    kind, mask = _NOT_FINITE.get(tensor.dtype, ("", 0))
    finite = True
    for start in range(tensor.start, tensor.end, _PIECE_BYTES):
        data = read(min(_PIECE_BYTES, tensor.end - start))
        if finite and kind:
            bits = np.frombuffer(data, kind, len(data) // np.dtype(kind).itemsize)
            finite = not ((bits & mask) == mask).any()
    return finite
