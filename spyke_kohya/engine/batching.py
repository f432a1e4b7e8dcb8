"""How sd-scripts turns images into batches: buckets, balanced regularisation images, the validation split.

Plain values in and out. Everything about presets, files and people is left to others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

T = TypeVar("T")


class BatchingError(ValueError):
    """sd-scripts would stop here with an exception."""


def adjust_bucket_limits(resolution: Size, min_reso: int, max_reso: int, steps: int) -> tuple[int, int]:
    """Return the smallest and largest bucket side, moved outwards to multiples of ``steps``.

    Raises BatchingError where the resolution doesn't lie between them (sd-scripts v0.10.1 train_util.py:747).
    """
    if steps < 1:
        raise BatchingError(f"bucket_reso_steps is {steps}: it must be 64 or a multiple of it")
    smallest = min_reso - min_reso % steps
    largest = max_reso + -max_reso % steps
    if min(resolution) < smallest:
        raise BatchingError(f"min_bucket_reso is {smallest}, above the resolution's shorter side {min(resolution)}")
    if max(resolution) > largest:
        raise BatchingError(f"max_bucket_reso is {largest}, below the resolution's longer side {max(resolution)}")
    return smallest, largest


def bucket_resolutions(max_reso: Size, min_size: int, max_size: int, steps: int) -> list[Size]:
    """Return every bucket sd-scripts may put an image into, sorted (sd-scripts v0.10.1 model_util.py:1316).

    No bucket has more pixels than ``max_reso``. Raises BatchingError for a ``min_size`` below 1, for sd-scripts
    then divides by zero.
    """
    if min_size < 1:
        rounded = f"min_bucket_reso, rounded down to a multiple of {steps}, is {min_size}"
        raise BatchingError(f"{rounded}: sd-scripts divides by it")
    area = max_reso[0] * max_reso[1]
    square = int(math.sqrt(area) // steps) * steps
    found = {(square, square)}
    for width in range(min_size, max_size + 1, steps):
        height = min(max_size, area // width // steps * steps)
        if height >= min_size:
            found |= {(width, height), (height, width)}
    return sorted(found)


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Find the bucket for an image that may be enlarged: its own size if that is one, else the nearest aspect ratio.

    Of two that are equally near, the first wins (sd-scripts v0.10.1 train_util.py:286, numpy's argmin).
    Raises BatchingError for an image without a width or a height.
    """
    if size in buckets:
        return size
    ratio = _aspect_ratio(size)
    return min(buckets, key=lambda bucket: abs(bucket[0] / bucket[1] - ratio))


def shrunk_bucket(size: Size, max_area: int, steps: int) -> Size:
    """Find the bucket for an image that is never enlarged (``bucket_no_upscale``; train_util.py:311).

    A side can come out as 0 for a small image: sd-scripts counts it into its plan and fails at its batch.
    Raises BatchingError for an image so narrow or so small that sd-scripts divides by zero.
    """
    ratio = _aspect_ratio(size)
    try:
        width, height = _shrunk(size, ratio, max_area, steps) if size[0] * size[1] > max_area else size
    except ZeroDivisionError:
        raise BatchingError(f"an image of {size[0]}x{size[1]} is too narrow for buckets in steps of {steps}") from None
    bucket = (width - width % steps, height - height % steps)
    if bucket[1] == 0:
        raise BatchingError(f"an image of {size[0]}x{size[1]} is smaller than bucket_reso_steps ({steps})")
    return bucket


def size_before_cropping(size: Size, bucket: Size, *, no_upscale: bool, max_area: int, steps: int) -> Size:
    """Return the size an image is scaled to before it is cropped to its bucket (train_util.py:299)."""
    if no_upscale:
        return _shrunk(size, _aspect_ratio(size), max_area, steps) if size[0] * size[1] > max_area else size
    wider = _aspect_ratio(size) > bucket[0] / bucket[1]
    scale = bucket[1] / size[1] if wider else bucket[0] / size[0]
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def _aspect_ratio(size: Size) -> float:
    if min(size) < 1:
        raise BatchingError(f"an image of {size[0]}x{size[1]} has no aspect ratio")
    return size[0] / size[1]


def _shrunk(size: Size, ratio: float, max_area: int, steps: int) -> Size:
    """Scale ``size`` down to ``max_area``, one side a multiple of ``steps``: the side that distorts less."""
    width = math.sqrt(max_area * ratio)
    height = max_area / width
    if abs(width / height - ratio) >= 1e-2:
        raise BatchingError(f"an image of {size[0]}x{size[1]} has an aspect ratio that sd-scripts calls illegal")
    rounded_width = _round_to(width, steps)
    ratio_by_width = rounded_width / _round_to(rounded_width / ratio, steps)
    rounded_height = _round_to(height, steps)
    ratio_by_height = _round_to(rounded_height * ratio, steps) / rounded_height
    if abs(ratio_by_width - ratio) < abs(ratio_by_height - ratio):
        return rounded_width, int(rounded_width / ratio + 0.5)
    return int(rounded_height * ratio + 0.5), rounded_height


def _round_to(length: float, steps: int) -> int:
    rounded = int(length + 0.5)
    return rounded - rounded % steps


def balance_regularisation(num_train_repeated: int, repeats: Sequence[int]) -> list[int]:
    """Count how often each regularisation image is used in an epoch, given the repeats of each, in order.

    They are taken in order, each with its own repeats, until they reach the training images; if they run out, each is
    repeated once more, round and round. 0 is an image that is never used (sd-scripts v0.10.1 train_util.py:2166).
    """
    used: list[int] = []
    missing = num_train_repeated
    for count in repeats:
        used.append(count if missing > 0 else 0)
        missing -= used[-1]
    if missing <= 0 or not used:
        return used
    rounds, rest = divmod(missing, len(used))
    return [count + rounds + (index < rest) for index, count in enumerate(used)]


def training_part(images: Sequence[T], split: float) -> Sequence[T]:
    """Return the shuffled images that are trained on: the first ceil(n (1 - split)) (train_util.py:172)."""
    return images[0 : math.ceil(len(images) * (1 - split))]


def validation_part(images: Sequence[T], split: float) -> Sequence[T]:
    """Return the shuffled images that are validated on: the last round(n split) (train_util.py:176)."""
    return images[len(images) - round(len(images) * split) :]


def shuffled(count: int, chance: random.Random) -> list[int]:
    """Return 0 to ``count - 1`` as sd-scripts shuffles them before a split; it draws from ``chance``."""
    order = list(range(count))
    chance.shuffle(order)
    return order


def batches_of(bucket_counts: Iterable[int], batch_size: int) -> int:
    """Count the batches of an epoch: no batch mixes two buckets (sd-scripts v0.10.1 train_util.py:1079)."""
    return sum(math.ceil(count / batch_size) for count in bucket_counts)
