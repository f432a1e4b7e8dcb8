"""The images: what sd-scripts can't train, what it trains otherwise than it looks, and what it doesn't see at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from spyke_kohya.dataset.pictures import Picture, Pictures, is_white
from spyke_kohya.dataset.scan import Scan, ScannedDataset, ScannedImage, ScannedSubset, size_by_pillow
from spyke_kohya.engine.batching import BatchingError, Size
from spyke_kohya.findings import Finding, Severity, error, warning
from spyke_kohya.plan.epoch import bucket_selector
from spyke_kohya.presets.resolved import ResolvedDataset, ResolvedSubset

_ENLARGED_FROM = 1.1
_LOST_FROM = 0.25
_TRANSPARENT_FROM = 0.01
_DEEP_MODES = ("I", "F")


def check_images(found: Scan, options: Mapping[str, Any], *, is_complete: bool) -> list[Finding]:
    """Return findings from the headers and the folders. ``options`` are effective, or a dataset preset's without them.

    Without ``is_complete`` options it is a doubt, no error, that images without buckets can't be trained uncached.
    """
    cached = bool(options.get("cache_latents") or options.get("cache_latents_to_disk"))
    severity: Severity = "error" if is_complete else "warning"
    findings: list[Finding] = []
    for dataset in found.datasets:
        if not dataset.dataset.enable_bucket and not cached:
            findings += _wrong_sizes(dataset, severity)
        else:
            findings += _fits(dataset)
    for subset in _folders(found):
        findings += [*_unseen(subset), *_same_stem(subset)]
    return findings


def check_pictures(found: Scan, pictures: Pictures) -> list[Finding]:
    """Return findings from the decoded images. Those whose header is broken are the plan's to report."""
    return [
        finding
        for subset in _folders(found)
        for image in subset.images
        if image.size and image.path in pictures
        for finding in _picture_findings(image.path, pictures[image.path], subset.subset)
    ]


def _folders(found: Scan) -> Iterator[ScannedSubset]:
    """Each folder once, whatever the number of datasets that train on it."""
    subsets = [subset for dataset in found.datasets for subset in dataset.subsets]
    yield from {subset.folder: subset for subset in reversed(subsets)}.values()


def _wrong_sizes(dataset: ScannedDataset, severity: Severity) -> Iterator[Finding]:
    """Without buckets and cached latents sd-scripts asserts the very size (sd-scripts v0.10.1 train_util.py:1631)."""
    width, height = dataset.dataset.resolution
    for subset in dataset.subsets:
        if subset.subset.face_crop_aug_range is not None:
            continue
        for image in subset.images:
            size = _loaded_size(image) or (width, height)
            enough = size[0] >= width and size[1] >= height
            if size != (width, height) and not (subset.subset.random_crop and enough):
                message = f"it is {size[0]}x{size[1]}, not {width}x{height}: without buckets sd-scripts stops at it"
                remedy = "set enable_bucket = true, or cache_latents = true to have it cropped"
                yield Finding("images.needs-bucket", severity, image.path, message, remedy)


def _loaded_size(image: ScannedImage) -> Size | None:
    if image.size and image.path.lower().endswith(".webp"):
        try:
            return size_by_pillow(image.path)
        except (OSError, ValueError, SyntaxError):
            return None
    return image.size


def _fits(dataset: ScannedDataset) -> Iterator[Finding]:
    """How each image comes to its bucket (sd-scripts v0.10.1 train_util.py:286-350)."""
    buckets: dict[Size, Size | None] = {}
    for subset in dataset.subsets:
        for image in subset.images:
            if image.size and image.size not in buckets:
                buckets[image.size] = _bucket_of(image.size, dataset.dataset)
            if image.size and (bucket := buckets[image.size]):
                yield from _fit(image, image.size, bucket, dataset.dataset)


def _bucket_of(size: Size, dataset: ResolvedDataset) -> Size | None:
    """Return the bucket of a size; None where there is none, which the plan says."""
    try:
        bucket = bucket_selector(dataset)(size)
    except BatchingError:
        return None
    return bucket if all(bucket) else None


