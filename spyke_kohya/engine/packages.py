"""The packages in the engine's Python, read from their metadata on the disk: nothing is imported or run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

# What decides how a run behaves, recorded with every run.
RECORDED = ("torch", "accelerate", "diffusers", "transformers", "safetensors", "numpy", "tensorboard")


def site_packages(python: Path) -> list[Path]:
    """Where the packages of a virtual environment's ``python`` lie; empty for a Python that is laid out otherwise."""
    return sorted((python.parent.parent / "lib").glob("python3.*/site-packages"))


def installed_versions(python: Path) -> Mapping[str, str]:
    """Versions by package name, in lower case with ``-`` for ``_``."""
    found = distributions(path=[str(path) for path in site_packages(python)])
    return {
        str(item.metadata["Name"]).lower().replace("_", "-"): item.version for item in found if item.metadata["Name"]
    }


def recorded_versions(python: Path) -> dict[str, str]:
    versions = installed_versions(python)
    return {name: versions[name] for name in RECORDED if name in versions}
