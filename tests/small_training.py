"""A training that takes seconds on the miniature: 2 pictures x 2 repeats + 1 regularisation picture, 8 steps."""

from __future__ import annotations

from pathlib import Path

import toml
from PIL import Image, ImageDraw

from tests.commands import PROJECT


def write_training(root: Path, base: Path, **options: object) -> Path:
    """The presets ``presets/small.toml`` and ``presets/small_dataset.toml`` under ``root``, and their pictures."""
    for number, (name, caption) in enumerate(
        [
            ("train/1_spyke/0", "spyke, standing"),
            ("train/1_spyke/1", "spyke, standing"),
            ("reg/1_creature/0", "creature"),
        ]
    ):
        picture = root / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        _draw(number).save(picture)
        picture.with_suffix(".txt").write_text(caption)
    (root / "presets").mkdir()
    (root / "presets/small_dataset.toml").write_text(
        "[general]\ncaption_extension = '.txt'\n[[datasets]]\nresolution = 64\nbatch_size = 1\n"
        "[[datasets.subsets]]\nimage_dir = 'train/1_spyke'\nnum_repeats = 2\n"
        "[[datasets.subsets]]\nis_reg = true\nimage_dir = 'reg/1_creature'\nnum_repeats = 1\n"
    )
    preset = {
        "dataset": "presets/small_dataset.toml",
        "launch": {"target": "cpu", "num_cpu_threads_per_process": 2, "engine": str(PROJECT / "scripts/miniature")},
        "expect": {"total_steps": 8, "trigger": "spyke"},
        "train_network": {
            "pretrained_model_name_or_path": str(base),
            "output_dir": "output/small",
            "output_name": "small",
            "save_model_as": "safetensors",
            "save_every_n_steps": 4,
            "max_train_epochs": 1,
            "learning_rate": 1e-3,
            "network_module": "networks.lora",
            "network_dim": 4,
            "network_alpha": 4.0,
            "mixed_precision": "no",
            "max_data_loader_n_workers": 0,
            "seed": 42,
        }
        | options,
    }
    file = root / "presets/small.toml"
    file.write_text(toml.dumps(preset))
    return file


def _draw(number: int) -> Image.Image:
    """Pictures that no check takes for one another."""
    image = Image.new("RGB", (64, 64), (60 * number, 90, 160))
    corners = [(4, 4, 30, 60), (10, 34, 60, 60), (34, 4, 60, 30)]
    ImageDraw.Draw(image).ellipse(corners[number], fill=(240, 220, 40))
    return image
