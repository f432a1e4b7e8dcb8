"""Measure the loss of saved LoRAs on given pictures, under the engine's Python and on the engine's own loaders.

A stand-alone program: `python evaluate.py REQUEST.json`. It is never imported by spyke_kohya, which writes the request
and reads the rows; what the numbers mean is decided there. The base model is loaded and the LoRA applied once, then the
weights are swapped per checkpoint. Every loss is a row of the request's CSV file, written as soon as it is known; rows
that are there already are not measured again. On stdout, lines that are JSON objects tell the progress.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

LATENT_SCALE = 0.18215
NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}

Request = dict[str, Any]
Cell = tuple[int, int]  # timestep, replicate


class SdScriptsModels:
    """Base, LoRA and pictures by sd-scripts' own code (v0.10.1 train_util.py, strategy_sd.py, networks/lora.py)."""

    def __init__(self, request: Request) -> None:
        sys.path.insert(0, request["engine"])
        from library import strategy_sd, train_util

        self.device, self.train_util = torch.device(request["device"]), train_util
        names = argparse.Namespace(pretrained_model_name_or_path=request["base"], v2=request["v2"], vae=request["vae"])
        with weights_taken_over(train_util.UNet2DConditionModel):
            self.text_encoder, self.vae, self.unet, _ = train_util._load_target_model(names, torch.float32)
        train_util.replace_unet_modules(self.unet, False, False, True)
        self.tokenizer = strategy_sd.SdTokenizeStrategy(
            request["v2"], request["max_token_length"], request["tokenizer_cache_dir"]
        )
        self.encoding = strategy_sd.SdTextEncodingStrategy(request["clip_skip"])
        self.network: Any = None

    def read_picture(self, picture: dict[str, Any]) -> Tensor:
        pixels = self.train_util.load_image(picture["path"])
        pixels, _, _ = self.train_util.trim_and_resize_if_required(
            False, pixels, tuple(picture["bucket"]), tuple(picture["resized"]), picture["interpolation"]
        )
        return self.train_util.IMAGE_TRANSFORMS(pixels)

    def encode(self, caption: str) -> Tensor:
        return self.encoding.encode_tokens(self.tokenizer, [self.text_encoder], self.tokenizer.tokenize(caption))[0]

    def predict(self, noisy: Tensor, times: Tensor, text: Tensor) -> Tensor:
        return self.unet(noisy, times, text).sample

    def use(self, weights: dict[str, Tensor]) -> None:
        if self.network is None:
            from networks import lora

            self.network, _ = lora.create_network_from_weights(
                1.0, None, None, self.text_encoder, self.unet, weights_sd=weights
            )
            self.network.apply_to(self.text_encoder, self.unet)
            self.network.requires_grad_(False).eval().to(self.device, torch.float32)
        self.network.load_state_dict(weights)
        self.network.set_multiplier(1.0)

    def use_base(self) -> None:
        if self.network is not None:
            self.network.set_multiplier(0)


