"""Presets for a folder of images: what the pictures and captions decide, and the rest as in the run of record."""

from __future__ import annotations

import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path, PurePath

from spyke_kohya.dataset.holdout import default_target
from spyke_kohya.dataset.scan import captions_in, scan, scan_folder
from spyke_kohya.engine.targets import Target
from spyke_kohya.errors import DatasetError, UsageError
from spyke_kohya.plan.plan import Plan, make_plan
from spyke_kohya.presets.dataset import parse_dataset_config
from spyke_kohya.presets.resolved import resolve
from spyke_kohya.start.writing import toml_lines, toml_value, write_new

_PLAIN_NAME = re.compile(r"[\w-]+")
_EPOCHS = 4
# Each picture 40 times, as 10 repeats x 4 epochs in the run of record; for few or many pictures, within these.
_TIMES_SEEN, _FEWEST_SEEN, _MOST_SEEN = 40, 400, 1000
_CHECKPOINTS = 10
_FULL_SIDE, _STEP = 512, 64


@dataclass(frozen=True)
class NewPreset:
    """What a person says of a new preset; paths are as they are to stand in it."""

    name: str
    images: str
    base: str
    target: Target
    reg: str | None = None
    trigger: str | None = None


@dataclass(frozen=True)
class FolderFacts:
    """What the folders say: how many pictures, the trigger, whether there are captions and tags, the resolution."""

    count: int
    trigger: str
    captioned: bool
    tagged: bool
    reg_captioned: bool
    side: int


