"""Will it fit into memory? An estimate from below, for devices that share the machine's memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spyke_kohya.audit.base import FULL_SIZE, base_path
from spyke_kohya.engine.base_model import read_weights
from spyke_kohya.engine.targets import Target
from spyke_kohya.findings import Finding, warning
from spyke_kohya.presets.resolved import ResolvedDataset

GIB = 2**30
# Saved for the backward pass of one image of 512x512 in fp32, measured on sd-scripts v0.10.1 with torch 2.14.1.
_ACTIVATIONS = 4.54 * GIB
_ACTIVATIONS_MEM_EFF = 1.82 * GIB
_ACTIVATIONS_CHECKPOINTED = 0.21 * GIB
_PIXELS = 512 * 512


def needed_bytes(options: Mapping[str, Any], datasets: tuple[ResolvedDataset, ...], numbers: int) -> int:
    """At least this much: the base in fp32, and one batch's activations, which grow with its pixels.

    ``options`` are effective, ``numbers`` those of the base model's tensors.
    """
    an_image = _ACTIVATIONS_MEM_EFF if options["mem_eff_attn"] else _ACTIVATIONS
    if options["gradient_checkpointing"]:
        an_image = _ACTIVATIONS_CHECKPOINTED
    pixels = max(dataset.batch_size * dataset.resolution[0] * dataset.resolution[1] for dataset in datasets)
    return int(4 * numbers + an_image * pixels / _PIXELS)


def check_memory(
    options: Mapping[str, Any],
    datasets: tuple[ResolvedDataset, ...],
    target: Target,
    place: tuple[Path, str],
    memory_bytes: int,
) -> list[Finding]:
    """Warn where the machine's memory is too small. ``place`` is the root and the preset's name."""
    root, where = place
    weights = read_weights(base_path(options, root))
    if target == "cuda" or weights is None or weights.numbers < FULL_SIZE:
        return []
    needed = needed_bytes(options, datasets, weights.numbers)
    if needed <= memory_bytes:
        return []
    message = (
        f"training needs at least {needed / GIB:.1f} GiB and this machine has {memory_bytes / GIB:.1f}: it will swap"
    )
    remedy = "set gradient_checkpointing = true, or a smaller batch_size or resolution"
    return [warning("machine.memory", where, message, remedy)]