def _fit(image: ScannedImage, size: Size, bucket: Size, dataset: ResolvedDataset) -> Iterator[Finding]:
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    sizes = f"{size[0]}x{size[1]} in a bucket of {bucket[0]}x{bucket[1]}"
    if scale > _ENLARGED_FROM:
        message = f"it is smaller than its bucket and enlarged {scale:.1f} x: {sizes}"
        remedy = "use a larger picture, a lower resolution, or bucket_no_upscale = true"
        yield warning("images.upscaled", image.path, message, remedy)
    lost = 1 - bucket[0] * bucket[1] / (size[0] * size[1] * scale**2)
    if lost > _LOST_FROM:
        shape = "its shape has no bucket" if dataset.enable_bucket else "there are no buckets"
        message = f"{shape}: the crop loses {lost:.0%} of it ({sizes})"
        yield warning("images.cropped", image.path, message, "crop it yourself, around what matters")


def _picture_findings(path: str, picture: Picture, subset: ResolvedSubset) -> Iterator[Finding]:
    if picture.problem:
        message = (
            f"it can't be decoded: {picture.problem}; sd-scripts stops when it comes to it, in the middle of a run"
        )
        yield error("images.broken", path, message, "replace it, or remove it")
        return
    if picture.orientation not in (0, 1):
        message = f"EXIF turns it (orientation {picture.orientation}), which sd-scripts ignores: it trains as stored"
        yield warning("images.exif-rotated", path, message, "save it upright, without the orientation")
    if picture.transparent >= _TRANSPARENT_FROM and not subset.alpha_mask and not is_white(picture.beneath):
        message = f"{picture.transparent:.0%} of it is transparent and trains as {_colour(picture.beneath)}"
        yield warning("images.transparent", path, message, "put it on a background, or set alpha_mask = true")
    if picture.mode.startswith(_DEEP_MODES):
        message = f"it has more than 8 bits a pixel (mode {picture.mode}): every level above 255 trains as white"
        yield error("images.sixteen-bit", path, message, "save it with 8 bits")
    if picture.mode in ("CMYK", "LAB", "YCCK"):
        message = (
            f"its colours are {picture.mode}, converted to RGB without its colour profile: they will look different"
        )
        yield warning("images.colours", path, message, "save it as sRGB")
    if picture.animated:
        yield warning(
            "images.animated", path, "it is animated, and trains as its first frame", "save the frame you mean"
        )


def _colour(colour: tuple[int, int, int]) -> str:
    return "black" if max(colour) < 16 else "red {}, green {}, blue {}".format(*colour)


def _unseen(subset: ScannedSubset) -> Iterator[Finding]:
    """sd-scripts lists its own endings, lower or upper case, in this folder (sd-scripts v0.10.1 train_util.py:2847)."""
    for name in subset.unseen:
        message = "sd-scripts does not take it: it reads .png .jpg .jpeg .webp .bmp, in lower or upper case"
        yield warning("images.not-taken", f"{subset.folder}/{name}", message, "convert it, or name it so; or remove it")
    if subset.images and subset.deeper:
        message = f"there are images in folders below it, which sd-scripts does not see: {', '.join(subset.deeper[:5])}"
        remedy = "move them up, or give them a [[datasets.subsets]] of their own"
        yield warning("dataset.deeper-images", subset.subset.where, message, remedy)


def _same_stem(subset: ScannedSubset) -> Iterator[Finding]:
    """Both the caption's and the cached latents' names come from the stem (sd-scripts v0.10.1 strategy_sd.py:152)."""
    stems: dict[str, list[str]] = defaultdict(list)
    for image in subset.images:
        name = image.path.rpartition("/")[2]
        stems[name.rpartition(".")[0]].append(name)
    for names in stems.values():
        if len(names) > 1:
            message = f"{' and '.join(names)} differ only in their endings: they share a caption and cached latents"
            yield warning("images.same-stem", f"{subset.folder}/{names[0]}", message, "rename one of them")
