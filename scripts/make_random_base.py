"""Write a Stable Diffusion base with random weights: `tiny` for the miniature, `sd15` for sd-scripts.

Nothing is downloaded and nothing is learned from pictures. Both sizes are built from diffusers' and transformers' own
classes, so `StableDiffusionPipeline.from_pretrained(DIR, tokenizer=None, safety_checker=None)` loads them; `sd15` has
exactly the shapes of Stable Diffusion 1.5 (about 4 GB), which is what sd-scripts insists on. The same size and seed
give the same files on the same machine.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

MARKER = "random_base.json"
"""Written into every base: its size, seed and files. A directory without it is not ours and is never touched."""

CLIP_MERGES = 48_894
"""How many merges of the BPE file are CLIP's: 49,408 tokens less 2 x 256 bytes and two special ones."""

NOISE_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}

ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        # diffusers' defaults are Stable Diffusion 1's U-Net, but for these
        "unet": {"sample_size": 64, "cross_attention_dim": 768},
        "vae": {
            "sample_size": 512,
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
        },
        "text_encoder": {
            "vocab_size": 49_408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
        },
    },
    "tiny": {
        "unet": {
            "sample_size": 8,
            "cross_attention_dim": 32,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "norm_num_groups": 8,
        },
        # four levels, as in the large one, so that 8 pixels become one latent
        "vae": {
            "sample_size": 64,
            "block_out_channels": (8, 16, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "norm_num_groups": 4,
        },
        # three layers, so that clip_skip = 2 means something
        "text_encoder": {
            "vocab_size": 514,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "projection_dim": 32,
            "bos_token_id": 512,
            "eos_token_id": 513,
        },
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--size", choices=sorted(ARCHITECTURES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wanted = {"size": args.size, "seed": args.seed}
    if is_complete(args.directory, wanted):
        print(f"{args.directory}: a {args.size} base with seed {args.seed} is already there")
        return
    args.directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.directory.parent, prefix=".random_base-") as scratch:
        base = Path(scratch, "base")
        write_base(base, args.size, args.seed)
        size_bytes = write_marker(base, wanted)
        base.rename(args.directory)
    print(f"{args.directory}: wrote a {args.size} base with seed {args.seed}, {size_bytes / 1e6:,.1f} MB")


def is_complete(directory: Path, wanted: dict[str, Any]) -> bool:
    """True where this very base stands whole in `directory`, False where there is nothing; anything else is refused."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not (directory / MARKER).is_file():
        sys.exit(f"{directory}: is there and is not a base written by this script; name another directory")
    found = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    if {key: found.get(key) for key in wanted} != wanted:
        sys.exit(f"{directory}: holds a {found['size']} base with seed {found['seed']}; remove it or name another one")
    broken = [name for name, size in found["files"].items() if not has_size(directory / name, size)]
    if broken:
        sys.exit(f"{directory}: is damaged ({', '.join(broken)}); remove it and run this again")
    return True


def has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def write_base(directory: Path, size: str, seed: int) -> None:
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.utils import logging as diffusers_logging
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    diffusers_logging.set_verbosity_error()
    torch.manual_seed(seed)
    torch.set_num_threads(1 if size == "tiny" else os.cpu_count() or 1)  # one thread: the same sums everywhere
    architecture = ARCHITECTURES[size]
    unet = UNet2DConditionModel(**architecture["unet"])
    vae = AutoencoderKL(latent_channels=4, scaling_factor=0.18215, **architecture["vae"])
    text_encoder = CLIPTextModel(CLIPTextConfig(**architecture["text_encoder"]))
    if size == "tiny":
        calibrate(vae)
        tokenizer = CLIPTokenizer(*write_vocabulary(directory / "tokenizer", []), model_max_length=77)
    else:
        folder = directory / "tokenizer_cache" / "openai_clip-vit-large-patch14"
        CLIPTokenizer(*write_vocabulary(folder, clip_merges()), model_max_length=77).save_pretrained(folder)
        tokenizer = None  # as sd-scripts asks for it: it brings its own
    scheduler = PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(directory)


def calibrate(vae: AutoencoderKL) -> None:
    """Give the random encoder latents of mean 0 and deviation 1 after scaling, as a trained one does; in place.

    Without this its latents are all but the same for every picture, and there is nothing in them to learn.
    """
    import torch

    pictures = torch.nn.functional.interpolate(torch.rand(16, 3, 4, 4) * 2 - 1, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        features = vae.encoder(pictures)
        latents = vae.quant_conv(features)[:, :4]
        spread = latents.std(dim=(0, 2, 3)) * vae.config.scaling_factor
        vae.quant_conv.weight[:4] /= spread[:, None, None, None]
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias.zero_()
        vae.quant_conv.bias[:4] = -vae.quant_conv(features)[:, :4].mean(dim=(0, 2, 3))
        vae.quant_conv.bias[4:] = -20  # the logarithm of the variance: next to none


def write_vocabulary(folder: Path, merges: list[str]) -> tuple[str, str]:
    """Write CLIP's vocab.json and merges.txt and return their paths; without merges the tokens are single bytes."""
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocabulary, merges_file = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    merges_file.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return str(vocabulary), str(merges_file)


def clip_merges() -> list[str]:
    """CLIP's merges, from the vocabulary inside the package open-clip-torch, which is found and not imported."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        sys.exit("open_clip: not installed, and CLIP's vocabulary is in it; pip install open-clip-torch")
    compressed = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(compressed).decode("utf-8").split("\n")
    return lines[1 : CLIP_MERGES + 1]


def write_marker(directory: Path, wanted: dict[str, Any]) -> int:
    """Write the marker, which lists every file with its size. Returns their sum, in bytes."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}
    (directory / MARKER).write_text(json.dumps({**wanted, "files": files}, indent=2) + "\n", encoding="utf-8")
    return sum(files.values())


if __name__ == "__main__":
    main()
