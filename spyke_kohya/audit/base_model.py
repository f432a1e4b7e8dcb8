"""Is there a base model, and one that ``train_network.py`` can train on?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spyke_kohya.engine.base_model import inspect_base_model
from spyke_kohya.engine.command import expand_home
from spyke_kohya.findings import Finding, error, warning

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_SCRIPTS = {"SDXL": "sdxl_train_network.py", "SD3": "sd3_train_network.py", "FLUX": "flux_train_network.py"}


def check_base_model(options: Mapping[str, Any], root: Path, where: str) -> list[Finding]:
    """Findings on ``pretrained_model_name_or_path``, by its header only."""
    name = str(expand_home("pretrained_model_name_or_path", options["pretrained_model_name_or_path"]))
    place = f"{where}: [train_network] pretrained_model_name_or_path"
    path = root / name
    header = inspect_base_model(path)
    if header.form == "missing":
        return [_missing(name, path, place)]
    if header.form == "broken":
        remedy = "download or copy the model again"
        return [error("base.unreadable", place, f"{path}: {header.problem}", remedy)]
    if header.family in _OTHER_SCRIPTS:
        message = f"{path.name} is a {header.family} model; train_network.py trains SD1.5 and SD2"
        return [
            error(
                "base.family",
                place,
                message,
                f"it needs sd-scripts' {_OTHER_SCRIPTS[header.family]}; name an SD1.5 model",
            )
        ]
    if header.family == "SD2" and not options["v2"]:
        return [error("base.family", place, f"{path.name} is an SD2 model", "set v2 = true, or name an SD1.5 model")]
    if header.family == "SD1.5" and options["v2"]:
        return [error("base.family", place, f"{path.name} is an SD1.5 model, and v2 is set", "remove v2")]
    return []


def _missing(name: str, path: Path, place: str) -> Finding:
    if _HUB_NAME.fullmatch(name) and not name.endswith((".safetensors", ".ckpt", ".pt")):
        message = f"{name} is no local path: sd-scripts will download it from the Hugging Face hub"
        return warning("base.from-hub", place, message, "name a local file to train without the network")
    message = f"the base model does not exist: {path}"
    return error("base.missing", place, message, "correct the path; sd-scripts would only notice after its start-up")
