"""The miniature's datasets: a dataset config becomes pictures, buckets and batches by the rules of sd-scripts v0.10.1.

It knows settings and their fallbacks, regularisation balancing and bucketing (train_util.py:216, 2117, 2166); of
training it knows nothing, and it needs no torch.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagesize
import numpy as np
import toml
from PIL import Image
from tqdm import tqdm

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG", ".JPEG", ".WEBP", ".BMP"}

SUBSET_DEFAULTS: dict[str, Any] = {
    "num_repeats": 1, "shuffle_caption": False, "keep_tokens": 0, "caption_separator": ",", "caption_prefix": None,
    "caption_suffix": None, "caption_extension": ".caption", "class_tokens": None,
}  # fmt: skip
DATASET_DEFAULTS: dict[str, Any] = {
    "batch_size": 1, "resolution": None, "enable_bucket": False, "min_bucket_reso": 256, "max_bucket_reso": 1024,
    "bucket_reso_steps": 64, "prior_loss_weight": 1.0,
}  # fmt: skip
NOT_HERE = """bucket_no_upscale color_aug face_crop_aug_range flip_aug random_crop keep_tokens_separator
secondary_separator enable_wildcard token_warmup_min token_warmup_step custom_attributes resize_interpolation
caption_dropout_every_n_epochs caption_dropout_rate caption_tag_dropout_rate cache_info alpha_mask validation_seed
validation_split network_multiplier"""
"""Settings of sd-scripts that the miniature has not: refused where they ask for something."""

OPTION_NAMES = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
"""Settings whose command line option has another name."""

Size = tuple[int, int]
logger = logging.getLogger(__name__)


@dataclass
class Subset:
    image_dir: str
    is_reg: bool
    settings: dict[str, Any]
    captions: list[str] = field(default_factory=list)


@dataclass
class Picture:
    path: Path
    caption: str
    subset: Subset
    repeats: int
    size: Size = (0, 0)
    bucket: Size = (0, 0)
    resized: Size = (0, 0)
    ratio_error: float = 0.0


@dataclass
class Dataset:
    """One `[[datasets]]`: its pictures, and their buckets, which hold every picture once for each repeat."""

    settings: dict[str, Any]
    subsets: list[Subset] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    buckets: dict[Size, list[Picture]] = field(default_factory=dict)
    batches: list[list[Picture]] = field(default_factory=list)
    num_train_images: int = 0
    num_reg_images: int = 0
    epoch: int = 0

    def shuffle(self, seed: int, epoch: int) -> None:
        """Deal the batches of an epoch anew: each bucket is shuffled and cut into batches."""
        if epoch > 0:
            logger.info(f"epoch is incremented. current_epoch: {self.epoch}, epoch: {epoch}")
        self.epoch = epoch
        rng, size = random.Random(seed + epoch), self.settings["batch_size"]
        shuffled = [rng.sample(bucket, len(bucket)) for bucket in self.buckets.values()]
        self.batches = [bucket[i : i + size] for bucket in shuffled for i in range(0, len(bucket), size)]

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """Per folder, how many times its captions hold each tag."""
        tags = {
            Path(subset.image_dir).name: [tag.strip().lower() for text in subset.captions for tag in text.split(",")]
            for subset in self.subsets
        }
        return {name: Counter(tag for tag in found if tag) for name, found in tags.items()}

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of this dataset, as one item of `ss_datasets`."""
        buckets = {str(i): {"resolution": size, "count": len(b)} for i, (size, b) in enumerate(self.buckets.items())}
        return self.settings | {
            "is_dreambooth": True,
            "batch_size_per_device": self.settings["batch_size"],
            "num_train_images": self.num_train_images,
            "num_reg_images": self.num_reg_images,
            "tag_frequency": self.tag_frequency(),
            "bucket_info": {"buckets": buckets, "mean_img_ar_error": mean_ratio_error(self.pictures)},
        }


def read_datasets(args: argparse.Namespace) -> list[Dataset]:
    """Read the dataset config and everything it names. Raises ValueError where sd-scripts refuses it too."""
    logger.info(f"Loading dataset config from {args.dataset_config}")
    if not args.dataset_config or not Path(args.dataset_config).is_file():
        raise ValueError(f"file not found / ファイルが見つかりません: {args.dataset_config}")
    config = toml.load(args.dataset_config)
    datasets = [read_dataset(table, config.get("general", {}), args) for table in config.get("datasets", [])]
    logger.info("\n".join(describe(dataset, number) for number, dataset in enumerate(datasets)))
    for number, dataset in enumerate(datasets):
        logger.info(f"[Prepare dataset {number}]")
        fill_buckets(dataset)
        dataset.shuffle(0, 0)
    return datasets


