"""The miniature: a stand-in for kohya's sd-scripts, v0.10.1, that trains in seconds on any CPU.

What it is: a program with the face of sd-scripts' `train_network.py`. It takes the same options, reads the same dataset
config, prints the lines that others read from sd-scripts, writes the same files under the same names, ends with the
same exit codes, and really trains a LoRA, on the pictures and captions it is given, with diffusers' and transformers'
own classes. `make train PRESET=demo` runs it, and the contract tests.

What it is not: a copy of sd-scripts, or a way to train anything worth using. It knows DreamBooth datasets from a
dataset config, LoRA (`networks.lora`) on a Stable Diffusion 1 in diffusers' format, AdamW, diffusers' learning rate
schedules and min_snr_gamma. What only changes speed or memory is accepted, without effect; any other option or dataset
setting that asks for something unknown here is refused by name, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import logging
import math
import random
import shutil
import time
from collections import ChainMap, Counter
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import imagesize
import toml
from PIL import Image, ImageOps
from rich.console import Console
from rich.logging import RichHandler
from tqdm import tqdm

OPTIONS_FILE = Path(__file__).parents[2] / "spyke_kohya" / "engine" / "train_network_options.json"
"""Every option of the real program, as `scripts/dump_engine_options.py` wrote it down."""

IN_METADATA = """output_name learning_rate unet_lr text_encoder_lr gradient_accumulation_steps max_train_steps
lr_warmup_steps lr_scheduler network_dim network_alpha mixed_precision clip_skip cache_latents seed training_comment
max_grad_norm prior_loss_weight min_snr_gamma gradient_checkpointing lowram"""
IN_DATASETS = """resolution enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps shuffle_caption keep_tokens
caption_extension prior_loss_weight"""
KNOWN = f"""{IN_METADATA} {IN_DATASETS} pretrained_model_name_or_path tokenizer_cache_dir dataset_config
train_batch_size dataset_repeats output_dir save_precision save_every_n_epochs save_every_n_steps save_last_n_epochs
save_last_n_steps save_last_n_epochs_state save_last_n_steps_state save_state save_state_on_train_end resume
initial_epoch max_train_epochs lr_scheduler_num_cycles lr_scheduler_power optimizer_type=adamw optimizer_args
network_module=networks.lora logging_dir log_with=tensorboard cache_latents_to_disk sdpa mem_eff_attn no_half_vae
highvram vae_batch_size skip_cache_check max_data_loader_n_workers persistent_data_loader_workers ddp_timeout
ddp_gradient_as_bucket_view ddp_static_graph validation_seed"""
"""The options that may be given, and of some the one value. The first of them go into a checkpoint's metadata."""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG", ".JPEG", ".WEBP", ".BMP"}
FILE_NAMES = {"steps": ("at", "-step{:08d}"), "epochs": ("epoch", "-{:06d}"), "last": ("last", "")}
logger = logging.getLogger(__name__)


def read_options() -> argparse.Namespace:
    """The command line, read with the options of the real program."""
    parser = argparse.ArgumentParser()
    types = {"int": int, "float": float, "int_or_float": json.loads, "str": str, "Path": str}
    options = json.loads(OPTIONS_FILE.read_text(encoding="utf-8"))
    for option in options:
        if option["kind"] == "StoreTrue":
            parser.add_argument(option["flag"], action="store_true")
        else:
            kept = {key: option[key] for key in ("nargs", "choices", "default", "required")}
            parser.add_argument(option["flag"], type=types[option["type"]], **kept)
    args = parser.parse_args()
    for option in options:
        name, value = option["dest"], getattr(args, option["dest"])
        if value != option["default"] and not {name, f"{name}={value}".lower()} & set(KNOWN.split()):
            raise SystemExit(f"train_network.py: error: {option['flag']}={value} is not in the miniature")
    return args


@dataclass(eq=False)
class Picture:
    path: Path
    caption: str
    settings: ChainMap[str, Any]
    repeats: int
    bucket: tuple[int, int] = (0, 0)


