"""The miniature: a stand-in for kohya's sd-scripts, v0.10.1, that trains in seconds on any CPU.

What it is: a program with the face of sd-scripts' `train_network.py`. It takes the same options, reads the same dataset
config, prints the same lines to the same streams, writes the same files under the same names, ends with the same exit
codes, and really trains a LoRA, on the pictures and captions it is given, with diffusers' and transformers' own
classes. It is what `make train PRESET=demo` runs on a machine without sd-scripts, and one half of the contract tests.

What it is not: a copy of sd-scripts, or a way to train anything worth using. It knows DreamBooth datasets from a
dataset config, LoRA (`networks.lora`) on a Stable Diffusion 1 in diffusers' format, AdamW, and diffusers' learning rate
schedules. An option or a setting that changes the training and isn't known here is refused by name, never
ignored; options that only change speed or memory are accepted and have no effect.

This file is the face: the options and what is done with them. `dataset.py` makes the batches, `training.py` trains.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from dataset import read_datasets

OPTIONS_FILE = Path(__file__).parents[2] / "spyke_kohya" / "engine" / "train_network_options.json"
"""Every option of the real program, as `scripts/dump_engine_options.py` wrote it down."""

HONOURED = """\
pretrained_model_name_or_path tokenizer_cache_dir dataset_config resolution train_batch_size dataset_repeats
enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps shuffle_caption caption_separator
caption_extension caption_extention keep_tokens caption_prefix caption_suffix cache_latents cache_latents_to_disk
prior_loss_weight output_dir output_name save_precision save_every_n_epochs save_every_n_steps save_last_n_epochs
save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_state save_state_on_train_end save_model_as
resume initial_epoch initial_step max_train_steps max_train_epochs seed gradient_accumulation_steps mixed_precision
clip_skip min_timestep max_timestep min_snr_gamma logging_dir log_with log_prefix log_tracker_name optimizer_type
optimizer_args learning_rate unet_lr text_encoder_lr max_grad_norm lr_scheduler lr_warmup_steps
lr_scheduler_num_cycles lr_scheduler_power network_module network_dim network_alpha network_train_unet_only
network_train_text_encoder_only training_comment metadata_title max_data_loader_n_workers
persistent_data_loader_workers"""

WITHOUT_EFFECT = """\
gradient_checkpointing sdpa mem_eff_attn no_half_vae highvram lowram vae_batch_size skip_cache_check ddp_timeout
ddp_gradient_as_bucket_view ddp_static_graph validation_seed"""

ONLY_VALUE = {
    "network_module": ("networks.lora",),
    "optimizer_type": ("", "adamw"),
    "save_model_as": ("safetensors",),
    "log_with": (None, "tensorboard"),
}
"""Options whose other values need something that is not in the miniature."""

logger = logging.getLogger(__name__)


def build_parser(options: list[dict[str, Any]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    types: dict[str, Callable[[str], Any]] = {
        "str": str, "int": int, "float": float, "int_or_float": steps_or_share, "Path": Path,
    }  # fmt: skip
    for option in options:
        if option["kind"] == "StoreTrue":
            parser.add_argument(option["flag"], action="store_true")
        else:
            kept = {key: option[key] for key in ("nargs", "choices", "default", "required")}
            parser.add_argument(option["flag"], type=types[option["type"]], **kept)
    return parser


def steps_or_share(text: str) -> int | float:
    """A number of steps, or below 1 (or with a percent sign) a share of all of them."""
    number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    return int(number) if number >= 1 and not text.endswith("%") else number


def refuse_unknown(args: argparse.Namespace, options: list[dict[str, Any]]) -> None:
    for option in options:
        name = option["dest"]
        value = getattr(args, name)
        if name in ONLY_VALUE:
            known = (value.lower() if isinstance(value, str) else value) in ONLY_VALUE[name]
        else:
            known = name in f"{HONOURED} {WITHOUT_EFFECT}".split() or value == option["default"]
        if not known:
            raise SystemExit(f"train_network.py: error: {option['flag']}={value} is not in the miniature")


def set_up_logging() -> None:
    handler = RichHandler(console=Console(stderr=True))
    handler.setFormatter(logging.Formatter(fmt="%(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def main() -> None:
    options = json.loads(OPTIONS_FILE.read_text(encoding="utf-8"))
    args = build_parser(options).parse_args()
    refuse_unknown(args, options)
    set_up_logging()
    datasets = read_datasets(args)
    if not any(dataset.batches for dataset in datasets):
        logger.error(
            "No data found. Please verify arguments (train_data_dir must be the parent of folders with images)"
            " / 画像がありません。引数指定を確認してください"
            "（train_data_dirには画像があるフォルダではなく、画像があるフォルダの親フォルダを指定する必要があります）"
        )
        return

    from training import Trainer  # only now: torch and diffusers take seconds to import, the faults above need neither

    Trainer(args, datasets).train()


if __name__ == "__main__":
    main()
