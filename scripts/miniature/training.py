"""The miniature's training: a LoRA on a small Stable Diffusion, saved, logged and resumed as sd-scripts v0.10.1 does.

It knows the models, the loop and the files written; the datasets come in ready. Everything a reader of sd-scripts'
output relies on happens in its order: the bar moves before a checkpoint is saved and shows the new loss after it
(train_network.py:1487-1516), and avr_loss is LossRecorder's (train_util.py:6668).
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import math
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from dataset import Dataset, Picture, Size, load_pixels, make_caption

LATENT_SCALE = 0.18215
SAVE_DTYPES = {None: torch.float32, "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

SAME_NAME_METADATA = """\
output_name learning_rate unet_lr text_encoder_lr gradient_checkpointing gradient_accumulation_steps max_train_steps
lr_warmup_steps lr_scheduler network_module network_dim network_alpha network_dropout mixed_precision v2 clip_skip
max_token_length cache_latents seed lowram noise_offset training_comment max_grad_norm caption_dropout_rate
prior_loss_weight min_snr_gamma scale_weight_norms loss_type validation_split full_fp16 zero_terminal_snr"""
"""Options that stand in a checkpoint's metadata as `ss_` and their own name."""

RATE_NAMES = {"text encoder": "lr/textencoder", "U-Net": "lr/unet"}

logger = logging.getLogger(__name__)


class Lora(nn.Module):
    """The trained addition to one frozen layer, a Linear or a 1x1 convolution: up(down(x)) x alpha / dim."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, dim: int, alpha: float) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            self.lora_down: nn.Module = nn.Conv2d(layer.in_channels, dim, 1, bias=False)
            self.lora_up: nn.Module = nn.Conv2d(dim, layer.out_channels, 1, bias=False)
        else:
            self.lora_down = nn.Linear(layer.in_features, dim, bias=False)
            self.lora_up = nn.Linear(dim, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self.register_buffer("alpha", torch.tensor(float(alpha or dim)))
        self.scale = (alpha or dim) / dim
        layer.register_forward_hook(self.add)

    def add(self, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self.lora_up(self.lora_down(inputs[0])) * self.scale


def find_layers(root: nn.Module, blocks: set[str], prefix: str) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers that sd-scripts' networks.lora trains, under its names (lora.py:962-1016)."""
    for name, block in root.named_modules():
        if type(block).__name__ in blocks:
            for child, layer in block.named_modules():
                if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
                    yield f"{prefix}.{name}.{child}".replace(".", "_"), layer


def merge(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for table in tables for name, value in table.items()}