@dataclass
class Dataset:
    """One `[[datasets]]`: `buckets` hold every picture once for each repeat, `tags` count each folder's tags."""

    settings: ChainMap[str, Any]
    num_train_images: int = 0
    num_reg_images: int = 0
    tags: dict[str, Counter[str]] = field(default_factory=dict)
    buckets: dict[tuple[int, int], list[Picture]] = field(default_factory=dict)

    def deal(self, seed: int) -> list[list[Picture]]:
        """The batches of an epoch: each bucket is shuffled and cut into batches."""
        rng, size = random.Random(seed), self.settings["batch_size"]
        shuffled = [rng.sample(bucket, len(bucket)) for bucket in self.buckets.values()]
        return [bucket[i : i + size] for bucket in shuffled for i in range(0, len(bucket), size)]


def read_datasets(args: argparse.Namespace) -> list[Dataset]:
    """Read the dataset config and all it names. Raises ValueError and AssertionError where sd-scripts does."""
    if not args.dataset_config or not Path(args.dataset_config).is_file():
        raise ValueError(f"file not found / ファイルが見つかりません: {args.dataset_config}")
    config = toml.load(args.dataset_config)
    general, tables = config.get("general", {}), config.get("datasets", [])
    options = {name: getattr(args, name) for name in IN_DATASETS.split()} | {"image_dir": None, "is_reg": False}
    options |= {"batch_size": args.train_batch_size, "num_repeats": args.dataset_repeats, "subsets": []}
    parts = [general, *tables, *(subset for table in tables for subset in table.get("subsets", []))]
    for name, value in (item for part in parts for item in part.items()):
        if value and name not in options:
            raise SystemExit(f"train_network.py: error: {name} = {value} in a dataset is not in the miniature")
    return [read_dataset(ChainMap(table, general, options)) for table in tables]


def read_dataset(settings: ChainMap[str, Any]) -> Dataset:
    """The pictures of all subsets in their buckets, regularisation and training balanced (train_util.py:2117)."""
    sides = str(settings["resolution"]).strip("[]").split(",")
    dataset = Dataset(settings | {"resolution": (int(sides[0]), int(sides[-1]))})
    pictures: dict[bool, list[Picture]] = {False: [], True: []}
    for subset in map(settings.new_child, settings["subsets"]):
        pictures[subset["is_reg"]] += read_subset(subset, dataset.tags)
    train, reg = (sum(picture.repeats for picture in pictures[is_reg]) for is_reg in (False, True))
    dataset.num_train_images, dataset.num_reg_images = train, reg
    if train < reg:
        logger.warning("some of reg images are not used / 一部使用されない正則化画像があります")
    used, sizes = pictures[False] + balance(pictures[True], train), bucket_sizes(dataset.settings)
    for picture in used:
        own = imagesize.get(picture.path)
        nearest = min(sizes, key=lambda size, own=own: abs(size[0] / size[1] - own[0] / own[1]))
        picture.bucket = own if own in sizes else nearest
    for picture in sorted(used, key=lambda picture: picture.bucket):
        dataset.buckets.setdefault(picture.bucket, []).extend([picture] * picture.repeats)
    return dataset


def read_subset(settings: ChainMap[str, Any], tags: dict[str, Counter[str]]) -> list[Picture]:
    """A folder's pictures and captions, its tags counted; none, and a warning, where sd-scripts ignores the subset."""
    folder, repeats = settings["image_dir"], settings["num_repeats"]
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix in IMAGE_SUFFIXES)
    if folder in tags or repeats < 1 or not paths:
        logger.warning(f"ignore subset with image_dir='{folder}': no images, no repeats, or named before")
        return []
    files = [path.with_suffix("." + settings["caption_extension"].lstrip(".")) for path in paths]
    captions = [file.read_text(encoding="utf-8").splitlines()[0] if file.is_file() else "" for file in files]
    if not all(captions):
        logger.warning(f"No caption file found for {captions.count('')} images.")
    tags[folder] = Counter(tag.strip().lower() for caption in captions for tag in caption.split(",") if tag.strip())
    return [Picture(path, caption.strip(), settings, repeats) for path, caption in zip(paths, captions, strict=True)]


