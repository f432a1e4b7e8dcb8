"""A LoRA file as sd-scripts saves it: its header, its family by its keys, whether its numbers are finite, new metadata.

A header's offsets are relative to its own end: so it can be exchanged and no tensor moves.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from spyke_kohya.engine.base_model import Family, TellingKeys, family_of
from spyke_kohya.formats.tensor_file import Header, TensorFileError, not_finite, read_header, read_values

# What only this family's LoRAs have in their keys (sd-scripts v0.10.1 networks/lora.py:870, lora_sd3.py:233).
_TELLING_KEYS: TellingKeys = (
    ("lora_unet_double_blocks_", "FLUX"),
    ("lora_unet_joint_blocks_", "SD3"),
    ("lora_unet_input_blocks_", "SDXL"),
    ("lora_te2_", "SDXL"),
)
_CONTEXT_WIDTHS: dict[int, Family] = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}
_DOWN = ".lora_down.weight"
_CONTEXT_KEY = "attn2_to_k.lora_down.weight"


@dataclass(frozen=True)
class LoraFile(Header):
    """The header of a LoRA, and where the file is."""

    path: Path

    @property
    def family(self) -> Family:
        """The base model family that the keys were made for, or "unknown"."""
        if family := family_of(self.tensors, _TELLING_KEYS):
            return family
        widths = {tensor.shape[1] for name, tensor in self.tensors.items() if name.endswith(_CONTEXT_KEY)}
        return _CONTEXT_WIDTHS.get(widths.pop(), "unknown") if len(widths) == 1 else "unknown"

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the modules, each once, ascending."""
        return tuple(sorted({self.tensors[f"{module}{_DOWN}"].shape[0] for module in self.modules}))

    @property
    def modules(self) -> list[str]:
        """The names of the modules, in the order of the file."""
        return [name.removesuffix(_DOWN) for name in self.tensors if name.endswith(_DOWN)]


def read_lora(path: Path) -> LoraFile:
    """Read the header. Raises TensorFileError for what isn't a whole safetensors file of LoRA modules."""
    try:
        header = read_header(path)
    except TensorFileError as fault:
        raise TensorFileError(f"not a readable safetensors file: {fault}") from fault
    found = LoraFile(header.metadata, header.tensors, header.data_start, path)
    if not found.ranks:
        raise TensorFileError("it has no LoRA modules: no key ends in .lora_down.weight")
    return found


def alphas_of(file: LoraFile) -> tuple[float, ...]:
    """Read the alphas of the modules, each once, ascending. Raises TensorFileError where a module has none."""
    without = [module for module in file.modules if f"{module}.alpha" not in file.tensors]
    if without:
        raise TensorFileError(f"{len(without)} of {len(file.modules)} modules have no alpha, the first is {without[0]}")
    with file.path.open("rb") as stream:
        values = {float(read_values(stream, file, f"{module}.alpha").reshape(-1)[0]) for module in file.modules}
    return tuple(sorted(values))


def first_not_finite(file: LoraFile) -> str:
    """Return the name of the first tensor with a number that is infinite or not a number, or ""."""
    with file.path.open("rb") as stream:
        stream.seek(file.data_start)
        return next(iter(not_finite(stream.read, file)), "")


def data_sha256(file: LoraFile) -> str:
    """Hash all the tensors' bytes, whatever the header says."""
    with file.path.open("rb") as stream:
        stream.seek(file.data_start)
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    with file.path.open("rb") as own:
        own.seek(file.data_start)
        copyfileobj(own, stream)
