"""What a base model is, by its header alone: the family of its tensors. No weight is read, no pickle opened."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from spyke_kohya.formats.tensor_file import TensorFileError, read_header

Family = Literal["SD1.5", "SD2", "SDXL", "SD3", "FLUX", "unknown"]
TellingKeys: TypeAlias = tuple[tuple[str, Family], ...]
"""How a tensor's name begins that only one family has."""

# A tensor that only this family's original checkpoints have (sd-scripts v0.10.1 model_util.py, sdxl_model_util.py).
_TELLING_KEYS: TellingKeys = (
    ("conditioner.embedders.1.model.", "SDXL"),
    ("model.diffusion_model.joint_blocks.", "SD3"),
    ("double_blocks.", "FLUX"),
    ("model.diffusion_model.double_blocks.", "FLUX"),
    ("cond_stage_model.model.transformer.", "SD2"),
    ("cond_stage_model.transformer.", "SD1.5"),
)
_PIPELINES: dict[str, Family] = {
    "StableDiffusionXLPipeline": "SDXL",
    "StableDiffusion3Pipeline": "SD3",
    "FluxPipeline": "FLUX",
}

# The width of the text encoder: CLIP ViT-L, OpenCLIP ViT-H.
_TEXT_ENCODERS: dict[int, Family] = {768: "SD1.5", 1024: "SD2"}


@dataclass(frozen=True)
class BaseHeader:
    """``form`` is what is on the disk; ``problem`` says why it can't be used, or is ""."""

    form: Literal["safetensors", "diffusers", "pickle", "missing", "broken"]
    family: Family
    problem: str = ""


def inspect_base_model(path: Path) -> BaseHeader:
    """Look at a base model: a safetensors file, a diffusers directory, or a .ckpt. Never raises."""
    try:
        if path.is_dir():
            return _inspect_directory(path)
        if not path.is_file():
            return BaseHeader("missing", "unknown", "there is no such file or directory")
    except OSError as fault:  # a name that is too long, a folder that may not be entered
        return BaseHeader("missing", "unknown", str(fault.strerror))
    if path.suffix.lower() != ".safetensors":
        return BaseHeader("pickle", "unknown")
    try:
        return BaseHeader("safetensors", family_of(read_header(path).tensors, _TELLING_KEYS) or "unknown")
    except TensorFileError as fault:
        return BaseHeader("broken", "unknown", f"not a readable safetensors file: {fault}")


def family_of(tensor_names: Collection[str], telling: TellingKeys) -> Family | None:
    """Return the family of the first prefix that a tensor's name has."""
    return next((family for key, family in telling if any(name.startswith(key) for name in tensor_names)), None)


@dataclass(frozen=True)
class Weights:
    """``numbers`` counts those of all tensors, ``dtypes`` names the kinds they are stored in, like F16."""

    numbers: int
    dtypes: frozenset[str]


def read_weights(path: Path) -> Weights | None:
    """Read from its headers what a base model's tensors hold; None where that can't be read, as of a pickle."""
    parts = ("unet", "text_encoder", "vae")
    try:
        files = [path] if path.is_file() else [file for part in parts for file in (path / part).glob("*.safetensors")]
        tensors = [tensor for file in files for tensor in read_header(file).tensors.values()]
        numbers = sum(math.prod(tensor.shape) for tensor in tensors)
        is_sound = 0 < numbers <= 8 * sum(file.stat().st_size for file in files)
        return Weights(numbers, frozenset(tensor.dtype for tensor in tensors)) if is_sound else None
    except (OSError, ValueError):  # no path, or no header
        return None


def _inspect_directory(path: Path) -> BaseHeader:
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        encoder = json.loads((path / "text_encoder" / "config.json").read_text(encoding="utf-8"))
        family = _PIPELINES.get(index.get("_class_name", ""))
        return BaseHeader("diffusers", family or _TEXT_ENCODERS.get(encoder.get("hidden_size"), "unknown"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as fault:
        return BaseHeader("broken", "unknown", f"not a diffusers model: {fault}")
