"""The options: against the target, against each other, and against the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spyke_kohya.engine.targets import rules_broken
from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.plan.plan import Plan
from spyke_kohya.presets.resolved import ResolvedDataset
from spyke_kohya.presets.training import TrainingPreset

_DEFAULT_DIM = 4  # sd-scripts v0.10.1 networks/lora.py:430
# A LoRA's usual learning rates; optimizers that find the rate themselves take 1 as the share of what they find.
_USUAL_RATES = (5e-6, 2e-3)
_USUAL_ADAPTIVE_RATES = (0.1, 2.0)
_ADAPTIVE = ("prodigy", "dadapt")
# Those that raise for a warm-up (sd-scripts v0.10.1 train_util.py:5293-5330)
_SCHEDULERS_WITHOUT_WARMUP = ("constant", "adafactor")


def check_options(preset: TrainingPreset, where: str, datasets: tuple[ResolvedDataset, ...] = ()) -> list[Finding]:
    """One finding for every rule of the target that the options and datasets, defaults included, break."""
    target = preset.launch.target
    options = preset.effective_options
    splits = [dataset.validation_split for dataset in datasets] or [options["validation_split"]]
    rows = [dataset.batch_size * dataset.resolution[0] * dataset.resolution[1] // 64 for dataset in datasets]
    stated = options | {"validation_split": max(splits), "rows_a_batch": max(rows, default=0)}
    return [
        Finding(
            rule.code,
            rule.severity,
            f"{where}: [train_network] {rule.option}",
            f"on {target}: {rule.reason}",
            rule.remedy,
        )
        for rule in rules_broken(target, stated)
    ] + [*_rates(preset, where), *_network(options, where)]


def _rates(preset: TrainingPreset, where: str) -> Iterator[Finding]:
    """Warn of a learning rate that is far from usual.

    Where unet_lr is set, learning_rate is only the other parts' default.
    """
    options = preset.effective_options
    optimizer = str(options["optimizer_type"] or "").lower().rpartition(".")[2]
    low, high = _USUAL_ADAPTIVE_RATES if optimizer.startswith(_ADAPTIVE) else _USUAL_RATES
    for name in ("learning_rate", "unet_lr", "text_encoder_lr"):
        value = options[name]
        rates = [rate for rate in (value if isinstance(value, list) else [value]) if rate is not None]
        is_used = name != "learning_rate" or options["unet_lr"] is None
        far = [rate for rate in rates if not low <= float(rate) <= high and not (rate == 0 and name != "learning_rate")]
        if far and is_used:
            is_default = name not in preset.options
            message = f"{far[0]:g} is {'sd-scripts default, and ' * is_default}outside the usual {low:g} to {high:g}"
            remedy = f"set {name} = {1.0 if low >= 0.1 else 1e-4:g}, or what you meant"
            yield warning("options.learning-rate", f"{where}: [train_network] {name}", message, remedy)


def _network(options: Mapping[str, Any], where: str) -> Iterator[Finding]:
    dim, alpha = options["network_dim"] or _DEFAULT_DIM, options["network_alpha"]
    if alpha is not None and alpha > dim:
        message = f"network_alpha {alpha:g} is above network_dim {dim}: the LoRA is scaled by {alpha / dim:g}"
        remedy = "set network_alpha to network_dim or half of it"
        yield warning("options.alpha-above-dim", f"{where}: [train_network] network_alpha", message, remedy)


def check_schedule(options: Mapping[str, Any], plan: Plan, where: str) -> list[Finding]:
    """Check the warm-up and the saving against the plan's steps. ``options`` are effective."""
    place = f"{where}: [train_network]"
    return [*_warmup(options, plan.total_steps, place), *_saving(options, plan.total_steps, place)]


def _warmup(options: Mapping[str, Any], total_steps: int, place: str) -> Iterator[Finding]:
    warmup = options["lr_warmup_steps"]
    if isinstance(warmup, float) and warmup >= 1:
        message = f"{warmup} has a decimal point and is no share: sd-scripts' parser takes a whole number or a share"
        yield error("options.warmup-form", f"{place} lr_warmup_steps", message, f"write {int(warmup)}")
        return
    steps = int(warmup * total_steps) if isinstance(warmup, float) else int(warmup or 0)
    scheduler = options["lr_scheduler"]
    if steps and (options["lr_scheduler_type"] or str(scheduler).partition(":")[0] in _SCHEDULERS_WITHOUT_WARMUP):
        message = f"the scheduler {options['lr_scheduler_type'] or scheduler} takes no warm-up: sd-scripts stops"
        remedy = 'remove lr_warmup_steps, or set lr_scheduler = "constant_with_warmup"'
        yield error("options.warmup-refused", f"{place} lr_warmup_steps", message, remedy)
    elif total_steps and steps >= total_steps:
        message = f"{steps} steps of warm-up in a run of {total_steps}: the learning rate never reaches its value"
        yield warning("options.warmup-too-long", f"{place} lr_warmup_steps", message, "set a tenth of the steps, or 0")


def _saving(options: Mapping[str, Any], total_steps: int, place: str) -> Iterator[Finding]:
    every = options["save_every_n_steps"]
    if every is not None and total_steps and every > total_steps:
        message = f"the run has {total_steps} steps, so none is saved on the way: there is nothing to choose from"
        remedy = f"set save_every_n_steps = {max(1, total_steps // 10)}"
        yield warning("options.saves-too-rarely", f"{place} save_every_n_steps", message, remedy)
