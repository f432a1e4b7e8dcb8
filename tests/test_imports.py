"""What an engine must be able to import, read from small engines with every way to say it."""

import os
import sys
from pathlib import Path

import pytest

from spyke_kohya.engine.imports import required_modules


def engine(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = tmp_path / f"{name.replace('__of__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "required"),
    [
        ("import torch", {"torch"}),
        ("import torch.nn.functional as F, toml", {"torch", "toml"}),
        ("from diffusers.utils import logging", {"diffusers"}),
        ("import os, sys, json\nfrom pathlib import Path", set()),
        ("from __future__ import annotations", set()),
        ("try:\n    import xformers\nexcept ImportError:\n    pass", set()),
        ("def train():\n    import bitsandbytes", set()),
        ("class A:\n    import lazy", set()),
        ("if True:\n    import needed\nelse:\n    import other", {"needed"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import only_for_types", set()),
        ("if __name__ == '__main__':\n    import late", set()),
        ("this is no python", set()),
        ("import needed\nodd = '\\d'", {"needed"}),
    ],
)
def test_imports_that_run_at_the_start_are_required(tmp_path, text, required):
    assert required_modules(engine(tmp_path, train_network=text), "train_network.py") == required


def test_the_engine_s_own_modules_are_followed_and_not_required(tmp_path):
    directory = engine(
        tmp_path,
        train_network="from library import train_util\nimport networks.lora\nfrom library.deep.er import thing",
        library__of____init__="import of_the_package",
        library__of__train_util="from . import other\nimport cv2\nimport train_network",
        library__of__other="from .deep.er import thing\nimport numpy",
        library__of__deep__of__er="from ..aside import x\nimport voluptuous",
        library__of__aside="import einops",
        library__of__unused="import never",
        networks__of__lora="import safetensors",
    )
    required = required_modules(directory, "train_network.py")
    assert required == {"of_the_package", "cv2", "numpy", "voluptuous", "einops", "safetensors"}


def test_the_package_around_an_imported_module_runs_too(tmp_path):
    directory = engine(
        tmp_path, train_network="import library.a", library__of____init__="import toml", library__of__a=""
    )
    assert required_modules(directory, "train_network.py") == {"toml"}


def test_a_missing_script_requires_nothing(tmp_path):
    assert required_modules(tmp_path, "train_network.py") == frozenset()


@pytest.mark.engine
@pytest.mark.skipif("SPYKE_ENGINE" not in os.environ, reason="SPYKE_ENGINE names no sd-scripts")
def test_the_real_engine_s_modules_are_all_here():
    from importlib.util import find_spec

    required = required_modules(Path(os.environ["SPYKE_ENGINE"]), "train_network.py")
    assert {"torch", "accelerate", "diffusers", "transformers", "toml", "cv2"} <= required
    assert [name for name in required if find_spec(name) is None] == []
    assert not required & set(sys.stdlib_module_names)
