"""A folder to train in: a small real dataset, a base model's header, a preset, the fake engine and its launcher."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import toml
from PIL import Image

FAKES = Path(__file__).parent / "fakes"
TRANSCRIPTS = Path(__file__).parent / "data" / "transcripts"
PROJECT = Path(__file__).parents[1]
SD15_KEY = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def run_script(name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `scripts/NAME` to its end; its output is text, its exit status is the caller's to judge."""
    command = [sys.executable, PROJECT / "scripts" / name, *args]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def write_base_model(path: Path, key: str = SD15_KEY) -> Path:
    """A base model that is one tensor long: enough for whoever reads headers only."""
    header = json.dumps({key: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    return path


def assert_gone(pid: int) -> None:
    """Wait until a process has ended. A zombie has: its parent may never look."""
    _assert_ended(lambda: os.kill(pid, 0), lambda stat: int(stat[0]) == pid)


def assert_group_is_gone(group: int) -> None:
    """Wait until every process of a group has ended."""
    _assert_ended(lambda: os.killpg(group, 0), lambda stat: int(stat[3]) == group)


def _assert_ended(probe: Callable[[], None], is_meant: Callable[[list[str]], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            probe()
        except ProcessLookupError:
            return
        if Path("/proc/self/stat").exists() and all(stat[1] == "Z" for stat in _process_stats() if is_meant(stat)):
            return
    raise AssertionError("it still runs")


def _process_stats() -> Iterator[list[str]]:
    """Of every process: its id, state, parent and group (proc(5))."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            text = file.read_text(errors="replace")
            yield [text.partition(" ")[0], *text.rpartition(") ")[2].split()[:3]]


@dataclass(frozen=True)
class Workplace:
    """``presets/tiny.toml`` trains 16 steps, 8 an epoch, on a few images and saves at 5, 10, 15 and 16."""

    root: Path

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def images(self) -> Path:
        return self.root / "dataset" / "1_spyke"

    def environment(self, **more: str) -> dict[str, str]:
        """The caller's environment, with the fake engine in it."""
        named = {"SPYKE_ENGINE": str(FAKES / "engine"), "SPYKE_ENGINE_PYTHON": str(self.root / "venv/bin/python")}
        named["XDG_CACHE_HOME"] = str(self.root / "cache")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPYKE_", "COV"))}
        return kept | named | {"PYTHONPATH": str(PROJECT)} | more

    def change(self, name: str, **tables: dict[str, object]) -> None:
        """Put keys into a preset's tables; None takes a key away."""
        file = self.root / "presets" / f"{name}.toml"
        document = toml.loads(file.read_text(encoding="utf-8"))
        for table, keys in tables.items():
            merged = document.get(table, {}) | keys
            document[table] = {key: value for key, value in merged.items() if value is not None}
        file.write_text(toml.dumps(document), encoding="utf-8")

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "spyke_kohya.cli", *words]

    def spyke(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line as a process of its own, in the root."""
        return subprocess.run(
            self.command(*words),
            cwd=self.root,
            env=self.environment(**environment),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    def only_run(self) -> Path:
        (run,) = (self.output / "runs").iterdir()
        return run

    def record(self) -> dict:
        return json.loads((self.only_run() / "run.json").read_text(encoding="utf-8"))


def make_workplace(root: Path, *, images: int = 4) -> Workplace:
    """4 images x 2 repeats, or another number that divides 8."""
    place = Workplace(root)
    place.images.mkdir(parents=True)
    for index in range(images):
        Image.new("RGB", (64, 64), (40 * index, 90, 120)).save(place.images / f"{index}.png")
        (place.images / f"{index}.txt").write_text(f"spyke, picture {index}", encoding="utf-8")
    (root / "presets").mkdir()
    subset = {"image_dir": "dataset/1_spyke", "num_repeats": 8 // images}
    dataset = {
        "general": {"caption_extension": ".txt"},
        "datasets": [{"resolution": 64, "batch_size": 1, "subsets": [subset]}],
    }
    (root / "presets" / "data.toml").write_text(toml.dumps(dataset), encoding="utf-8")
    training = {
        "dataset": "presets/data.toml",
        "launch": {"target": "cpu"},
        "expect": {"total_steps": 16, "trigger": "spyke"},
        "evaluate": {"heldout_dir": "heldout"},
        "train_network": {
            "pretrained_model_name_or_path": write_base_model(root / "base.safetensors").name,
            "output_dir": "output",
            "output_name": "tiny",
            "save_model_as": "safetensors",
            "save_every_n_steps": 5,
            "max_train_epochs": 2,
            "network_module": "networks.lora",
            "network_dim": 4,
            "max_data_loader_n_workers": 0,
            "optimizer_type": "AdamW",
            "learning_rate": 1e-4,
        },
    }
    (root / "presets" / "tiny.toml").write_text(toml.dumps(training), encoding="utf-8")
    bin_dir = root / "venv" / "bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "python").symlink_to(sys.executable)
    launcher = (FAKES / "accelerate").read_text(encoding="utf-8").replace("/usr/bin/env python3", sys.executable, 1)
    (bin_dir / "accelerate").write_text(launcher, encoding="utf-8")
    (bin_dir / "accelerate").chmod(0o755)
    return place