class DiffusersModels:
    """The same by diffusers' own classes, for a small base and an engine that is not sd-scripts (the miniature)."""

    def __init__(self, request: Request) -> None:
        from diffusers import StableDiffusionPipeline
        from transformers import CLIPTokenizer

        torch.set_num_threads(1)  # such small models only wait for a second thread
        self.device, self.clip_skip = torch.device(request["device"]), request["clip_skip"]
        pipeline = StableDiffusionPipeline.from_pretrained(request["base"], tokenizer=None, safety_checker=None)
        self.text_encoder, self.vae, self.unet = pipeline.text_encoder, pipeline.vae, pipeline.unet
        cache = request["tokenizer_cache_dir"]
        folder = Path(cache, "openai_clip-vit-large-patch14") if cache else Path(request["base"], "tokenizer")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        layers = {"lora_te_": self.text_encoder, "lora_unet_": self.unet}
        self.layers = {
            prefix + name.replace(".", "_"): layer
            for prefix, model in layers.items()
            for name, layer in model.named_modules()
        }
        self.additions: dict[str, tuple[Tensor, Tensor]] = {}

    def read_picture(self, picture: dict[str, Any]) -> Tensor:
        (width, height), resized = picture["bucket"], picture["resized"]
        with Image.open(picture["path"]) as image:
            scaled = image.convert("RGB").resize(tuple(resized), Image.Resampling.LANCZOS)
        left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
        cut = scaled.crop((left, top, left + width, top + height))
        return torch.from_numpy(np.asarray(cut, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)

    def encode(self, caption: str) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(caption, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        out = self.text_encoder(tokens.input_ids.to(self.device), output_hidden_states=True)
        if self.clip_skip is None:
            return out.last_hidden_state
        return self.text_encoder.text_model.final_layer_norm(out.hidden_states[-self.clip_skip])

    def predict(self, noisy: Tensor, times: Tensor, text: Tensor) -> Tensor:
        return self.unet(noisy, times, text).sample

    def use(self, weights: dict[str, Tensor]) -> None:
        weights = {name: value.to(self.device, torch.float32) for name, value in weights.items()}
        names = {name.partition(".")[0] for name in weights}
        if not self.additions:
            for name in names:
                self.layers[name].register_forward_hook(self.adder(name))
        self.additions = {
            name: (
                weights[f"{name}.lora_down.weight"],
                weights[f"{name}.lora_up.weight"]
                * (weights[f"{name}.alpha"] / len(weights[f"{name}.lora_down.weight"])),
            )
            for name in names
        }
        self.multiplier = 1.0

    def adder(self, name: str) -> Any:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self.multiplier:
                return output
            apply = nn.functional.conv2d if isinstance(layer, nn.Conv2d) else nn.functional.linear
            down, up = self.additions[name]
            return output + apply(apply(inputs[0], down), up)

        return add

    def use_base(self) -> None:
        self.multiplier = 0.0


Models = SdScriptsModels | DiffusersModels


class Evaluation:
    """One request on its way: pictures encoded once, then every checkpoint on every picture."""

    def __init__(self, request: Request) -> None:
        self.request, self.started = request, time.perf_counter()
        self.device, self.parent = torch.device(request["device"]), os.getppid()
        self.cells: list[Cell] = [(t, r) for r in range(request["replicates"]) for t in request["timesteps"]]
        self.measured = measured_rows(Path(request["out"]))
        self.total = len(request["checkpoints"]) * len(request["pictures"]) * len(self.cells)
        self.done, self.forward_s, self.text_s = 0, 0.0, 0.0
        self.texts: dict[str, Tensor] = {}

    def run(self) -> None:
        self.tell(stage="loading")
        is_engine = Path(self.request["engine"], "library", "train_util.py").is_file()
        models: Models = SdScriptsModels(self.request) if is_engine else DiffusersModels(self.request)
        for model in (models.text_encoder, models.vae, models.unet):
            model.requires_grad_(False).eval().float()
        self.schedule = noise_schedule(self.request["zero_terminal_snr"], is_engine)
        self.encode_pictures(models)
        models.text_encoder.to(self.device)
        models.unet.to(self.device)
        self.loaded_s = time.perf_counter() - self.started
        with Path(self.request["out"]).open("a", newline="", encoding="utf-8") as rows:
            for entry in self.request["checkpoints"]:
                self.measure(models, entry, rows)
        self.tell(
            stage="measured", forward_s=self.forward_s, text_s=self.text_s, loaded_s=self.loaded_s,
            total_s=time.perf_counter() - self.started, most_memory_bytes=most_memory_bytes(),
        )  # fmt: skip

    def encode_pictures(self, models: Models) -> None:
        """Return the mean latent of every picture; then the VAE is given back."""
        self.latents = []
        models.vae.to(self.device)
        for number, picture in enumerate(self.request["pictures"]):
            self.tell(stage="encoding", picture=number + 1, pictures=len(self.request["pictures"]))
            pixels = models.read_picture(picture)[None].to(self.device, torch.float32)
            self.latents.append(models.vae.encode(pixels).latent_dist.mode()[0] * LATENT_SCALE)
        del models.vae
        gc.collect()

    def measure(self, models: Models, entry: dict[str, str | None], rows: TextIO) -> None:
        missing = [self.missing(entry, picture) for picture in self.request["pictures"]]
        if any(missing):
            models.use(load_file(entry["path"])) if entry["path"] else models.use_base()
            self.texts.clear()  # a LoRA may train the text encoder too
        writer = csv.writer(rows, lineterminator="\n")
        for number, picture in enumerate(self.request["pictures"]):
            if missing[number]:
                losses = self.losses(models, number, picture)
                for cell in missing[number]:
                    names = [" ".join(name.splitlines()) for name in (entry["name"], picture["name"], picture["group"])]
                    writer.writerow([*names, *cell, repr(losses[cell]), entry["id"], picture["id"]])
                    self.measured.add((entry["id"], picture["id"], *cell))
                rows.flush()
            self.done += len(self.cells)
            self.tell(stage="measuring", checkpoint=entry["name"])
            if os.getppid() != self.parent:  # nobody is left to want the numbers
                sys.exit("evaluate: the program that asked has gone")

    def losses(self, models: Models, number: int, picture: dict[str, Any]) -> dict[Cell, float]:
        """Return the loss of one picture at every timestep and replicate, in one batch."""
        latents = self.latents[number]
        noise = torch.stack([noise_for(self.request["seed"], picture["sha256"], *c, latents.shape) for c in self.cells])
        noise = noise.to(self.device)
        times = torch.tensor([timestep for timestep, _ in self.cells], device=self.device)
        batch = latents.expand(len(self.cells), *latents.shape)
        noisy = self.schedule.add_noise(batch, noise, times)
        target = self.schedule.get_velocity(batch, noise, times) if self.request["v_parameterization"] else noise
        text = self.text(models, picture["caption"]).expand(len(self.cells), -1, -1)
        began = time.perf_counter()
        predicted = models.predict(noisy, times, text)
        losses = (predicted.float() - target).square().mean(dim=(1, 2, 3)).tolist()
        self.forward_s += time.perf_counter() - began
        return dict(zip(self.cells, losses, strict=True))

    def text(self, models: Models, caption: str) -> Tensor:
        """Return what the text encoder makes of a caption, once a checkpoint.

        Alone, so that no other caption touches it.
        """
        if caption not in self.texts:
            began = time.perf_counter()
            self.texts[caption] = models.encode(caption)
            self.text_s += time.perf_counter() - began
        return self.texts[caption]

    def missing(self, entry: dict[str, str | None], picture: dict[str, Any]) -> list[Cell]:
        return [cell for cell in self.cells if (entry["id"], picture["id"], *cell) not in self.measured]

    def tell(self, **what: Any) -> None:
        print(json.dumps({"done": self.done, "total": self.total, **what}), flush=True)


@contextmanager
def weights_taken_over(model: type[nn.Module]) -> Iterator[None]:
    """While models of this class are loaded, they take the file's own memory for their weights, and no copy of it."""
    model.load_state_dict = partialmethod(model.load_state_dict, assign=True)
    try:
        yield
    finally:
        del model.load_state_dict  # the inherited one shows again


def measured_rows(path: Path) -> set[tuple[str, str, int, int]]:
    """Return what is in the file already, by its content and not by names; it has its header and whole lines."""
    with path.open(newline="", encoding="utf-8") as rows:
        return {
            (row["checkpoint_id"], row["picture_id"], int(row["timestep"]), int(row["replicate"]))
            for row in csv.DictReader(rows)
        }


def noise_for(seed: int, sha256: str, timestep: int, replicate: int, shape: Sequence[int]) -> Tensor:
    """Draw the noise of one cell on the CPU, from its own key: the same on every device and in every order."""
    key = hashlib.sha256(f"{seed}:{sha256}:{timestep}:{replicate}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return torch.randn(shape, generator=generator, device="cpu")


def noise_schedule(zero_terminal_snr: bool, is_engine: bool) -> DDPMScheduler:
    schedule = DDPMScheduler(**NOISE_SCHEDULE)
    if zero_terminal_snr and is_engine:
        from library import custom_train_functions

        custom_train_functions.fix_noise_scheduler_betas_for_zero_terminal_snr(schedule)
    return schedule


def most_memory_bytes() -> int:
    """Return the most memory this process has held; the kernel counts in kilobytes, but on a Mac in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    logging.disable(logging.INFO)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        Evaluation(request).run()


if __name__ == "__main__":
    main()