def balance(reg: list[Picture], wanted: int) -> list[Picture]:
    """Those that are used: each with its own repeats until `wanted` is reached, then round and round, one more."""
    counts = list(accumulate((picture.repeats for picture in reg), initial=0))
    used = [picture for picture, count in zip(reg, counts, strict=False) if count < wanted]
    for number in range(wanted - counts[len(used)] if used else 0):
        used[number % len(used)].repeats += 1
    return used


def bucket_sizes(settings: ChainMap[str, Any]) -> list[tuple[int, int]]:
    """Every bucket that fits the area of the resolution; without buckets the resolution alone."""
    resolution, steps = settings["resolution"], settings["bucket_reso_steps"]
    if not settings["enable_bucket"]:
        return [resolution]
    assert steps % 64 == 0, f"bucket_reso_steps is {steps}. it must be divisible by 64."
    smallest = settings["min_bucket_reso"] // steps * steps
    largest = math.ceil(settings["max_bucket_reso"] / steps) * steps
    assert smallest <= min(resolution), "min_bucket_reso must be equal or less than resolution"
    assert largest >= max(resolution), "max_bucket_reso must be equal or greater than resolution"
    area = resolution[0] * resolution[1]
    sizes = {(int(math.sqrt(area) // steps) * steps,) * 2}
    for width in range(smallest, largest + 1, steps):
        height = min(largest, area // width // steps * steps)
        if height >= smallest:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def make_caption(picture: Picture) -> str:
    """The caption as it is read this time: its tags shuffled, if asked, behind those that are kept in place."""
    if not picture.settings["shuffle_caption"]:
        return picture.caption
    kept, tags = picture.settings["keep_tokens"], [tag.strip() for tag in picture.caption.split(",")]
    others = tags[kept:]
    return ", ".join(tags[:kept] + random.sample(others, len(others)))


def add_loras(root: Any, prefix: str, blocks: set[str], dim: int, alpha: float) -> Any:
    """Add up(down(x)) x alpha / dim to each Linear and 1x1 convolution in `blocks`, named as lora.py:962-1016 does."""
    from torch import nn, tensor

    def add(lora: nn.ModuleDict, _layer: nn.Module, inputs: Any, output: Any) -> Any:
        return output + lora["lora_up"](lora["lora_down"](inputs[0])) * (alpha / dim)

    loras = {}
    insides = [(name, block.named_modules()) for name, block in root.named_modules() if type(block).__name__ in blocks]
    for name, layer in ((f"{name}.{child}", layer) for name, inside in insides for child, layer in inside):
        if isinstance(layer, nn.Linear) or getattr(layer, "kernel_size", None) == (1, 1):
            make = nn.Linear if isinstance(layer, nn.Linear) else functools.partial(nn.Conv2d, kernel_size=1)
            down, up = (make(*sides, bias=False) for sides in ((layer.weight.shape[1], dim), (dim, len(layer.weight))))
            lora = nn.ModuleDict({"lora_down": down, "lora_up": up})
            lora.register_buffer("alpha", tensor(float(alpha)))
            nn.init.zeros_(up.weight)
            layer.register_forward_hook(functools.partial(add, lora))
            loras[f"{prefix}.{name}".replace(".", "_")] = lora
    return nn.ModuleDict(loras)


class Trainer:
    """One run: models, loop, and the lines and files of sd-scripts in its order (train_network.py:1487-1516)."""

    def __init__(self, args: argparse.Namespace, datasets: list[Dataset]) -> None:
        import torch  # not at the top: it takes seconds, and a refusal need not wait for it
        from accelerate import Accelerator
        from accelerate.utils import set_seed
        from diffusers import DDPMScheduler, StableDiffusionPipeline

        torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first
        self.args, self.datasets = args, datasets
        args.seed = random.randint(0, 2**32 - 1) if args.seed is None else args.seed
        set_seed(args.seed)
        self.epoch = self.global_step = self.first_step = 0
        self.losses, self.total_loss = [], 0.0
        self.accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=args.log_with or ("tensorboard" if args.logging_dir else None),
            project_dir=args.logging_dir and f"{args.logging_dir}/{time.strftime('%Y%m%d%H%M%S')}",
        )
        print("accelerator device:", self.accelerator.device)
        self.base = StableDiffusionPipeline.from_pretrained(args.pretrained_model_name_or_path, safety_checker=None)
        if cache := args.tokenizer_cache_dir:
            self.base.tokenizer = self.base.tokenizer.from_pretrained(Path(cache, "openai_clip-vit-large-patch14"))
        for model in (self.base.unet, self.base.vae, self.base.text_encoder):
            model.requires_grad_(False).to(self.accelerator.device)
        self.noise_schedule = DDPMScheduler.from_config(self.base.scheduler.config)
        if args.cache_latents or args.cache_latents_to_disk:
            self.encode = functools.cache(self.encode)
        self.prepare()

    def prepare(self) -> None:
        """Make the LoRA, its optimizer, the order of the batches and the schedule; count the steps."""
        import torch
        from diffusers.optimization import get_scheduler

        args = self.args
        print("import network module:", args.network_module)
        dim, alpha = args.network_dim or 4, args.network_alpha or args.network_dim or 4
        text_encoder = add_loras(self.base.text_encoder, "lora_te", {"CLIPAttention", "CLIPMLP"}, dim, alpha)
        unet = add_loras(self.base.unet, "lora_unet", {"Transformer2DModel"}, dim, alpha)
        print("prepare optimizer, data loader etc.")
        groups = [
            {"name": "lr/textencoder", "lr": (args.text_encoder_lr or [None])[0], "params": text_encoder.parameters()},
            {"name": "lr/unet", "lr": args.unet_lr, "params": unet.parameters()},
        ]
        for group in groups:
            group["lr"] = args.learning_rate if group["lr"] is None else group["lr"]
        settings = dict(argument.split("=") for argument in args.optimizer_args or [])
        optimizer = torch.optim.AdamW(groups, **{name: ast.literal_eval(text) for name, text in settings.items()})
        batches = range(sum(len(dataset.deal(0)) for dataset in self.datasets))
        order = torch.utils.data.DataLoader(batches, shuffle=True, collate_fn=lambda numbers: numbers[0])
        self.steps_per_epoch = math.ceil(len(order) / args.gradient_accumulation_steps)
        total, warmup, epochs = args.max_train_steps, args.lr_warmup_steps, args.max_train_epochs
        if epochs is not None:
            total = args.max_train_steps = epochs * self.steps_per_epoch
            print(f"override steps. steps for {epochs} epochs is / 指定エポックまでのステップ数: {total}")
        self.num_epochs = math.ceil(total / self.steps_per_epoch)
        assert not warmup or args.lr_scheduler != "constant", "constant does not require `num_warmup_steps`"
        warmup = int(warmup * total) if isinstance(warmup, float) else warmup
        cycles, power = args.lr_scheduler_num_cycles, args.lr_scheduler_power
        schedule = get_scheduler(args.lr_scheduler, optimizer, None, warmup, total, cycles, power)
        prepared = self.accelerator.prepare(torch.nn.ModuleDict({**text_encoder, **unet}), optimizer, order, schedule)
        self.network, self.optimizer, self.order, self.schedule = prepared

    def train(self) -> None:
        args = self.args
        self.accelerator.register_save_state_pre_hook(self.write_train_state)
        self.accelerator.register_load_state_pre_hook(self.read_train_state)
        if args.resume:
            self.accelerator.load_state(args.resume)
        if args.initial_epoch is not None:
            if args.resume:
                logger.warning("steps from the state is ignored because initial_step is specified")
            self.first_step = (args.initial_epoch - 1) * self.steps_per_epoch
        assert self.first_step < args.max_train_steps, "max_train_steps should be greater than initial step"
        print(f"""\
running training / 学習開始
  num train images * repeats / 学習画像の数×繰り返し回数: {sum(dataset.num_train_images for dataset in self.datasets)}
  num validation images * repeats / 学習画像の数×繰り返し回数: 0
  num reg images / 正則化画像の数: {sum(dataset.num_reg_images for dataset in self.datasets)}
  num batches per epoch / 1epochのバッチ数: {len(self.order)}
  num epochs / epoch数: {self.num_epochs}
  batch size per device / バッチサイズ: {", ".join(str(dataset.settings["batch_size"]) for dataset in self.datasets)}
  gradient accumulation steps / 勾配を合計するステップ数 = {args.gradient_accumulation_steps}
  total optimization steps / 学習ステップ数: {args.max_train_steps}""")
        self.metadata = self.make_metadata()
        self.accelerator.init_trackers("network_train")
        self.bar = tqdm(range(args.max_train_steps), smoothing=0, desc="steps")
        for epoch in range(self.first_step // self.steps_per_epoch + 1, self.num_epochs + 1):
            self.train_epoch(epoch)
        self.accelerator.end_training()
        if args.save_state or args.save_state_on_train_end:
            self.accelerator.save_state(str(self.output("last", 0, "-state")))
        self.save("last", 0, self.num_epochs)
        logger.info("model saved.")

    def train_epoch(self, epoch: int) -> None:
        print(f"\nepoch {epoch}/{self.num_epochs}\n")
        self.epoch = epoch
        batches = [batch for dataset in self.datasets for batch in dataset.deal(self.args.seed + epoch)]
        for place, number in enumerate(self.order):
            loss = self.learn(batches[number])
            if self.accelerator.sync_gradients:
                self.bar.update(1)
                self.global_step += 1
                self.save_if_due("steps", self.global_step, epoch - 1)  # 0-based, as in sd-scripts
            # avr_loss: the mean of the last loss at each place of an epoch; once NaN, for good (train_util.py:6668)
            self.total_loss += loss - sum(self.losses[place : place + 1])
            self.losses[place : place + 1] = [loss]
            average = self.total_loss / len(self.losses)
            self.bar.set_postfix(avr_loss=average)
            rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
            self.accelerator.log({"loss/current": loss, "loss/average": average, **rates}, step=self.global_step)
            if self.global_step >= self.args.max_train_steps:
                break
        self.accelerator.log({"loss/epoch_average": average}, step=epoch)
        if epoch < self.num_epochs:
            self.save_if_due("epochs", epoch, epoch)

    def learn(self, batch: list[Picture]) -> float:
        with self.accelerator.accumulate(self.network):
            with self.accelerator.autocast():
                loss = self.loss(batch)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.args.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.network.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        return loss.item()

    def loss(self, batch: list[Picture]) -> Any:
        """The mean squared error of the predicted noise, at one random time for each picture."""
        import torch
        from diffusers.training_utils import compute_snr

        latents = torch.stack([self.encode(picture) for picture in batch])
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (len(batch),)).to(latents.device)
        states = self.read([make_caption(picture) for picture in batch])
        predicted = self.base.unet(self.noise_schedule.add_noise(latents, noise, times), times, states).sample
        weights = [p.settings["prior_loss_weight"] if p.settings["is_reg"] else 1.0 for p in batch]
        losses = (predicted.float() - noise).square().mean(dim=(1, 2, 3)) * noise.new_tensor(weights)
        if self.args.min_snr_gamma:
            ratio = compute_snr(self.noise_schedule, times)
            losses = losses * ratio.clamp(max=self.args.min_snr_gamma) / ratio
        return losses.mean()

    def encode(self, picture: Picture) -> Any:
        """The latents of the picture, scaled and cut to its bucket."""
        with Image.open(picture.path) as image:
            cut = ImageOps.fit(image.convert("RGB"), picture.bucket, Image.Resampling.LANCZOS)
        pixels = self.base.image_processor.preprocess(cut).to(self.accelerator.device)
        return self.base.vae.encode(pixels).latent_dist.sample()[0] * self.base.vae.config.scaling_factor

    def read(self, captions: list[str]) -> Any:
        """The text encoder's states, from the layer that clip_skip says."""
        tokens = self.base.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = self.base.text_encoder(tokens.to(self.accelerator.device), output_hidden_states=True)
        if self.args.clip_skip is None:
            return output.last_hidden_state
        return self.base.text_encoder.text_model.final_layer_norm(output.hidden_states[-self.args.clip_skip])

    def make_metadata(self) -> dict[str, str]:
        tags = {Path(folder).name: tags for dataset in self.datasets for folder, tags in dataset.tags.items()}
        batches = [{"batch_size_per_device": dataset.settings["batch_size"]} for dataset in self.datasets]
        values = {f"ss_{name}": getattr(self.args, name) for name in IN_METADATA.split()} | {
            "ss_network_module": "networks.lora",
            "ss_v2": False,
            "ss_num_batches_per_epoch": len(self.order),
            "ss_num_epochs": self.num_epochs,
            "ss_base_model_version": "sd_v1",
            "ss_sd_model_name": Path(self.args.pretrained_model_name_or_path).name,
            "ss_datasets": json.dumps(batches),
            "ss_tag_frequency": json.dumps(tags),
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.prediction_type": "epsilon",
        }
        return {name: str(value) for name, value in values.items()}

    def output(self, unit: str, number: int, suffix: str) -> Path:
        name, pattern = FILE_NAMES[unit]
        return Path(self.args.output_dir, f"{self.args.output_name or name}{pattern.format(number)}{suffix}")

    def save(self, unit: str, number: int, epoch: int) -> None:
        import torch
        from safetensors.torch import save_file

        path = self.output(unit, number, ".safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"\nsaving checkpoint: {path}")
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.args.save_precision, torch.float32)
        tensors = {name: value.cpu().to(dtype) for name, value in self.network.state_dict().items()}
        save_file(tensors, path, self.metadata | {"ss_steps": str(self.global_step), "ss_epoch": str(epoch)})

    def save_if_due(self, unit: str, number: int, epoch: int) -> None:
        """Save a step's or an epoch's checkpoint and state, and remove the one that is no longer to be kept."""
        options = vars(self.args)
        every, kept = options[f"save_every_n_{unit}"], options[f"save_last_n_{unit}"]
        if every is None or number % every:
            return
        self.save(unit, number, epoch)
        if self.args.save_state:
            self.accelerator.save_state(str(self.output(unit, number, "-state")))
        for suffix, limit in ((".safetensors", kept), ("-state", options[f"save_last_n_{unit}_state"] or kept)):
            if limit is not None:
                old = (number - limit - 1) // every * every if unit == "steps" else number - every * limit
                path = self.output(unit, old, suffix)
                if path.is_file():
                    print(f"removing old checkpoint: {path}")
                    path.unlink()
                elif self.args.save_state:
                    shutil.rmtree(path, ignore_errors=True)

    def write_train_state(self, _models: list[Any], _weights: list[Any], directory: str) -> None:
        state = {"current_epoch": self.epoch, "current_step": self.global_step}
        Path(directory, "train_state.json").write_text(json.dumps(state), encoding="utf-8")

    def read_train_state(self, _models: list[Any], directory: str) -> None:
        self.first_step = json.loads(Path(directory, "train_state.json").read_text(encoding="utf-8"))["current_step"]


def main() -> None:
    args = read_options()
    handler = RichHandler(console=Console(stderr=True))
    logging.basicConfig(level=logging.INFO, format="%(message)s", datefmt="%Y-%m-%d %H:%M:%S", handlers=[handler])
    datasets = read_datasets(args)
    if not any(dataset.buckets for dataset in datasets):
        logger.error("No data found. Please verify arguments / 画像がありません。引数指定を確認してください")
        return
    Trainer(args, datasets).train()


if __name__ == "__main__":
    main()
