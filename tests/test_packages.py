"""The packages in an engine's Python, read from metadata on the disk."""

import sys
from pathlib import Path

import numpy

from spyke_kohya.engine.packages import recorded_versions, site_packages


def environment(tmp_path: Path, **versions: str) -> Path:
    for name, version in versions.items():
        info = tmp_path / "lib" / "python3.12" / "site-packages" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return tmp_path / "bin" / "python"


def test_only_what_decides_a_run_is_recorded(tmp_path):
    python = environment(tmp_path, Torch="2.14.1", torchvision="0.29.1", toml="0.10.2", accelerate="1.6.0")
    assert recorded_versions(python) == {"torch": "2.14.1", "accelerate": "1.6.0"}


def test_a_python_laid_out_otherwise_has_no_packages_that_we_know(tmp_path):
    assert site_packages(tmp_path / "python") == []
    assert recorded_versions(tmp_path / "python") == {}


def test_our_own_python_has_what_this_project_needs():
    assert recorded_versions(Path(sys.executable))["numpy"] == numpy.__version__
