"""Is there a base model, and one that ``train_network.py`` can train on and may open?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spyke_kohya.engine.base_model import inspect_base_model, read_weights
from spyke_kohya.engine.batching import Size
from spyke_kohya.engine.command import path_option
from spyke_kohya.files import sha256_of
from spyke_kohya.findings import Finding, error, warning

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_SCRIPTS = {"SDXL": "sdxl_train_network.py", "SD3": "sd3_train_network.py", "FLUX": "flux_train_network.py"}
_FINE_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"})
# Sides, in pixels, of a square between which LoRAs of these families are trained: they learnt 512 and 768.
_USUAL_SIDES = {"SD1.5": (384, 1024), "SD2": (512, 1280)}
FULL_SIZE = 500_000_000
"""Numbers that a real Stable Diffusion has at the least (SD1.5: 1.07e9); what has fewer is a toy."""


def base_path(options: Mapping[str, Any], root: Path) -> Path:
    """Where the base model is, if it is on the disk."""
    return path_option(options, "pretrained_model_name_or_path", root)


def check_base_model(
    options: Mapping[str, Any], root: Path, where: str, *, allow_pickle: bool = False
) -> list[Finding]:
    """Return findings on ``pretrained_model_name_or_path``, by its header only."""
    place = f"{where}: [train_network] pretrained_model_name_or_path"
    path = base_path(options, root)
    header = inspect_base_model(path)
    if header.form == "missing":
        return [_missing(str(options["pretrained_model_name_or_path"]), path, place)]
    if header.form == "broken":
        remedy = "download or copy the model again"
        return [error("base.unreadable", place, f"{path}: {header.problem}", remedy)]
    if header.form == "pickle":
        return [] if allow_pickle else [_pickle(path, place)]
    return [*_family(header.family, path.name, place, is_v2=bool(options["v2"])), *_dtypes(path, place)]


def _family(family: str, name: str, place: str, *, is_v2: bool) -> list[Finding]:
    if family in _OTHER_SCRIPTS:
        message = f"{name} is a {family} model; train_network.py trains SD1.5 and SD2"
        remedy = f"it needs sd-scripts' {_OTHER_SCRIPTS[family]}; name an SD1.5 model"
        return [error("base.family", place, message, remedy)]
    if family == "SD2" and not is_v2:
        return [error("base.family", place, f"{name} is an SD2 model", "set v2 = true, or name an SD1.5 model")]
    if family == "SD1.5" and is_v2:
        return [error("base.family", place, f"{name} is an SD1.5 model, and v2 is set", "remove v2")]
    return []


def _dtypes(path: Path, place: str) -> list[Finding]:
    weights = read_weights(path)
    odd = sorted(weights.dtypes - _FINE_DTYPES) if weights else []
    if not odd:
        return []
    message = (
        f"{path.name} holds weights as {', '.join(odd)}: they are widened to float32 and stay as coarse as they are"
    )
    return [warning("base.dtype", place, message, "train on the model's float16 or float32 file")]


def _pickle(path: Path, place: str) -> Finding:
    message = f"{path.name} is a pickle: it can run any program when sd-scripts loads it, and can't be looked into"
    remedy = "convert it to .safetensors; or say --allow-pickle if you trust it"
    return error("base.pickle", place, message, remedy)


def check_resolution(options: Mapping[str, Any], resolutions: list[tuple[str, Size]], root: Path) -> list[Finding]:
    """Warn of each dataset, named by its place, whose resolution the base model's family doesn't know."""
    path = base_path(options, root)
    family, weights = inspect_base_model(path).family, read_weights(path)
    if family not in _USUAL_SIDES or weights is None or weights.numbers < FULL_SIZE:
        return []
    low, high = _USUAL_SIDES[family]
    return [
        warning(
            "dataset.resolution-unusual",
            f"{where}.resolution",
            f"{width}x{height} is far from what {family} was trained at: it draws poorly at that size",
            f"choose a resolution from {low} to {high}, for example {512 if family == 'SD1.5' else 768}",
        )
        for where, (width, height) in resolutions
        if not low**2 <= width * height <= high**2
    ]


def file_hash(path: Path) -> str | None:
    """Return the SHA-256 of a base model's file; None where it is a directory, or can't be read."""
    try:
        return sha256_of(path)
    except OSError:
        return None


def _missing(written: str, path: Path, place: str) -> Finding:
    if _HUB_NAME.fullmatch(written) and not written.endswith((".safetensors", ".ckpt", ".pt")):
        message = f"{written} is no local path: sd-scripts will download it from the Hugging Face hub"
        return warning("base.from-hub", place, message, "name a local file to train without the network")
    message = f"the base model does not exist: {path}"
    return error("base.missing", place, message, "correct the path; sd-scripts would only notice after its start-up")
