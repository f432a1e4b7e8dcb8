"""How many images of a scan sd-scripts trains in an epoch, at which sizes and in how many batches."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from spyke_kohya.dataset.scan import Scan, ScannedDataset, ScannedImage, ScannedSubset
from spyke_kohya.engine.batching import (
    BatchingError,
    Size,
    adjust_bucket_limits,
    balance_regularisation,
    batches_of,
    bucket_resolutions,
    nearest_bucket,
    shrunk_bucket,
    shuffled,
    training_part,
    validation_part,
)
from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.presets.resolved import ResolvedDataset

Bucket: TypeAlias = tuple[Size, int]
"""A size in pixels, and how many images, repeats included, an epoch trains at it."""


@dataclass(frozen=True)
class SubsetPlan:
    """A folder that is trained on. ``used`` counts its images that are, ``per_epoch`` all their repeats in an epoch."""

    image_dir: str
    is_reg: bool
    images: int
    num_repeats: int
    used: int
    per_epoch: int


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset: its folders, what an epoch trains at which size, and what is validated."""

    batch_size: int
    subsets: tuple[SubsetPlan, ...]
    buckets: tuple[Bucket, ...]
    batches: int
    validation_images: int
    validation_batches: int

    @property
    def num_train_images(self) -> int:
        """Training images x repeats."""
        return sum(subset.images * subset.num_repeats for subset in self.subsets if not subset.is_reg)

    @property
    def num_reg_images(self) -> int:
        """Regularisation images x repeats, before they are repeated to match."""
        return sum(subset.images * subset.num_repeats for subset in self.subsets if subset.is_reg)

    @property
    def images_per_epoch(self) -> int:
        """Every image, as often as an epoch sees it."""
        return sum(count for _, count in self.buckets)


def count_datasets(scan: Scan, seed: int | None) -> tuple[tuple[DatasetPlan, ...] | None, list[Finding]]:
    """Return what sd-scripts takes from the scanned folders; None where it would stop with an exception.

    ``seed`` is train_network.py's: sd-scripts draws from it which images validate, where no validation_seed is set.
    """
    counting = _Counting(random.Random(seed or 0), seed is not None)
    training = [counting.registered(scanned, training=True) for scanned in scan.datasets]
    validating = [counting.registered(scanned, training=False) for scanned in scan.datasets]
    plans = tuple(map(counting.plan_of, scan.datasets, training, validating))
    return (None if counting.stopped else plans), list(counting.findings)


@dataclass(frozen=True)
class _Registered:
    """A subset that takes part, with the images that the split left it."""

    scanned: ScannedSubset
    images: Sequence[ScannedImage]
    num_repeats: int

    @property
    def is_reg(self) -> bool:
        return self.scanned.subset.is_reg