def write_presets(
    name: str,
    images: str,
    *,
    base: str | None,
    target: Target,
    reg: str | None,
    trigger: str | None,
    root: Path,
) -> list[Path]:
    """Write a dataset and a training preset for a folder of images; return both files.

    Without a ``base`` it is that of another preset. Raises UsageError, DatasetError and PresetError.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't name a preset", remedy="use letters, digits, - and _")
    base = base or base_of_others(root)
    if base is None:
        raise UsageError("no base model is named", remedy="say --base FILE")
    files = new_presets(NewPreset(name, images, base, target, reg, trigger), root)
    write_new(files)
    return list(files)


def new_presets(asked: NewPreset, root: Path) -> dict[Path, str]:
    """Return the text of a dataset and a training preset, by their paths under ``root``; nothing is written.

    Steps: each picture is seen 40 times, as in the run of record, but all of them together 400 to 1000 times; a step
    is one picture, and regularisation pictures double them. Raises DatasetError for a folder without pictures.
    """
    seen = look(asked, root)
    times = min(max(_TIMES_SEEN * seen.count, _FEWEST_SEEN), max(_MOST_SEEN, seen.count)) / seen.count
    epochs = min(_EPOCHS, max(1, round(times)))
    repeats = max(1, round(times / epochs))
    dataset = _dataset_text(asked, seen, repeats)
    dataset_path = Path("presets") / f"{asked.name}_dataset.toml"
    plan = _planned(dataset, epochs, root)
    return {
        root / dataset_path: dataset,
        root / "presets" / f"{asked.name}.toml": _training_text(
            asked, seen, plan, dataset_path, _held_out(asked, root)
        ),
    }


def look(asked: NewPreset, root: Path) -> FolderFacts:
    """Look at the pictures and captions. Raises DatasetError where there is no picture that can be read."""
    images, *reg = (scan_folder(path, ".txt", root) for path in (asked.images, *([asked.reg] if asked.reg else ())))
    for folder in (images, *reg):
        if folder.problem or not folder.images:
            below = f": name {folder.folder}/{folder.deeper[0]}" if folder.deeper else ""
            message = folder.problem or "there is no image in it"
            raise DatasetError(message, where=folder.folder, remedy=f"name the folder that holds the images{below}")
    sizes = [image.size for image in images.images if image.size]
    if not sizes:
        raise DatasetError("none of its images can be read", where=asked.images, remedy="look at what is in it")
    area = statistics.median(width * height for width, height in sizes)
    captions = [caption.text for caption in captions_in(images) if caption.file and not caption.problem]
    firsts = {text.split(",")[0].strip() for text in captions}
    return FolderFacts(
        count=len(images.images),
        trigger=asked.trigger or (firsts.pop() if len(firsts) == 1 else asked.name),
        captioned=bool(captions),
        tagged=any("," in text for text in captions),
        reg_captioned=any(caption.file for folder in reg for caption in captions_in(folder)),
        side=int(min(_FULL_SIDE, max(_STEP, area**0.5 // _STEP * _STEP))),
    )


def _dataset_text(asked: NewPreset, seen: FolderFacts, repeats: int) -> str:
    general: dict[str, object] = {"enable_bucket": True, "caption_extension": ".txt"}
    comments = {
        "enable_bucket": "pictures keep their aspect ratio",
        "caption_extension": 'sd-scripts\' default is ".caption"',
        "shuffle_caption": "tags in a new order every time, so that none is tied to its place",
        "keep_tokens": "... but the first one, the trigger, stays first",
        "num_repeats": f"{seen.count} pictures x {repeats} an epoch",
        "class_tokens": "there are no captions: this stands for all of them",
        "resolution": "what Stable Diffusion 1.5 was trained on"
        if seen.side == _FULL_SIDE
        else "no larger than they are",
        "min_bucket_reso": "at most the resolution, or sd-scripts stops",
    }
    reg_comments = {
        "is_reg": "what the model should still know",
        "num_repeats": "repeated until they are as many as the training pictures: they double an epoch",
    }
    if seen.tagged:
        general |= {"shuffle_caption": True, "keep_tokens": 1}
    size: dict[str, object] = {"resolution": seen.side, "batch_size": 1}
    if seen.side < 256:
        size["min_bucket_reso"] = max(_STEP, seen.side // 2 // _STEP * _STEP)
    train: dict[str, object] = {"image_dir": asked.images, "num_repeats": repeats}
    if not seen.captioned:
        train["class_tokens"] = seen.trigger
    tables = [("[general]", general, ""), ("[[datasets]]", size, ""), ("  [[datasets.subsets]]", train, "  ")]
    if asked.reg:
        reg: dict[str, object] = {"is_reg": True, "image_dir": asked.reg, "num_repeats": 1}
        if not seen.reg_captioned:
            reg["class_tokens"] = os.path.basename(asked.reg.rstrip("/")).partition("_")[2] or "person"  # noqa: PTH119
        tables.append(("  [[datasets.subsets]]", reg, "  "))
    blocks = [
        "\n".join([head, *toml_lines(values, reg_comments if "is_reg" in values else comments, indent)])
        for head, values, indent in tables
    ]
    about = f"# The pictures of {toml_value(asked.name)}: sd-scripts' own dataset config."
    first = f"#:schema ../schemas/dataset.schema.json\n{about}"
    return "\n\n".join([first, *blocks]) + "\n"


def _planned(dataset: str, epochs: int, root: Path) -> Plan:
    import toml

    config, _ = parse_dataset_config(toml.loads(dataset), "")
    assert config is not None
    datasets, _ = resolve(config, {})
    assert datasets is not None
    plan, findings = make_plan(scan(datasets, root), {"max_train_epochs": epochs, "output_name": "x"})
    if plan is None:
        raise DatasetError(findings[0].message, where=findings[0].where, remedy=findings[0].remedy)
    return plan


def _held_out(asked: NewPreset, root: Path) -> str | None:
    """Return the folder that `spyke-kohya holdout` makes for these images, or None where it is not there."""
    folder = PurePath(asked.images)
    beside = str(folder.with_name(default_target(Path(folder.name)).name)) if folder.name else ""
    return beside if beside and (root / Path(beside).expanduser()).is_dir() else None


def _training_text(asked: NewPreset, seen: FolderFacts, plan: Plan, dataset: Path, held_out: str | None) -> str:
    every = max(1, round(plan.total_steps / _CHECKPOINTS))
    options: dict[str, object] = {
        "pretrained_model_name_or_path": asked.base,
        "output_dir": f"output/loras/{asked.name}",
        "output_name": asked.name,
        "save_model_as": "safetensors",
        "save_every_n_steps": every,
        "max_train_epochs": plan.epochs,
        "learning_rate": 1e-4,
        "unet_lr": 1e-4,
        "text_encoder_lr": 5e-5,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0,
        "network_module": "networks.lora",
        "network_dim": 32,
        "network_alpha": 16,
        "mixed_precision": "no",
        "save_precision": "float",
        "optimizer_type": "AdamW",
        "sdpa": True,
        "cache_latents": True,
        "max_data_loader_n_workers": 0,
        "gradient_checkpointing": True,
        "clip_skip": 2,
        "seed": 42,
    }
    comments = {
        "save_every_n_steps": "ten checkpoints to choose from, 72 MB each",
        "max_train_epochs": f"x {plan.batches_per_epoch} batches",
        "text_encoder_lr": "half of the U-Net's: the text encoder overfits first",
        "network_alpha": "half of the dim: the LoRA is scaled by 0.5",
        "sdpa": "the default attention can turn to NaN on a Mac",
        "cache_latents": "each picture goes through the VAE once, not at every step",
        "gradient_checkpointing": "4 GB less memory at 512 px; false is faster where there is room",
        "clip_skip": "as anime models are trained; remove it for a photographic one",
    }
    lines = [
        "#:schema ../schemas/training.schema.json",
        f"# {seen.count} pictures, each seen {plan.epochs} x {plan.datasets[0].subsets[0].num_repeats} times: "
        f"{plan.total_steps} steps.",
        f"dataset = {toml_value(str(dataset))}",
        "",
        "[launch]",
        f"target = {toml_value(asked.target)}",
        "",
        "[expect]",
        *toml_lines({"total_steps": plan.total_steps}, {"total_steps": "a plan that differs stops before the launch"}),
        *toml_lines({"trigger": seen.trigger}, {"trigger": "every training caption starts with it"}),
        "",
        *(
            ["[evaluate]", *toml_lines({"heldout_dir": held_out}, {"heldout_dir": "never trained on"}), ""]
            if held_out
            else []
        ),
        "[train_network]",
        *toml_lines(options, comments),
    ]
    return "\n".join(lines) + "\n"


def base_of_others(root: Path) -> str | None:
    """Return the base model that the first of the other training presets names."""
    import toml

    for file in sorted((root / "presets").glob("*.toml")):
        try:
            table = toml.loads(file.read_text(encoding="utf-8")).get("train_network", {})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        base = table.get("pretrained_model_name_or_path") if isinstance(table, dict) else None
        if isinstance(base, str) and base.startswith(("~", "/")):
            return base
    return None
