"""The two engines under the same tests: the miniature always, the real sd-scripts where there is one.

``make contract`` passes ``--require-engine``, which turns the real engine's skip into a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import toml
from PIL import Image, ImageDraw

PROJECT = Path(__file__).resolve().parents[2]
# trains on the CPU with torchrun, and has a key that crashes the launcher: it must not be read
HOSTILE_ACCELERATE_CONFIG = "use_mps_device: true\ndistributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n"


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine, a base model it can train, and seconds that a run of 16 steps may take on two cores."""

    name: str
    directory: Path
    base: Path
    tokenizer_cache_dir: Path | None
    patience_s: float


@pytest.fixture(scope="session", params=["miniature", pytest.param("sd-scripts", marks=pytest.mark.engine)])
def engine(request, tiny_base) -> EngineUnderTest:
    if request.param == "miniature":
        return EngineUnderTest("miniature", PROJECT / "scripts/miniature", tiny_base, None, 120.0)
    directory = _real_engine(request.config.getoption("--require-engine"))
    base = PROJECT / "output/contract/sd15"
    subprocess.run([sys.executable, PROJECT / "scripts/make_random_base.py", base, "--size", "sd15"], check=True)
    return EngineUnderTest("sd-scripts", directory, base, base / "tokenizer_cache", 900.0)


def _real_engine(required: bool) -> Path:
    named = os.environ.get("SPYKE_ENGINE") or PROJECT / "third_party/sd-scripts"
    directory = Path(named).expanduser()
    if (directory / "library" / "train_util.py").is_file():
        return directory
    message = f"no sd-scripts at {directory}: run `make engine` or set SPYKE_ENGINE"
    if required:
        pytest.fail(message)
    pytest.skip(message)


@dataclass(frozen=True)
class Bench:
    """A folder with a dataset of its own, in which presets are trained by the real command line."""

    root: Path
    engine: EngineUnderTest

    def write_preset(self, shipped: str, name: str, **options: object) -> Path:
        """The shipped preset with all its options, but for this machine: the CPU, this base, this dataset."""
        preset = toml.loads((PROJECT / "presets" / f"{shipped}.toml").read_text())
        preset["dataset"] = "dataset.toml"
        preset["launch"] = {"target": "cpu", "num_cpu_threads_per_process": 2}
        preset["expect"] = {"trigger": "spyke_contract"}
        preset["train_network"] |= {
            "pretrained_model_name_or_path": str(self.engine.base),
            "tokenizer_cache_dir": self.engine.tokenizer_cache_dir and str(self.engine.tokenizer_cache_dir),
            "output_dir": f"output/{name}",
            "output_name": name,
        }
        changed = {key: value for key, value in (preset["train_network"] | options).items() if value is not None}
        file = self.root / f"{name}.toml"
        file.write_text(toml.dumps(preset | {"train_network": changed}))
        return file

    def start(self, preset: Path, *flags: str) -> subprocess.Popen[bytes]:
        """``spyke-kohya train`` as a person starts it, beside a hostile accelerate config."""
        hostile = self.root / "hub"
        (hostile / "accelerate").mkdir(parents=True, exist_ok=True)
        (hostile / "accelerate" / "default_config.yaml").write_text(HOSTILE_ACCELERATE_CONFIG)
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "spyke_kohya.cli",
                "train",
                str(preset),
                "--engine",
                str(self.engine.directory),
                *flags,
            ],
            cwd=self.root,
            env=os.environ | {"HF_HOME": str(hostile), "ACCELERATE_USE_CPU": "false", "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def train(self, preset: Path, *flags: str) -> subprocess.CompletedProcess[bytes]:
        process = self.start(preset, *flags)
        try:
            stdout, stderr = process.communicate(timeout=self.engine.patience_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            stdout, stderr = process.communicate()
            pytest.fail(f"no end in {self.engine.patience_s} s:\n{stderr.decode()}")
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def run_directory(self, name: str) -> Path:
        (run,) = (self.root / "output" / name / "runs").iterdir()
        return run


@pytest.fixture(scope="session")
def bench(engine, tmp_path_factory) -> Bench:
    """2 training images x 2 repeats + 1 regularisation image repeated to 4 = 8 batches an epoch, at 64 px."""
    root = tmp_path_factory.mktemp(engine.name)
    _draw(root / "train" / "1_spyke_contract", [(6, 6, 45, 90), (14, 50, 90, 90)], "spyke_contract, standing")
    _draw(root / "reg" / "1_creature", [(50, 6, 90, 45)], "creature")
    (root / "dataset.toml").write_text(
        "[general]\nenable_bucket = true\ncaption_extension = '.txt'\nshuffle_caption = true\nkeep_tokens = 1\n"
        "[[datasets]]\nresolution = 64\nmin_bucket_reso = 64\nbatch_size = 1\n"
        "[[datasets.subsets]]\nimage_dir = 'train/1_spyke_contract'\nnum_repeats = 2\n"
        "[[datasets.subsets]]\nis_reg = true\nimage_dir = 'reg/1_creature'\nnum_repeats = 1\n"
    )
    return Bench(root, engine)


def _draw(folder: Path, shapes: list[tuple[int, int, int, int]], caption: str) -> None:
    """A picture for every shape; the shapes differ, so that no check takes two pictures for one."""
    folder.mkdir(parents=True)
    for index, shape in enumerate(shapes):
        image = Image.new("RGB", (96, 96), (30 * index, 90, 160))
        ImageDraw.Draw(image).ellipse(shape, fill=(230, 200, 40 + 60 * index))
        image.save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(caption)