def read_dataset(table: dict[str, Any], general: dict[str, Any], args: argparse.Namespace) -> Dataset:
    logger.info("prepare images.")
    settings = resolve(DATASET_DEFAULTS, [table, general], args)
    sides = settings["resolution"]
    sides = sides.split(",") if isinstance(sides, str) else sides if isinstance(sides, list) else [sides]
    settings["resolution"] = (int(sides[0]), int(sides[-1]))
    dataset = Dataset(settings)
    subsets = [
        Subset(own["image_dir"], own.get("is_reg", False), resolve(SUBSET_DEFAULTS, [own, table, general], args))
        for own in table.get("subsets", [])
    ]
    register(dataset, subsets)
    return dataset


def resolve(defaults: dict[str, Any], tables: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Each setting from the nearest table that has it, then from the command line, then its default."""
    known = {*SUBSET_DEFAULTS, *DATASET_DEFAULTS, "image_dir", "is_reg", "subsets"}
    for name, value in ((name, value) for table in tables for name, value in table.items() if name not in known):
        if name not in NOT_HERE.split():
            raise ValueError(f"extra keys not allowed @ {name}")
        if value:
            raise ValueError(f"{name} = {value} is not in the miniature")
    options = {name: getattr(args, OPTION_NAMES.get(name, name), None) for name in defaults}
    sources = [*tables, options, defaults]
    return {name: next((s[name] for s in sources if s.get(name) is not None), None) for name in defaults}


def register(dataset: Dataset, subsets: list[Subset]) -> None:
    """Read each subset's pictures, and balance the regularisation images against the training ones."""
    train: list[Picture] = []
    reg: list[Picture] = []
    for subset in subsets:
        ignored = f"subset with image_dir='{subset.image_dir}'"
        if subset.settings["num_repeats"] < 1:
            logger.warning(f"ignore {ignored}: num_repeats is less than 1: {subset.settings['num_repeats']}")
        elif any(subset.image_dir == other.image_dir for other in dataset.subsets):
            logger.warning(f"ignore duplicated {ignored}: use the first one")
        elif not (pictures := read_subset(subset)):
            logger.warning(f"ignore {ignored}: no images found / 画像が見つからないためサブセットを無視します")
        else:
            dataset.subsets.append(subset)
            (reg if subset.is_reg else train).extend(pictures)
    dataset.num_train_images = sum(picture.repeats for picture in train)
    dataset.num_reg_images = sum(picture.repeats for picture in reg)
    logger.info(f"{dataset.num_train_images} train images with repeats.")
    logger.info(f"{dataset.num_reg_images} reg images with repeats.")
    if dataset.num_train_images < dataset.num_reg_images:
        logger.warning(
            "some of reg images are not used / 正則化画像の数が多いので、一部使用されない正則化画像があります"
        )
    if not reg:
        logger.warning("no regularization images / 正則化画像が見つかりませんでした")
    dataset.pictures = train + balance(reg, dataset.num_train_images)


def balance(reg: list[Picture], wanted: int) -> list[Picture]:
    """Those that are used: each with its own repeats until `wanted` is reached, then round and round, one more."""
    used: list[Picture] = []
    count = 0
    for picture in reg:
        if count >= wanted:
            return used
        used.append(picture)
        count += picture.repeats
    for number in range(wanted - count if used else 0):
        used[number % len(used)].repeats += 1
    return used


def read_subset(subset: Subset) -> list[Picture]:
    folder = Path(subset.image_dir)
    if not folder.is_dir():
        logger.warning(f"not directory: {folder}")
        return []
    paths = sorted(path for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES)
    logger.info(f"found directory {subset.image_dir} contains {len(paths)} image files")
    captions = [read_caption(path, subset.settings["caption_extension"]) for path in tqdm(paths, desc="read caption")]
    if None in captions:
        logger.warning(
            f"No caption file found for {captions.count(None)} images. Training will continue without captions for"
            " these images. If class token exists, it will be used."
        )
    fallback = subset.settings["class_tokens"] or ""
    subset.captions = [fallback if caption is None else caption for caption in captions]
    repeats = subset.settings["num_repeats"]
    return [Picture(path, caption, subset, repeats) for path, caption in zip(paths, subset.captions, strict=True)]


def read_caption(path: Path, extension: str) -> str | None:
    caption_path = path.with_suffix(extension if extension.startswith(".") else f".{extension}")
    if not caption_path.is_file():
        return None
    lines = caption_path.read_text(encoding="utf-8").splitlines()
    assert lines, f"caption file is empty / キャプションファイルが空です: {caption_path}"
    return lines[0].strip()


def fill_buckets(dataset: Dataset) -> None:
    logger.info("loading image sizes.")
    for picture in tqdm(dataset.pictures):
        picture.size = imagesize.get(picture.path)
        if picture.size[0] < 0:
            logger.warning(f"failed to get image size: {picture.path}")
            picture.size = (0, 0)
    logger.info("make buckets" if dataset.settings["enable_bucket"] else "prepare dataset")
    known = bucket_sizes(dataset.settings)
    for picture in dataset.pictures:
        choose_bucket(picture, known)
    for picture in sorted(dataset.pictures, key=lambda picture: picture.bucket):
        dataset.buckets.setdefault(picture.bucket, []).extend([picture] * picture.repeats)
    if dataset.settings["enable_bucket"]:
        logger.info("number of images (including repeats) / 各bucketの画像枚数（繰り返し回数を含む）")
        for number, (size, bucket) in enumerate(dataset.buckets.items()):
            logger.info(f"bucket {number}: resolution {size}, count: {len(bucket)}")
        logger.info(f"mean ar error (without repeats): {mean_ratio_error(dataset.pictures)}")


def bucket_sizes(settings: dict[str, Any]) -> list[Size]:
    """Every bucket that fits the area of the resolution; without buckets the resolution alone."""
    resolution, steps = settings["resolution"], settings["bucket_reso_steps"]
    if not settings["enable_bucket"]:
        return [resolution]
    assert steps % 64 == 0, f"bucket_reso_steps is {steps}. it must be divisible by 64."
    smallest = settings["min_bucket_reso"] // steps * steps
    largest = math.ceil(settings["max_bucket_reso"] / steps) * steps
    assert min(resolution) >= smallest, "min_bucket_reso must be equal or less than resolution"
    assert max(resolution) <= largest, "max_bucket_reso must be equal or greater than resolution"
    area = resolution[0] * resolution[1]
    square = int(math.sqrt(area) // steps) * steps
    sizes = {(square, square)}
    for width in range(smallest, largest + 1, steps):
        height = min(largest, area // width // steps * steps)
        if height >= smallest:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def choose_bucket(picture: Picture, known: list[Size]) -> None:
    """Its own size where that is a bucket, else the bucket nearest in aspect ratio, which the scaled picture covers."""
    ratio = picture.size[0] / picture.size[1]
    nearest = min(known, key=lambda size: abs(size[0] / size[1] - ratio))
    width, height = picture.bucket = picture.size if picture.size in known else nearest
    scale = height / picture.size[1] if ratio > width / height else width / picture.size[0]
    picture.resized = int(picture.size[0] * scale + 0.5), int(picture.size[1] * scale + 0.5)
    picture.ratio_error = abs(width / height - ratio)


def mean_ratio_error(pictures: list[Picture]) -> float:
    return float(np.mean([picture.ratio_error for picture in pictures])) if pictures else 0


def load_pixels(picture: Picture) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The picture scaled and cut to its bucket: colours by height by width, from -1 to 1."""
    try:
        with Image.open(picture.path) as image:
            scaled = image.convert("RGB").resize(picture.resized, Image.Resampling.LANCZOS)
    except OSError:
        logger.error(f"Error loading file: {picture.path}")
        raise
    left, top = ((picture.resized[i] - picture.bucket[i]) // 2 for i in (0, 1))
    cut = scaled.crop((left, top, left + picture.bucket[0], top + picture.bucket[1]))
    return np.asarray(cut, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1


def make_caption(picture: Picture, rng: random.Random) -> str:
    """The caption as it is read this time: its tags shuffled, if asked, behind those that are kept in place."""
    settings = picture.subset.settings
    parts = (settings["caption_prefix"], picture.caption, settings["caption_suffix"])
    caption = " ".join(part for part in parts if part)
    if not settings["shuffle_caption"]:
        return caption
    tags = [tag.strip() for tag in caption.strip().split(settings["caption_separator"])]
    kept, others = tags[: settings["keep_tokens"]], tags[settings["keep_tokens"] :]
    return ", ".join(kept + rng.sample(others, len(others)))


def describe(dataset: Dataset, number: int) -> str:
    lines = [f"[Dataset {number}]", *(f"  {name}: {value}" for name, value in dataset.settings.items())]
    for place, subset in enumerate(dataset.subsets):
        shown = {"image_count": len(subset.captions), **subset.settings, "is_reg": subset.is_reg}
        lines += ["", f"  [Subset {place} of Dataset {number}]", f'    image_dir: "{subset.image_dir}"']
        lines += [f"    {name}: {value}" for name, value in shown.items()]
    return "\n".join([*lines, ""])
