"""What a person reads as plain lines: findings and faults, a plan, the tags of a folder, the cost of an evaluation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spyke_kohya.errors import SpykeError
from spyke_kohya.findings import Finding

if TYPE_CHECKING:
    from spyke_kohya.audit.tags import TagTable
    from spyke_kohya.evaluate.evaluation import Cost, Forecast, Progress
    from spyke_kohya.plan.epoch import DatasetPlan
    from spyke_kohya.plan.plan import Plan

_WIDTH = 80
_CHECKPOINTS_SHOWN = 16
_TAGS_SHOWN = 30


def findings_text(findings: Sequence[Finding]) -> str:
    """Return one block a finding, errors first."""
    ordered = sorted(findings, key=lambda finding: finding.severity != "error")
    return "\n".join(_block(finding) for finding in ordered)


def fault_text(fault: SpykeError) -> str:
    """Return an error as the last words of a command."""
    lines = [_wrapped(f"error: {fault.what}", "")]
    lines += [_wrapped(fault.where, "  where: ")] if fault.where else []
    lines += [_wrapped(fault.remedy, "  do: ")] if fault.remedy else []
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """Return the whole plan."""
    from spyke_kohya.plan.plan import explain

    lines = [*explain(plan), ""]
    for index, dataset in enumerate(plan.datasets):
        lines += [*_dataset_lines(dataset, index, len(plan.datasets)), ""]
    return "\n".join([*lines, *_checkpoint_lines(plan)])


def tag_table_text(table: TagTable) -> str:
    """Return one line a tag, the most frequent first, with the number of captions and their share."""
    lines = [f"{table.folder}: {len(table.tags)} tags in {table.captions} captions"]
    for tag, count in table.tags[:_TAGS_SHOWN]:
        lines.append(f"  {count:>6}  {count / table.captions:>4.0%}  {tag}")
    if len(table.tags) > _TAGS_SHOWN:
        lines.append(f"  ... and {len(table.tags) - _TAGS_SHOWN} rarer ones")
    return "\n".join(lines)


def forecast_text(forecast: Forecast) -> str:
    """Return what an evaluation will cost, in one or two lines."""
    pictures = [f"{forecast.heldout} held-out"] if forecast.heldout else []
    pictures += [f"{forecast.trained} trained"] if forecast.trained else []
    lines = [
        f"{forecast.forwards} predictions: {forecast.checkpoints} checkpoints + twice the base, on "
        f"{' + '.join(pictures)} pictures, at {forecast.timesteps} timesteps each"
    ]
    if forecast.measured:
        lines.append(f"{forecast.measured} of them are measured already")
    if forecast.seconds is not None and forecast.missing:
        lines.append(
            f"about {duration(forecast.seconds)} by the pace of the training, and half a minute to load the base"
        )
    return "\n".join(lines)


def progress_text(progress: Progress) -> str:
    """Return one line: how far it is, and the time left."""
    if progress.stage != "measuring":
        return {"loading": "loading the base model", "encoding": "encoding pictures"}.get(progress.stage, "measured")
    left = f", {duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    return f"{progress.done}/{progress.total} losses ({progress.checkpoint}){left}"


def cost_text(cost: Cost) -> str:
    """Return what an evaluation took."""
    return (
        f"measured in {duration(cost.total_s)}: {duration(cost.loaded_s)} to load, {duration(cost.text_s)} captions, "
        f"{duration(cost.forward_s)} predictions; at most {cost.most_memory_bytes / 1e9:.1f} GB of memory"
    )


def duration(seconds: float) -> str:
    """Return ``1:02:03``, or ``2:03`` under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _block(finding: Finding) -> str:
    head = f"{finding.severity}: {_printable(finding.where)}  [{finding.code}]"
    return "\n".join([head, _wrapped(finding.message, "  "), _wrapped(finding.remedy, "  do: ")])


def _printable(text: str) -> str:
    """Return the text with its control characters written out: in a file's name they would move the cursor."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _wrapped(text: str, label: str) -> str:
    indent = " " * (len(label) or 2)
    lines = textwrap.TextWrapper(
        _WIDTH, initial_indent=label, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return lines.fill(_printable(text))


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
    if count > _CHECKPOINTS_SHOWN:
        half = _CHECKPOINTS_SHOWN // 2
        lines = [*lines[:half], f"  … {count - 2 * half} more …", *lines[-half:]]
    yield from lines
