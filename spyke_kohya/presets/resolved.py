"""A dataset preset with every value settled as sd-scripts settles it, and the values with which it fails later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel

from spyke_kohya.engine.batching import BatchingError, Size, adjust_bucket_limits, bucket_resolutions
from spyke_kohya.engine.options import is_finite, parser_defaults
from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.presets.dataset import DatasetConfig, DreamBoothDataset, FineTuningDataset

# train_network.py's name of an option, and the dataset config's (sd-scripts v0.10.1 config_util.py:261)
_CONFIG_NAMES = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"}
# sd-scripts v0.10.1 utils.py:334
_INTERPOLATIONS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")

_LARGEST_SIDE = 65_536
"""In pixels. The number of buckets grows with it; no image that is trained on is so large."""

_Values = dict[str, Any]


@dataclass(frozen=True)
class ResolvedSubset:
    """A folder of images as sd-scripts takes it. ``image_dir`` is as written, ``where`` its place in the preset."""

    where: str
    image_dir: str
    num_repeats_stated: bool = False
    is_reg: bool = False
    num_repeats: int = 1
    class_tokens: str | None = None
    caption_extension: str = ".caption"
    cache_info: bool = False
    alpha_mask: bool = False
    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str | None = None
    enable_wildcard: bool = False
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_tag_dropout_rate: float = 0.0
    token_warmup_step: float = 0
    color_aug: bool = False
    random_crop: bool = False
    face_crop_aug_range: Sequence[float] | None = None
    resize_interpolation: str | None = None


@dataclass(frozen=True)
class ResolvedDataset:
    """Folders trained at one ``resolution`` (width, height in pixels) and ``batch_size``.

    The bucket sides are as written, before sd-scripts rounds them; without ``enable_bucket`` they mean nothing.
    """

    where: str
    resolution: Size
    subsets: tuple[ResolvedSubset, ...]
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    validation_split: float = 0.0
    validation_seed: int | None = None
    resize_interpolation: str | None = None


def resolve(
    config: DatasetConfig, options: Mapping[str, object], where: str = ""
) -> tuple[tuple[ResolvedDataset, ...] | None, list[Finding]]:
    """Settle each value: from the subset, else its dataset, else [general], else train_network.py's option.

    ``options`` are those that the training preset sets; the parser's defaults stand in for the rest, so that its false
    switches end the chain too (sd-scripts v0.10.1 config_util.py:454). The datasets are None where sd-scripts would
    stop before it looked at an image; ``where`` names the preset.
    """
    given, findings = _given_options(options)
    place = f"{where}: " if where else ""
    if not config.datasets:
        findings.append(error("dataset.none", f"{place}datasets", "there is no dataset", "add a [[datasets]]"))
    datasets = []
    for index, dataset in enumerate(config.datasets):
        resolved, faults = _resolve_dataset(dataset, config, given, f"{place}datasets[{index}]")
        findings += faults
        if resolved:
            findings += _doubts(resolved, given)
            datasets.append(resolved)
    whole = datasets and len(datasets) == len(config.datasets)
    return (tuple(datasets) if whole else None), findings


def _given_options(options: Mapping[str, object]) -> tuple[_Values, list[Finding]]:
    """Return the options that have a value, by the dataset config's names (sd-scripts v0.10.1 train_util.py:5402).

    ``dataset_repeats`` is there only where somebody set it: the parser's own 1 states nothing.
    """
    merged: dict[str, Any] = parser_defaults() | dict(options)
    if merged.get("caption_extention") is not None:
        merged["caption_extension"] = merged["caption_extention"]
    findings = []
    for name, kind, code, like in (
        ("resolution", int, "dataset.resolution", '"512" or "512,768"'),
        ("face_crop_aug_range", float, "dataset.face-crop-aug-range", '"2.0,4.0"'),
    ):
        try:
            merged[name] = _numbers_of(merged.get(name), kind)
        except ValueError:
            message = f"{merged[name]!r} can't be read as numbers for {name}"
            findings.append(error(code, f"[train_network] {name}", message, f"write it like {like}"))
            merged[name] = None
    if merged["dataset_repeats"] == 1:
        del merged["dataset_repeats"]
    return {_CONFIG_NAMES.get(name, name): value for name, value in merged.items() if value is not None}, findings


def _numbers_of(value: object, kind: type) -> list[Any] | None:
    if value is None:
        return None
    numbers = [kind(part) for part in str(value).split(",")]
    if len(numbers) == 1 and kind is int:
        numbers *= 2
    if len(numbers) != 2 or not is_finite(numbers):
        raise ValueError
    return numbers


def _resolve_dataset(
    dataset: DreamBoothDataset | FineTuningDataset, config: DatasetConfig, given: _Values, where: str
) -> tuple[ResolvedDataset | None, list[Finding]]:
    if isinstance(dataset, FineTuningDataset) and dataset.subsets:
        message = "subsets with a metadata_file (sd-scripts' fine-tuning datasets) can't be planned here"
        return None, [
            error("dataset.fine-tuning", where, message, "use image_dir with a caption file beside each image")
        ]
    values = given | _set_values(config.general) | _set_values(dataset)
    if faults := list(_fatal_faults(values, where)):
        return None, faults
    values |= {
        "where": where,
        "resolution": _pair(values["resolution"]),
        "subsets": tuple(
            _resolve_subset(values | _set_values(subset), f"{where}.subsets[{index}]")
            for index, subset in enumerate(dataset.subsets)
        ),
    }
    return ResolvedDataset(**_fields_of(ResolvedDataset, values)), []


def _resolve_subset(values: _Values, where: str) -> ResolvedSubset:
    extension = values["caption_extension"]
    if extension and not extension.startswith("."):  # sd-scripts v0.10.1 train_util.py:536
        extension = f".{extension}"
    own = {"where": where, "caption_extension": extension, "num_repeats_stated": "num_repeats" in values}
    return ResolvedSubset(**_fields_of(ResolvedSubset, values | own))


def _set_values(table: BaseModel) -> _Values:
    return {name: value for name in table.model_fields_set if (value := getattr(table, name)) is not None}


def _fields_of(kind: type[ResolvedDataset] | type[ResolvedSubset], values: _Values) -> _Values:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _pair(resolution: Any) -> Size:
    width, height = resolution if isinstance(resolution, list | tuple) else (resolution, resolution)
    return int(width), int(height)


def _fatal_faults(read: _Values, where: str) -> Iterator[Finding]:
    """Find what makes sd-scripts stop with an exception before it has read an image."""
    if "resolution" not in read:  # train_util.py:1921
        remedy = "add `resolution = 512` to [general] or [[datasets]]"
        yield error("dataset.resolution", where, "there is no resolution", remedy)
    elif min(_pair(read["resolution"])) < 1:
        message = f"the resolution is {read['resolution']}: it must be above 0"
        yield error("dataset.resolution", f"{where}.resolution", message, "write for example `resolution = 512`")
    elif read["enable_bucket"]:
        yield from _bucket_faults(read, _pair(read["resolution"]), where)
    if read["batch_size"] < 1:  # train_util.py:1079 divides by it
        message = f"batch_size is {read['batch_size']}: a batch holds at least one image"
        yield error("dataset.batch-size", f"{where}.batch_size", message, "write `batch_size = 1`")
    interpolation = read.get("resize_interpolation")
    if interpolation is not None and interpolation not in _INTERPOLATIONS:  # train_util.py:727
        message = f"resize_interpolation is {interpolation!r}, which sd-scripts doesn't know"
        remedy = f"choose one of {', '.join(_INTERPOLATIONS)}"
        yield error("dataset.resize-interpolation", f"{where}.resize_interpolation", message, remedy)


def _bucket_faults(read: _Values, resolution: Size, where: str) -> Iterator[Finding]:
    steps = read["bucket_reso_steps"]
    if steps < 1:
        message = f"bucket_reso_steps is {steps}: it must be 64 or a multiple of it"
        yield error("dataset.bucket-steps", f"{where}.bucket_reso_steps", message, "write `bucket_reso_steps = 64`")
        return
    if max(*resolution, read["max_bucket_reso"]) > _LARGEST_SIDE:
        message = f"max_bucket_reso is {read['max_bucket_reso']}: sd-scripts would list more buckets than memory holds"
        remedy = f"choose sides of at most {_LARGEST_SIDE} pixels"
        yield error("dataset.bucket-limits", f"{where}.max_bucket_reso", message, remedy)
        return
    try:
        limits = adjust_bucket_limits(resolution, read["min_bucket_reso"], read["max_bucket_reso"], steps)
        if not read["bucket_no_upscale"]:
            bucket_resolutions(resolution, *limits, steps)
    except BatchingError as fault:
        remedy = "choose min_bucket_reso <= resolution <= max_bucket_reso, and min_bucket_reso >= bucket_reso_steps"
        yield error("dataset.bucket-limits", where, str(fault), remedy)


def _doubts(dataset: ResolvedDataset, given: _Values) -> Iterator[Finding]:
    """Find what stops the launch later, or is not what was meant, although sd-scripts reads its datasets."""
    if not dataset.subsets:
        message = "the dataset has no subsets, so no images"
        yield error("dataset.no-subsets", dataset.where, message, "add a [[datasets.subsets]]")
    if dataset.enable_bucket and dataset.bucket_reso_steps % 64:  # train_network.py:175, train_util.py:1093
        place = f"{dataset.where}.bucket_reso_steps"
        message = f"bucket_reso_steps is {dataset.bucket_reso_steps}: train_network.py accepts only multiples of 64"
        yield error("dataset.bucket-steps", place, message, "write `bucket_reso_steps = 64`")
    if not 0.0 <= dataset.validation_split <= 1.0:  # config_util.py:497
        lost = ", and drops images from training" if dataset.validation_split > 1 else ""
        message = f"validation_split is {dataset.validation_split}: sd-scripts then validates nothing{lost}"
        place = f"{dataset.where}.validation_split"
        yield error("dataset.validation-split", place, message, "write a share from 0.0 to 1.0")
    for subset in dataset.subsets:
        yield from _subset_doubts(subset, given)


def _subset_doubts(subset: ResolvedSubset, given: _Values) -> Iterator[Finding]:
    reads_tags = subset.shuffle_caption or subset.token_warmup_step > 0 or subset.caption_tag_dropout_rate > 0
    if reads_tags and not subset.caption_separator:  # train_util.py:884
        message = "caption_separator is empty: sd-scripts fails at the first caption it splits into tags"
        place = f"{subset.where}.caption_separator"
        yield error("dataset.caption-separator", place, message, 'write `caption_separator = ","`')
    caches = given.get("cache_latents") or given.get("cache_latents_to_disk")
    if caches and (subset.color_aug or subset.random_crop):  # train_network.py:582
        message = "color_aug and random_crop can't be used with cache_latents"
        remedy = "set color_aug and random_crop to false, or don't cache latents"
        yield error("dataset.cache-latents", subset.where, message, remedy)
    if subset.resize_interpolation is not None and subset.resize_interpolation not in _INTERPOLATIONS:
        message = f"resize_interpolation is {subset.resize_interpolation!r}: sd-scripts resizes as if it were not set"
        place = f"{subset.where}.resize_interpolation"
        yield warning("dataset.resize-interpolation", place, message, f"choose one of {', '.join(_INTERPOLATIONS)}")
