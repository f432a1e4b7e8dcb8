"""Which losses an average covers, and how two averages therefore move together. It leaves judgement to others.

Steps are optimizer steps as sd-scripts counts them; windows and bounds are in micro-batches. A window is half open:
``(start, end]``. Source: LossRecorder, sd-scripts v0.10.1 train_util.py:6668.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Bounds = tuple[IntArray, IntArray]
Regime = Literal["cumulative", "rolling", "mixed", "unknown", "centred"]


def micro_batches_at(steps: ArrayLike, window: int, per_step: int) -> IntArray:
    """Micro-batches seen by the end of each step; an epoch of ``window`` batches ends with a step, full or not."""
    at = np.asarray(steps, dtype=np.int64)
    steps_per_epoch = -(-window // per_step)
    epochs_before = (at - 1) // steps_per_epoch
    in_epoch = np.minimum((at - epochs_before * steps_per_epoch) * per_step, window)
    return np.asarray(epochs_before * window + in_epoch, dtype=np.int64)


def trailing_bounds(ends: ArrayLike, window: int) -> Bounds:
    """Return what avr_loss covers: the last ``window`` losses, or all of them in the first epoch."""
    end = np.asarray(ends, dtype=np.int64)
    return end - np.minimum(end, window), end


def centred_bounds(steps: ArrayLike, width: int, first: int, last: int) -> Bounds:
    """Return ``width`` losses around each step, cut where they begin (after ``first``) and end; never less than one."""
    start = np.asarray(steps, dtype=np.int64) - width // 2
    return np.clip(start, first, last - 1), np.clip(start + width, first + 1, last)


def overlap_cov(bounds: Bounds) -> FloatArray:
    """Covariance (k, k) of the means of independent unit-variance losses over k windows: overlap_ij / (n_i n_j)."""
    start, end = bounds
    overlap = np.maximum(0, np.minimum.outer(end, end) - np.maximum.outer(start, start))
    length = (end - start).astype(np.float64)
    return np.asarray(overlap / np.outer(length, length), dtype=np.float64)


def window_cov(ends: ArrayLike, window: int) -> FloatArray:
    """Covariance (k, k) of avr_loss after ``ends`` micro-batches, in units of the per-batch variance."""
    return overlap_cov(trailing_bounds(ends, window))


def window_means(losses: FloatArray, before: int, bounds: Bounds) -> FloatArray:
    """Means of contiguous ``losses`` over each window; ``before`` is the step just before the first of them."""
    sums = np.concatenate(([0.0], np.cumsum(losses)))
    start, end = bounds
    return np.asarray((sums[end - before] - sums[start - before]) / (end - start), dtype=np.float64)


def regime_of(ends: ArrayLike, window: int) -> Regime:
    """Return "rolling" when every average covers a whole window, "cumulative" when none reaches beyond the first."""
    end = np.asarray(ends)
    if end.min() >= window:
        return "rolling"
    return "cumulative" if end.max() <= window else "mixed"
