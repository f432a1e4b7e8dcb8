"""What is on record about a training that its losses must be read with: in ``run.json`` and in a checkpoint's metadata.

Every key this package reads from the metadata is named here. Missing or odd values read as unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from spyke_kohya.record.record import Record


@dataclass(frozen=True)
class Facts:
    """None means unknown. ``window`` is W, the batches (micro-batches) of one epoch; ``batch_size`` is per device."""

    output_name: str | None = None
    window: int | None = None
    micro_batches_per_step: int | None = None
    batch_size: int | None = None
    min_snr_gamma: float | None = None
    clip_skip: int | None = None
    v2: bool | None = None
    v_parameterization: bool | None = None

    def or_else(self, other: Facts) -> Facts:
        """Return these facts, with ``other``'s where these are unknown."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return Facts(**{name: getattr(other, name) if value is None else value for name, value in known.items()})


def facts_from_run(record: Record) -> Facts:
    """Return the facts that a run's record holds."""
    return Facts(
        output_name=record.output_name,
        window=record.plan.batches_per_epoch,
        micro_batches_per_step=record.plan.gradient_accumulation_steps,
        batch_size=_count(record.settings.get("train_batch_size")),
        min_snr_gamma=_number(record.settings.get("min_snr_gamma")),
    )


def facts_from_metadata(metadata: Mapping[str, str]) -> Facts:
    """Facts from a checkpoint's metadata, where every value is text and "None" means not set."""
    return Facts(
        output_name=metadata.get("ss_output_name"),
        window=_count(metadata.get("ss_num_batches_per_epoch")),
        micro_batches_per_step=_count(metadata.get("ss_gradient_accumulation_steps")),
        batch_size=_smallest_batch(metadata.get("ss_datasets")),
        min_snr_gamma=_number(metadata.get("ss_min_snr_gamma")),
        clip_skip=_count(metadata.get("ss_clip_skip")),
        v2={"True": True, "False": False}.get(metadata.get("ss_v2", "")),
        v_parameterization={"v": True, "epsilon": False}.get(metadata.get("modelspec.prediction_type", "")),
    )


def steps_in(metadata: Mapping[str, str]) -> int | None:
    """Return the optimizer step of a checkpoint.

    ``ss_epoch`` is no guide to it, being 0-based in step checkpoints only.
    """
    return _count(metadata.get("ss_steps"))


def _count(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 1 <= number < 1 << 31 and number.is_integer() else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _smallest_batch(datasets: str | None) -> int | None:
    """Return the smallest batch of all datasets: its losses are the noisiest."""
    try:
        listed = json.loads(datasets or "[]")
    except json.JSONDecodeError:
        return None
    if not isinstance(listed, list):
        return None
    sizes = [_count(one.get("batch_size_per_device")) for one in listed if isinstance(one, dict)]
    return min((size for size in sizes if size is not None), default=None)
