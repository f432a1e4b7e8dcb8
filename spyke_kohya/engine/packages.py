"""The packages in the engine's Python, read from their metadata on the disk: nothing is imported or run."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

# What decides how a run behaves, recorded with every run.
RECORDED = ("torch", "accelerate", "diffusers", "transformers", "safetensors", "numpy", "tensorboard")


def site_packages(python: Path) -> list[Path]:
    """Find the packages of a virtual environment's ``python``; nothing for a Python that is laid out otherwise."""
    return sorted((python.parent.parent / "lib").glob("python3.*/site-packages"))


def recorded_versions(python: Path) -> dict[str, str]:
    """Return the versions of those of ``RECORDED`` that are installed, by name."""
    paths = [str(path) for path in site_packages(python)]
    found = {name: next(iter(distributions(name=name, path=paths)), None) for name in RECORDED}
    return {name: package.version for name, package in found.items() if package}
