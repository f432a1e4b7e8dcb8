"""A LoRA file as sd-scripts saves it: its header, what its keys tell, whether its numbers are sound, new metadata.

The safetensors layout is 8 bytes of header length, the header as JSON, then the tensors' bytes, to which the header's
offsets are relative: so a header can be exchanged and no tensor moves.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from spyke_kohya.engine.base_model import Family

_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 22
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}

# What only this family's LoRAs have in their keys (sd-scripts v0.10.1 networks/lora.py:870, lora_sd3.py:233).
_TELLING_KEYS: tuple[tuple[str, Family], ...] = (
    ("lora_unet_double_blocks_", "FLUX"),
    ("lora_unet_joint_blocks_", "SD3"),
    ("lora_unet_input_blocks_", "SDXL"),
    ("lora_te2_", "SDXL"),
)
_CONTEXT_WIDTHS: dict[int, Family] = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}
_CONTEXT_KEY = "attn2_to_k.lora_down.weight"


class LoraFileError(ValueError):
    """The file is no LoRA that can be read; the text says why."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: ``start`` and ``end`` in bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class LoraFile:
    """The header of a LoRA; ``data_start`` is where in the file its tensors begin."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    data_start: int

    @property
    def family(self) -> Family:
        """The base model family that the keys were made for, or "unknown"."""
        for prefix, family in _TELLING_KEYS:
            if any(name.startswith(prefix) for name in self.tensors):
                return family
        widths = {tensor.shape[1] for name, tensor in self.tensors.items() if name.endswith(_CONTEXT_KEY)}
        return _CONTEXT_WIDTHS.get(widths.pop(), "unknown") if len(widths) == 1 else "unknown"

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the modules, each once, ascending."""
        return tuple(
            sorted({tensor.shape[0] for name, tensor in self.tensors.items() if name.endswith(".lora_down.weight")})
        )


def read_lora(path: Path) -> LoraFile:
    """Read the header. Raises LoraFileError for what isn't a whole safetensors file of LoRA modules."""
    try:
        with path.open("rb") as stream:
            length = _header_length(stream, path.stat().st_size)
            header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: Tensor(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in header.items()
        }
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise LoraFileError(f"not a readable safetensors file: {fault}") from fault
    found = LoraFile(path, metadata, tensors, 8 + length)
    _check_whole(found)
    return found


def alphas_of(file: LoraFile) -> tuple[float, ...]:
    """The alphas of the modules, each once, ascending. Raises LoraFileError where a module has none."""
    modules = [name.removesuffix(".lora_down.weight") for name in file.tensors if name.endswith(".lora_down.weight")]
    without = [module for module in modules if f"{module}.alpha" not in file.tensors]
    if without:
        raise LoraFileError(f"{len(without)} of {len(modules)} modules have no alpha, the first is {without[0]}")
    with file.path.open("rb") as stream:
        values = {float(_values(stream, file, f"{module}.alpha").reshape(-1)[0]) for module in modules}
    return tuple(sorted(values))


def first_not_finite(file: LoraFile) -> str:
    """The name of the first tensor with a number that is infinite or not a number, or ""."""
    with file.path.open("rb") as stream:
        for name in file.tensors:
            if not _is_finite(stream, file, name):
                return name
    return ""


def data_sha256(file: LoraFile) -> str:
    """The hash of all the tensors' bytes, whatever the header says."""
    digest = hashlib.sha256()
    for chunk in _data_chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def write_with_metadata(file: LoraFile, metadata: Mapping[str, str], stream: BinaryIO) -> None:
    """Write the file with ``metadata`` put over its own; the tensors' bytes are copied as they are."""
    header = {"__metadata__": {**file.metadata, **metadata}} | {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [tensor.start, tensor.end]}
        for name, tensor in file.tensors.items()
    }
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)  # the tensors stay aligned to 8 bytes, as safetensors writes them
    stream.write(struct.pack("<Q", len(encoded)))
    stream.write(encoded)
    for chunk in _data_chunks(file):
        stream.write(chunk)


def _header_length(stream: BinaryIO, size_bytes: int) -> int:
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > min(_MAX_HEADER_BYTES, size_bytes):
        raise ValueError("its header is longer than the file")
    return int(length)


def _check_whole(file: LoraFile) -> None:
    if not file.ranks:
        raise LoraFileError("it has no LoRA modules: no key ends in .lora_down.weight")
    size = file.path.stat().st_size
    end = file.data_start + max(tensor.end for tensor in file.tensors.values())
    if size != end:
        raise LoraFileError(f"it has {size} bytes, and its header promises {end}")


def _data_chunks(file: LoraFile) -> Iterator[bytes]:
    with file.path.open("rb") as stream:
        stream.seek(file.data_start)
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _values(stream: BinaryIO, file: LoraFile, name: str) -> np.ndarray:
    tensor = file.tensors[name]
    stream.seek(file.data_start + tensor.start)
    data = stream.read(tensor.end - tensor.start)
    if tensor.dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if tensor.dtype not in _DTYPES:
        raise LoraFileError(f"{name} is of the type {tensor.dtype}, which no LoRA of sd-scripts has")
    return np.frombuffer(data, np.dtype(_DTYPES[tensor.dtype]).newbyteorder("<"))


def _is_finite(stream: BinaryIO, file: LoraFile, name: str) -> bool:
    return bool(np.isfinite(_values(stream, file, name)).all())
