"""A finished run as it lies on the disk, made in milliseconds: small LoRA files, a record, losses of every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from spyke_kohya.engine.filenames import last_file, step_file

STEPS, EVERY, WINDOW = 120, 20, 40


def write_lora(path: Path, *, step: int = 1, context: int = 768, seed: int = 0, **tensors: np.ndarray) -> Path:
    """A LoRA of two modules at rank 4, with the keys and the metadata of sd-scripts; ``context`` tells the family."""
    random = np.random.default_rng(seed + step)
    unet = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    encoder = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    weights = {
        f"{module}.{part}": value
        for module in (unet, encoder)
        for part, value in {
            "lora_down.weight": random.normal(size=(4, context)).astype(np.float32),
            "lora_up.weight": random.normal(size=(8, 4)).astype(np.float32),
            "alpha": np.array(2.0, dtype=np.float32),
        }.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights | tensors, path, metadata=_metadata(path, step))
    return path


def _metadata(path: Path, step: int) -> dict[str, str]:
    return {
        "ss_output_name": path.stem.partition("-step")[0],
        "ss_steps": str(step),
        "ss_num_batches_per_epoch": str(WINDOW),
        "ss_tag_frequency": json.dumps({"1_spyke": {"spyke": 6, "standing": 4}, "1_creature": {"creature": 2}}),
    }


def record_run(
    root: Path, name: str = "spyke", *, stamp: str = "20260220-101530", dip_at: int = 60, **record: Any
) -> Path:
    """A run of 120 steps with a checkpoint every 20, its losses lowest around ``dip_at``. Gives its directory."""
    output = root / "output" / name
    run = output / "runs" / f"{stamp}-{name}"
    run.mkdir(parents=True)
    files = {step: step_file(name, step) for step in range(EVERY, STEPS, EVERY)} | {STEPS: last_file(name)}
    for step, file in files.items():
        write_lora(output / file, step=step)
    (run / "losses.csv").write_text(losses_csv(STEPS, dip_at))
    (run / "run.json").write_text(json.dumps(_record(root, name, files) | record, indent=2))
    (run / "dataset.toml").write_text("[[datasets]]\nresolution = 64\n")
    (run / "command.sh").write_text("#!/bin/sh\nexec accelerate launch train_network.py\n")
    (run / "console.log").write_bytes(b"accelerator device: cpu\n")
    (run / "events.jsonl").write_text(
        json.dumps({"at": "2026-02-20T10:15:40", "event": "DeviceReported", "device": "cpu"})
        + "\n"
        + json.dumps({"at": "2026-02-20T10:15:50", "event": "EngineWarning", "text": "a warning of the engine"})
        + "\n"
    )
    return run


def losses_csv(steps: int, dip_at: int) -> str:
    random = np.random.default_rng(7)
    level = 0.10 + 0.06 * np.abs(np.arange(1, steps + 1) - dip_at) / steps
    losses = level * random.gamma(20.0, 1 / 20.0, steps)
    sums = np.concatenate(([0.0], np.cumsum(losses)))
    rows = [
        f"{step},{losses[step - 1]!r},{(sums[step] - sums[max(0, step - WINDOW)]) / min(step, WINDOW)!r},0.0001"
        for step in range(1, steps + 1)
    ]
    return "\n".join(["step,loss,avr_loss,lr_unet", *rows, ""]).replace("np.float64(", "").replace(")", "")


def _record(root: Path, name: str, files: dict[int, str]) -> dict[str, Any]:
    checkpoints = [{"step": step, "file": file} for step, file in files.items()]
    options = {"output_name": name, "output_dir": f"output/{name}", "learning_rate": 1e-4, "network_dim": 4}
    document = {
        "dataset": "presets/dataset.toml",
        "launch": {"target": "cpu", "num_cpu_threads_per_process": 2},
        "expect": {"total_steps": STEPS, "trigger": "spyke"},
        "train_network": options,
    }
    return {
        "schema_version": 1,
        "status": "finished",
        "reason": "",
        "preset": {"name": name, "path": f"presets/{name}.toml", "sha256": "0" * 64, "document": document},
        "dataset": {"path": "presets/dataset.toml", "sha256": "1" * 64},
        "output_name": name,
        "target": "cpu",
        "settings": options | {"train_batch_size": 1},
        "plan": _plan(checkpoints),
        "explained": ["2 images x 10 repeats = 20, + 1 regularisation image repeated to 20 = 40 batches an epoch"],
        "findings": [],
        "argv": ["accelerate", "launch", "train_network.py", f"--output_name={name}"],
        "env": {},
        "cwd": str(root),
        "engine": {"directory": "sd-scripts", "commit": "a" * 40, "python": "python3", "packages": {"torch": "2.14.1"}},
        "machine": {"system": "Linux", "python": "3.11.7", "spyke_kohya": "0.1.0"},
        "started_at": "2026-02-20T10:15:30",
        "ended_at": "2026-02-20T10:17:30",
        "result": {
            "status": "finished", "reason": "", "returncode": 0, "steps": STEPS, "duration_s": 120.0,
            "checkpoints": [saved | {"size_bytes": 30_000} for saved in checkpoints],
        },
    }  # fmt: skip


def _plan(checkpoints: list[dict[str, Any]]) -> dict[str, Any]:
    folder = {"images": 2, "num_repeats": 10, "used": 2, "per_epoch": 20}
    return {
        "num_train_images": 20,
        "num_reg_images": 1,
        "batches_per_epoch": WINDOW,
        "steps_per_epoch": WINDOW,
        "epochs": 3,
        "total_steps": STEPS,
        "train_images": 2,
        "reg_images": 1,
        "reg_images_used": 1,
        "gradient_accumulation_steps": 1,
        "buckets": [[[[64, 64], 30], [[64, 128], 10]]],
        "folders": [
            [
                {"image_dir": "train/1_spyke", "is_reg": False, **folder},
                {"image_dir": "reg/1_creature", "is_reg": True, **folder, "images": 1, "num_repeats": 1},
            ]
        ],
        "checkpoints": checkpoints,
    }
