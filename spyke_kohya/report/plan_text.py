"""A plan for people: how the number of steps came about, then folders, buckets, checkpoints and disk."""

from __future__ import annotations

from collections.abc import Iterator

from spyke_kohya.plan.epoch import DatasetPlan
from spyke_kohya.plan.plan import Plan, explain

_MANY = 16


def plan_text(plan: Plan) -> str:
    """The whole plan as plain lines."""
    lines = [*explain(plan), ""]
    for index, dataset in enumerate(plan.datasets):
        lines += [*_dataset_lines(dataset, index, len(plan.datasets)), ""]
    return "\n".join([*lines, *_checkpoint_lines(plan)])


def _dataset_lines(dataset: DatasetPlan, index: int, count: int) -> Iterator[str]:
    name = f"dataset {index}, " if count > 1 else ""
    yield f"folders ({name}batch size {dataset.batch_size})"
    for subset in dataset.subsets:
        kind = "regularisation" if subset.is_reg else "training"
        yield f"  {subset.image_dir}"
        unused = f", {subset.images - subset.used} never used" if subset.used < subset.images else ""
        yield f"    {subset.images} {kind} images x {subset.num_repeats}{unused}: {subset.per_epoch} an epoch"
    yield "buckets (width x height in pixels: images an epoch)"
    for (width, height), images in dataset.buckets:
        yield f"  {f'{width} x {height}':>11}: {images}"


def _checkpoint_lines(plan: Plan) -> Iterator[str]:
    count = len(plan.checkpoints)
    yield "checkpoints" if count else "no checkpoints"
    lines = [f"  step {saved.step:>6}: {saved.file}" for saved in plan.checkpoints]
    if count > _MANY:
        half = _MANY // 2
        lines = [*lines[:half], f"  … {count - 2 * half} more …", *lines[-half:]]
    yield from lines