class LossRecorder:
    """avr_loss: in the first epoch the mean so far, later the mean of the last loss at each place of an epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.total = 0.0

    def add(self, epoch: int, step: int, loss: float) -> float:
        if epoch == 0:
            self.losses.append(loss)
        else:
            self.losses += [0.0] * (step + 1 - len(self.losses))
            self.total -= self.losses[step]
            self.losses[step] = loss
        self.total += loss
        return self.average

    @property
    def average(self) -> float:
        return self.total / len(self.losses) if self.losses else 0.0


class Batches(torch.utils.data.Dataset[dict[str, Any]]):
    """Every batch of an epoch, dataset after dataset; the loader shuffles them."""

    def __init__(self, datasets: list[Dataset], seed: int) -> None:
        self.datasets = datasets
        self.rng = random.Random(seed)
        self.latents: dict[tuple[Path, Size], Tensor] = {}

    def __len__(self) -> int:
        return sum(len(dataset.batches) for dataset in self.datasets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for dataset in self.datasets:
            if index < len(dataset.batches):
                return self.make(dataset.batches[index], dataset.settings["prior_loss_weight"])
            index -= len(dataset.batches)
        raise IndexError(index)

    def make(self, pictures: list[Picture], prior_loss_weight: float) -> dict[str, Any]:
        batch: dict[str, Any] = {"captions": [make_caption(picture, self.rng) for picture in pictures]}
        batch["weights"] = torch.tensor([prior_loss_weight if picture.subset.is_reg else 1.0 for picture in pictures])
        if self.latents:
            return batch | {
                "latents": torch.stack([self.latents[picture.path, picture.bucket] for picture in pictures])
            }
        return batch | {"pixels": torch.stack([torch.from_numpy(load_pixels(picture)) for picture in pictures])}


class Trainer:
    def __init__(self, args: argparse.Namespace, datasets: list[Dataset]) -> None:
        torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first
        self.args = args
        self.started_at = time.time()
        args.seed = random.randint(0, 2**32 - 1) if args.seed is None else args.seed
        args.cache_latents |= args.cache_latents_to_disk
        set_seed(args.seed)
        self.batches = Batches(datasets, args.seed)
        self.accelerator = prepare_accelerator(args)
        self.load_base()
        self.prepare_network()
        self.prepare_optimizer()
        self.epoch = self.global_step = self.step_before = 0
        self.state_step: int | None = None
        self.recorder = LossRecorder()

    # preparation

    def load_base(self) -> None:
        base = self.args.pretrained_model_name_or_path
        folder = Path(base, "tokenizer")
        if self.args.tokenizer_cache_dir:
            folder = Path(self.args.tokenizer_cache_dir, "openai_clip-vit-large-patch14")
        logger.info("loading model for process 0/1")
        logger.info(f"load Diffusers pretrained models: {base}")
        pipeline = StableDiffusionPipeline.from_pretrained(base, tokenizer=None, safety_checker=None)
        logger.info(f"load tokenizer from cache: {folder}")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        device = self.accelerator.device
        self.unet, self.vae, self.text_encoder = (
            model.requires_grad_(False).eval().to(device)
            for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder)
        )
        self.noise_schedule = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            clip_sample=False,
        )
        if self.args.cache_latents:
            self.cache_latents()

    def cache_latents(self) -> None:
        logger.info("caching latents.")
        for picture in tqdm([picture for dataset in self.batches.datasets for picture in dataset.pictures]):
            pixels = torch.from_numpy(load_pixels(picture))[None].to(self.accelerator.device)
            self.batches.latents[picture.path, picture.bucket] = self.encode(pixels)[0].cpu()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels).latent_dist.sample()

    def prepare_network(self) -> None:
        args, dim = self.args, self.args.network_dim or 4
        self.accelerator.print("import network module:", args.network_module)
        logger.info(f"create LoRA network. base dim (rank): {dim}, alpha: {args.network_alpha}")
        layers = {
            "text encoder": find_layers(
                self.text_encoder, {"CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"}, "lora_te"
            ),
            "U-Net": find_layers(self.unet, {"Transformer2DModel"}, "lora_unet"),
        }
        if args.network_train_unet_only:
            del layers["text encoder"]
        if args.network_train_text_encoder_only:
            del layers["U-Net"]
        self.parts: dict[str, nn.ModuleDict] = {}
        for part, found in layers.items():
            self.parts[part] = nn.ModuleDict({name: Lora(layer, dim, args.network_alpha) for name, layer in found})
            logger.info(f"enable LoRA for {part}: {len(self.parts[part])} modules")
        self.network = nn.ModuleDict(merge(self.parts.values()))

    def prepare_optimizer(self) -> None:
        args = self.args
        self.accelerator.print("prepare optimizer, data loader etc.")
        kwargs = {name: ast.literal_eval(value) for name, value in (a.split("=") for a in args.optimizer_args or [])}
        logger.info(f"use AdamW optimizer | {kwargs}")
        asked = {"text encoder": (args.text_encoder_lr or [None])[0], "U-Net": args.unet_lr}
        rates = {part: args.learning_rate if asked[part] is None else asked[part] for part in self.parts}
        groups = [{"params": self.parts[part].parameters(), "lr": rate} for part, rate in rates.items() if rate]
        self.rate_names = [RATE_NAMES[part] for part, rate in rates.items() if rate]
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, **kwargs)
        if args.persistent_data_loader_workers and args.max_data_loader_n_workers == 0:
            raise ValueError("persistent_workers option needs num_workers > 0")
        loader = torch.utils.data.DataLoader(self.batches, shuffle=True, collate_fn=lambda batches: batches[0])
        self.steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
        if args.max_train_epochs is not None:
            args.max_train_steps = args.max_train_epochs * self.steps_per_epoch
            self.accelerator.print(
                f"override steps. steps for {args.max_train_epochs} epochs is"
                f" / 指定エポックまでのステップ数: {args.max_train_steps}"
            )
        self.network, self.optimizer, self.loader, self.lr_scheduler = self.accelerator.prepare(
            self.network, optimizer, loader, make_lr_scheduler(args, optimizer)
        )

    # the run

    def train(self) -> None:
        args = self.args
        self.accelerator.register_save_state_pre_hook(self.write_train_state)
        self.accelerator.register_load_state_pre_hook(self.read_train_state)
        if args.resume:
            logger.info(f"resume training from local state: {args.resume}")
            self.accelerator.load_state(args.resume)
        self.num_epochs = math.ceil(args.max_train_steps / self.steps_per_epoch)
        self.print_header()
        self.metadata = self.make_metadata()
        first_epoch = self.steps_to_skip() // self.steps_per_epoch
        if args.logging_dir:
            self.accelerator.init_trackers(args.log_tracker_name or "network_train")
        logger.info(f"unet dtype: {self.unet.dtype}, device: {self.unet.device}")
        logger.info(f"text_encoder [0] dtype: {self.text_encoder.dtype}, device: {self.text_encoder.device}")
        self.bar = tqdm(range(args.max_train_steps), smoothing=0, desc="steps")
        for epoch in range(first_epoch, self.num_epochs):
            self.train_epoch(epoch)
        self.accelerator.end_training()
        if args.save_state or args.save_state_on_train_end:
            logger.info("saving last state.")
            self.accelerator.save_state(str(self.output("last", "", "-state")))
        self.save(self.output("last", ""), self.num_epochs)
        logger.info("model saved.")

    def train_epoch(self, epoch: int) -> None:
        self.accelerator.print(f"\nepoch {epoch + 1}/{self.num_epochs}\n")
        self.epoch = epoch + 1
        for dataset in self.batches.datasets:
            dataset.shuffle(self.args.seed, self.epoch)
        for step, batch in enumerate(self.loader):
            self.step_before = self.global_step
            loss = self.learn(batch)
            if self.accelerator.sync_gradients:
                self.bar.update(1)
                self.global_step += 1
                self.save_every_n_steps()
            average = self.recorder.add(epoch, step, loss)
            self.bar.set_postfix(avr_loss=average)
            rates = dict(zip(self.rate_names, self.lr_scheduler.get_last_lr(), strict=True))
            self.accelerator.log({"loss/current": loss, "loss/average": average, **rates}, step=self.global_step)
            if self.global_step >= self.args.max_train_steps:
                break
        self.accelerator.log({"loss/epoch_average": self.recorder.average}, step=self.epoch)
        self.save_every_n_epochs()

    def learn(self, batch: dict[str, Any]) -> float:
        with self.accelerator.accumulate(self.network):
            with self.accelerator.autocast():
                loss = self.loss(batch)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.args.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.network.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The mean squared error of the predicted noise, at one random time for each picture."""
        latents = (batch["latents"] if "latents" in batch else self.encode(batch["pixels"])) * LATENT_SCALE
        noise = torch.randn_like(latents)
        earliest, latest = self.args.min_timestep or 0, self.args.max_timestep or 1000
        times = torch.randint(earliest, latest, (len(latents),)).to(latents.device)
        noisy = self.noise_schedule.add_noise(latents, noise, times)
        predicted = self.unet(noisy, times, self.read(batch["captions"])).sample
        losses = (predicted.float() - noise).square().mean(dim=(1, 2, 3)) * batch["weights"]
        if self.args.min_snr_gamma:
            alphas = self.noise_schedule.alphas_cumprod.to(latents.device)[times]
            ratio = alphas / (1 - alphas)
            losses = losses * ratio.clamp(max=self.args.min_snr_gamma) / ratio
        return losses.mean()

    def read(self, captions: list[str]) -> Tensor:
        """The text encoder's states, from the layer that clip_skip says."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = self.text_encoder(tokens.to(self.text_encoder.device), output_hidden_states=True)
        if self.args.clip_skip is None:
            return output.last_hidden_state
        return self.text_encoder.text_model.final_layer_norm(output.hidden_states[-self.args.clip_skip])

    # what is said and written

    def print_header(self) -> None:
        args, datasets = self.args, self.batches.datasets
        train_images = sum(dataset.num_train_images for dataset in datasets)
        batch_sizes = ", ".join(str(dataset.settings["batch_size"]) for dataset in datasets)
        for line in (
            "running training / 学習開始",
            f"  num train images * repeats / 学習画像の数×繰り返し回数: {train_images}",
            "  num validation images * repeats / 学習画像の数×繰り返し回数: 0",
            f"  num reg images / 正則化画像の数: {sum(dataset.num_reg_images for dataset in datasets)}",
            f"  num batches per epoch / 1epochのバッチ数: {len(self.loader)}",
            f"  num epochs / epoch数: {self.num_epochs}",
            f"  batch size per device / バッチサイズ: {batch_sizes}",
            f"  gradient accumulation steps / 勾配を合計するステップ数 = {args.gradient_accumulation_steps}",
            f"  total optimization steps / 学習ステップ数: {args.max_train_steps}",
        ):
            self.accelerator.print(line)

    def make_metadata(self) -> dict[str, str]:
        args, datasets = self.args, self.batches.datasets
        values = {f"ss_{name}": getattr(args, name) for name in SAME_NAME_METADATA.split()} | {
            "ss_session_id": random.randint(0, 2**32),
            "ss_training_started_at": self.started_at,
            "ss_num_train_images": sum(dataset.num_train_images for dataset in datasets),
            "ss_num_validation_images": 0,
            "ss_num_reg_images": sum(dataset.num_reg_images for dataset in datasets),
            "ss_num_batches_per_epoch": len(self.loader),
            "ss_num_epochs": self.num_epochs,
            "ss_base_model_version": "sd_v1",
            "ss_sd_model_name": Path(args.pretrained_model_name_or_path).name,
            "ss_sd_scripts_commit_hash": "miniature",
            "ss_optimizer": f"torch.optim.adamw.AdamW({','.join(args.optimizer_args or [])})".replace("()", ""),
            "ss_datasets": json.dumps([dataset.metadata() for dataset in datasets]),
            "ss_tag_frequency": json.dumps(merge(dataset.tag_frequency() for dataset in datasets)),
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.title": args.metadata_title or args.output_name,
            "modelspec.prediction_type": "epsilon",
        }
        return {name: str(value) for name, value in values.items()}

    def output(self, default_name: str, number: str, suffix: str = ".safetensors") -> Path:
        return Path(self.args.output_dir, f"{self.args.output_name or default_name}{number}{suffix}")

    def save(self, path: Path, epoch: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.accelerator.print(f"\nsaving checkpoint: {path}")
        dtype = SAVE_DTYPES[self.args.save_precision]
        tensors = {name: value.detach().cpu().to(dtype) for name, value in self.network.state_dict().items()}
        moment = {"ss_training_finished_at": time.time(), "ss_steps": self.global_step, "ss_epoch": epoch}
        save_file(tensors, path, self.metadata | {name: str(value) for name, value in moment.items()})

    def save_every_n_steps(self) -> None:
        """A step's checkpoint and state; its metadata counts epochs from 0 (train_network.py:1496)."""
        args, every, step = self.args, self.args.save_every_n_steps, self.global_step
        if every is not None and step % every == 0:
            kept, kept_states = args.save_last_n_steps, args.save_last_n_steps_state or args.save_last_n_steps
            old, old_state = (None if n is None else (step - n - 1) // every * every for n in (kept, kept_states))
            self.save_numbered("at", "-step{:08d}", step, self.epoch - 1, old, old_state)

    def save_every_n_epochs(self) -> None:
        """An epoch's checkpoint and state, but for the last epoch's, which is the final one; epochs count from 1."""
        args, every, epoch = self.args, self.args.save_every_n_epochs, self.epoch
        if every is not None and epoch % every == 0 and epoch < self.num_epochs:
            kept, kept_states = args.save_last_n_epochs, args.save_last_n_epochs_state or args.save_last_n_epochs
            old, old_state = (None if n is None else epoch - every * n for n in (kept, kept_states))
            self.save_numbered("epoch", "-{:06d}", epoch, epoch, old, old_state)

    def save_numbered(
        self, name: str, pattern: str, number: int, epoch: int, old: int | None, old_state: int | None
    ) -> None:
        """Save a checkpoint and, if asked, the state beside it; remove those of the older numbers."""
        self.save(self.output(name, pattern.format(number)), epoch)
        if old is not None and (path := self.output(name, pattern.format(old))).exists():
            self.accelerator.print(f"removing old checkpoint: {path}")
            path.unlink()
        if not self.args.save_state:
            return
        logger.info(f"saving state at {'step' if name == 'at' else 'epoch'} {number}")
        self.accelerator.save_state(str(self.output(name, pattern.format(number), "-state")))
        if old_state is not None and (path := self.output(name, pattern.format(old_state), "-state")).exists():
            logger.info(f"removing old state: {path}")
            shutil.rmtree(path)

    def write_train_state(self, _models: list[Any], _weights: list[Any], directory: str) -> None:
        path, epoch, step = Path(directory, "train_state.json"), self.epoch, self.step_before + 1
        logger.info(f"save train state to {path} at epoch {epoch} step {step}")
        path.write_text(json.dumps({"current_epoch": epoch, "current_step": step}), encoding="utf-8")

    def read_train_state(self, _models: list[Any], directory: str) -> None:
        path = Path(directory, "train_state.json")
        state = json.loads(path.read_text(encoding="utf-8"))
        logger.info(f"load train state from {path}: {state}")
        self.state_step = state["current_step"]

    def steps_to_skip(self) -> int:
        """The step to go on from: what the options say, else what the state says, else the first."""
        args, step = self.args, self.args.initial_step
        if step is None and args.initial_epoch is not None:
            step = (args.initial_epoch - 1) * self.steps_per_epoch
        if step is not None and self.state_step is not None:
            logger.warning("steps from the state is ignored because initial_step is specified")
        step = (self.state_step or 0) if step is None else step
        assert step == 0 or args.max_train_steps > step, (
            f"max_train_steps should be greater than initial step: {args.max_train_steps} vs {step}"
        )
        return step


def prepare_accelerator(args: argparse.Namespace) -> Accelerator:
    if args.log_with and not args.logging_dir:
        raise ValueError("logging_dir is required when log_with is tensorboard")
    prefix = f"{args.logging_dir}/{args.log_prefix or ''}"
    logger.info("preparing accelerator")
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with="tensorboard" if args.logging_dir else None,
        project_dir=prefix + time.strftime("%Y%m%d%H%M%S") if args.logging_dir else None,
    )
    print("accelerator device:", accelerator.device)
    return accelerator


def make_lr_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    warmup = args.lr_warmup_steps
    warmup = int(warmup * args.max_train_steps) if isinstance(warmup, float) else warmup
    if args.lr_scheduler == "constant" and warmup:
        raise ValueError("constant does not require `num_warmup_steps`. Set None or 0.")
    return get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=args.max_train_steps,
        num_cycles=args.lr_scheduler_num_cycles,
        power=args.lr_scheduler_power,
    )