@dataclass
class _Counting:
    """Goes through the datasets in sd-scripts' order, for chance is drawn in that order.

    ``chance`` is Python's generator as sd-scripts has it when it begins with the datasets: seeded with --seed, and not
    drawn from for anything else (sd-scripts v0.10.1 train_network.py:505).
    """

    chance: random.Random
    is_seeded: bool
    findings: dict[Finding, None] = field(default_factory=dict)
    stopped: bool = False

    def stop(self, finding: Finding) -> None:
        """Note what sd-scripts would stop at, and go on, to find all of it."""
        self.stopped = True
        self.note(finding)

    def note(self, finding: Finding) -> None:
        self.findings[finding] = None

    def registered(self, scanned: ScannedDataset, *, training: bool) -> list[_Registered]:
        """Return the subsets that are not dropped.

        Without a split, none validate (sd-scripts v0.10.1 train_util.py:2116).
        """
        if not training and not 0.0 < scanned.dataset.validation_split <= 1.0:
            return []
        kept: dict[str, _Registered] = {}
        for found in scanned.subsets:
            repeats = found.subset.num_repeats if training else 1
            if repeats < 1:
                self.drop(found, f"num_repeats is {repeats}")
            elif found.subset.image_dir in kept:
                self.drop(found, "its image_dir is that of an earlier subset")
            else:
                images = self.images_of(found, scanned.dataset, training)
                if images:
                    kept[found.subset.image_dir] = _Registered(found, images, repeats)
        return list(kept.values())

    def drop(self, found: ScannedSubset, reason: str) -> None:
        message = f"sd-scripts drops this subset: {reason}"
        self.note(warning("dataset.subset-dropped", found.subset.where, message, "correct it, or remove the subset"))

    def empty(self, found: ScannedSubset) -> None:
        if not found.deeper:
            self.drop(found, "there is no image in its folder")
            return
        message = f"there is no image in {found.folder}, only in folders below it: sd-scripts does not look there"
        remedy = f"name the folder of the images: {found.subset.image_dir.rstrip('/')}/{found.deeper[0]}"
        self.note(error("dataset.parent-folder", f"{found.subset.where}.image_dir", message, remedy))

    def images_of(self, found: ScannedSubset, dataset: ResolvedDataset, training: bool) -> Sequence[ScannedImage]:
        """Return what a subset gives to training or to validation (sd-scripts v0.10.1 train_util.py:2038)."""
        if found.problem:
            message = f"{found.folder}: {found.problem}"
            self.note(error("dataset.missing-folder", found.subset.where, message, "correct image_dir, or the folder"))
        elif found.subset.cache_info and found.has_info_cache:
            message = "sd-scripts will take images, sizes and captions from metadata_cache.json, not from the folder"
            remedy = "delete that file, or set cache_info to false"
            self.note(warning("dataset.info-cache", found.subset.where, message, remedy))
        if dataset.validation_split > 0 and not found.problem and not found.subset.is_reg:
            return self.part_of(found, dataset, training)
        if not found.images and not found.problem:
            self.empty(found)
        return () if found.subset.is_reg and not training else found.images

    def part_of(self, found: ScannedSubset, dataset: ResolvedDataset, training: bool) -> Sequence[ScannedImage]:
        """One part of the shuffled images (sd-scripts v0.10.1 train_util.py:142)."""
        if not found.images:
            message = "there is no image in its folder: with a validation_split, sd-scripts fails at that"
            remedy = "put images into it, or remove the subset"
            self.stop(error("dataset.empty-subset-with-split", found.subset.where, message, remedy))
            return ()
        seed, split = dataset.validation_seed, dataset.validation_split
        order = shuffled(len(found.images), self.chance if seed is None else random.Random(seed))
        part = training_part(order, split) if training else validation_part(order, split)
        if training:
            self.doubt_split(dataset, len(part) + len(validation_part(order, split)) - len(order))
            if not part:
                self.drop(found, "validation_split leaves no image for training")
        return [found.images[index] for index in part]

    def doubt_split(self, dataset: ResolvedDataset, overlap: int) -> None:
        place = f"{dataset.where}.validation_split"
        if dataset.validation_seed is None:
            message = "without a validation_seed sd-scripts draws twice, so it validates on images that it trains on"
            if not self.is_seeded:
                message += "; without a seed, which ones is chance, and with buckets so is the number of batches"
            self.note(warning("dataset.validation-unseeded", place, message, "set validation_seed"))
        elif overlap > 0 and dataset.validation_split <= 1:
            message = "sd-scripts rounds both parts on their own: an image is trained on and validated on"
            remedy = "choose a split that gives a whole number of images"
            self.note(warning("dataset.validation-overlap", place, message, remedy))

    def plan_of(
        self, scanned: ScannedDataset, training: Sequence[_Registered], validating: Sequence[_Registered]
    ) -> DatasetPlan:
        dataset = scanned.dataset
        subsets, images = self.epoch_of(dataset, training)
        buckets = self.buckets_of(dataset, images)
        _, validated = self.epoch_of(dataset, validating)
        validation_buckets = self.buckets_of(dataset, validated)
        return DatasetPlan(
            batch_size=dataset.batch_size,
            subsets=tuple(subsets),
            buckets=tuple(sorted(buckets.items())),
            batches=batches_of(buckets.values(), dataset.batch_size),
            validation_images=validation_buckets.total(),
            validation_batches=batches_of(validation_buckets.values(), dataset.batch_size),
        )

    def epoch_of(
        self, dataset: ResolvedDataset, registered: Iterable[_Registered]
    ) -> tuple[list[SubsetPlan], list[tuple[ScannedImage, int]]]:
        """Return the subsets' part in an epoch, and every image with how often the epoch sees it."""
        folders = sorted(registered, key=lambda folder: folder.is_reg)
        train = sum(folder.num_repeats * len(folder.images) for folder in folders if not folder.is_reg)
        balanced = iter(
            balance_regularisation(
                train, [folder.num_repeats for folder in folders if folder.is_reg for _ in folder.images]
            )
        )
        plans, epoch = [], []
        for folder in folders:
            used = [next(balanced) if folder.is_reg else folder.num_repeats for _ in folder.images]
            subset = folder.scanned.subset
            times = sum(map(bool, used))
            plans.append(SubsetPlan(subset.image_dir, subset.is_reg, len(used), folder.num_repeats, times, sum(used)))
            epoch += [(image, count) for image, count in zip(folder.images, used, strict=True) if count]
            if folder.is_reg:
                self.doubt_regularisation(folder, used)
        if sum(plan.per_epoch for plan in plans if plan.is_reg) > train > 0:
            self.doubt_overshoot(dataset, sum(plan.per_epoch for plan in plans if plan.is_reg), train)
        return plans, self.by_path(dataset, epoch)

    def doubt_regularisation(self, folder: _Registered, used: Sequence[int]) -> None:
        """Images left out, or far from equally used (sd-scripts v0.10.1 train_util.py:2166)."""
        place = folder.scanned.subset.where
        seen = [times for times in used if times]
        if len(seen) < len(used):
            message = f"{len(used) - len(seen)} of its {len(used)} images are never used: there are enough without them"
            self.note(warning("dataset.reg-unused", place, message, "use fewer, or lower num_repeats here"))
        elif max(seen) >= 2 * min(seen):
            often = sum(times > min(seen) for times in seen)
            message = f"{often} of its {len(seen)} images are used {max(seen)} x an epoch, the others {min(seen)} x"
            remedy = "use as many as the training images x repeats, or a whole fraction of that"
            self.note(warning("dataset.reg-unequal", place, message, remedy))

    def doubt_overshoot(self, dataset: ResolvedDataset, regularising: int, train: int) -> None:
        message = (
            f"an epoch has {regularising} regularisation images for {train} training images: num_repeats overshoots"
        )
        remedy = "set num_repeats = 1 for the regularisation images; sd-scripts repeats them as needed"
        self.note(warning("dataset.reg-overshoot", dataset.where, message, remedy))

    def by_path(
        self, dataset: ResolvedDataset, epoch: Sequence[tuple[ScannedImage, int]]
    ) -> list[tuple[ScannedImage, int]]:
        """sd-scripts keeps images by their path, so of two with one path the last is left (train_util.py:983)."""
        kept = {image.path: (image, count) for image, count in epoch}
        if len(kept) < len(epoch):
            message = (
                f"{len(epoch) - len(kept)} images are in two subsets: sd-scripts keeps the repeats of the last alone"
            )
            self.note(warning("dataset.image-twice", dataset.where, message, "name each folder once"))
        return list(kept.values())

    def buckets_of(self, dataset: ResolvedDataset, epoch: Iterable[tuple[ScannedImage, int]]) -> Counter[Size]:
        counts: Counter[Size] = Counter()
        known: dict[Size, Size | None] = {}
        select = bucket_selector(dataset)
        for image, count in epoch:
            size = self.size_of(image)
            if size is None:
                continue
            if size not in known:
                known[size] = self.bucket_for(size, image, select)
            bucket = known[size]
            if bucket:
                counts[bucket] += count
        return counts

    def size_of(self, image: ScannedImage) -> Size | None:
        size = image.trained_size
        if size is None:
            self.stop(
                error(
                    "images.unreadable",
                    image.path,
                    f"the image can't be read: {image.problem}",
                    "replace it, or remove it",
                )
            )
        elif image.size and image.size != size:
            message = (
                f"its cached latents are of an image of {size[0]}x{size[1]}, but it has {image.size[0]}x{image.size[1]}"
            )
            self.note(warning("images.stale-latents", image.path, message, "delete the _sd.npz file beside it"))
        return size

    def bucket_for(self, size: Size, image: ScannedImage, select: Callable[[Size], Size]) -> Size | None:
        try:
            bucket = select(size)
        except BatchingError as fault:
            self.stop(error("images.no-bucket", image.path, str(fault), "crop it, enlarge it, or remove it"))
            return None
        if 0 in bucket:
            message = f"{size[0]}x{size[1]} is smaller than bucket_reso_steps: sd-scripts fails when it comes to it"
            remedy = "enlarge it, remove it, or set bucket_no_upscale to false"
            self.note(error("images.no-bucket", image.path, message, remedy))
        return bucket


def bucket_selector(dataset: ResolvedDataset) -> Callable[[Size], Size]:
    """Return the rule that gives an image of some size its bucket. The dataset's limits are known to be sound."""
    if not dataset.enable_bucket:
        return lambda _: dataset.resolution
    steps = dataset.bucket_reso_steps
    if dataset.bucket_no_upscale:
        return lambda size: shrunk_bucket(size, dataset.resolution[0] * dataset.resolution[1], steps)
    limits = adjust_bucket_limits(dataset.resolution, dataset.min_bucket_reso, dataset.max_bucket_reso, steps)
    buckets = bucket_resolutions(dataset.resolution, *limits, steps)
    return lambda size: nearest_bucket(size, buckets)
