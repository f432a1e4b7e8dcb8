"""What several test modules need: a tiny base and the demo pictures, made once a session by the scripts themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from workplace import run_script


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of random weights in a few megabytes, in diffusers' format."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    made = run_script("make_random_base.py", directory, "--size", "tiny")
    assert made.returncode == 0, made.stderr
    return directory


@pytest.fixture(scope="session")
def demo_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `train/1_spyke_demo`, `reg/1_creature` and `heldout`: 12, 8 and 8 pictures with captions."""
    directory = tmp_path_factory.mktemp("dataset") / "demo"
    made = run_script("make_demo_dataset.py", directory)
    assert made.returncode == 0, made.stderr
    return directory


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-engine", action="store_true", help="fail, and do not skip, where the real sd-scripts is missing"
    )
