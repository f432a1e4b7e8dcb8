"""A kohya_ss preset (JSON): what its window would hand to train_network.py, as kohya_gui/lora_gui.py makes it.

Read in kohya_ss of 2026; older presets have fewer keys, and some other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spyke_kohya.engine.options import train_network_options
from spyke_kohya.start.importing.command_line import LAUNCHER_THREADS, ForeignSettings, read_words, split_words

# The window's names of options that sd-scripts calls otherwise.
_NAMES = {
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
    "max_resolution": "resolution",
}
_MODULES = {
    "Standard": "networks.lora",
    "Kohya LoCon": "networks.lora",
    "LoRA-FA": "networks.lora_fa",
    "Kohya DyLoRA": "networks.dylora",
}
_CONVOLUTIONS = ("conv_dim", "conv_alpha")
_NETWORK_ARGS = (
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_dims", "block_alphas"),
    *("conv_block_dims", "conv_block_alphas", "rank_dropout", "module_dropout"),
    *("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"),
)
_SCRIPTS = {
    "sdxl": "sdxl_train_network.py",
    "flux1_checkbox": "flux_train_network.py",
    "sd3_checkbox": "sd3_train_network.py",
    "hunyuan_image_checkbox": "hunyuan_image_train_network.py",
    "anima_checkbox": "anima_train_network.py",
    "lumina_checkbox": "lumina_train_network.py",
}
# What the window hands over in another form, or not at all.
_ONLY = {
    *(
        "LoRA_type",
        "model_list",
        "additional_parameters",
        "lr_warmup",
        "xformers",
        "epoch",
        "noise_offset_type",
        "unit",
    ),
    *(*_CONVOLUTIONS, *_NETWORK_ARGS, *_SCRIPTS),
}
_NOISES = {
    "Original": ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"),
    "Multires": ("multires_noise_iterations", "multires_noise_discount"),
}
_SAMPLING = ("sample_prompts", "sample_every_n_steps", "sample_every_n_epochs", "sample_sampler")
_UNSET: tuple[object, ...] = ("", None, "None", "none", [], False, 0, "0")
_KEPT_WHEN_ZERO = ("max_data_loader_n_workers",)


def read_window(document: Mapping[str, Any]) -> ForeignSettings:
    """Return what kohya_gui/lora_gui.py would hand to train_network.py for these settings."""
    found, others = ForeignSettings(), []
    for key, value in document.items():
        name = _NAMES.get(key, key)
        if key in _ONLY or _is_unset(name, value):
            continue
        if name in train_network_options() or name == LAUNCHER_THREADS:
            found.put(name, _value(name, value))
        else:
            others.append(key)
    if others:
        found.notes.append(f"{', '.join(others)}: the window's own, or for another script")
    for key, script in _SCRIPTS.items():
        if document.get(key) not in _UNSET:
            found.notes.append(
                f"{key}: it trains with {script}, and is imported as train_network.py, for SD1.5 and SD2"
            )
    _read_network(document, found)
    _read_rates(document, found)
    _read_length(document, found)
    _leave_out(document, found)
    _read_rest(document, found)
    return found


def _is_unset(name: str, value: object) -> bool:
    """Whether the window leaves it out: it drops what is empty, false or 0, a loader's 0 workers excepted."""
    return value == "" or (value in _UNSET and name not in _KEPT_WHEN_ZERO) or (name, value) == ("dynamo_backend", "no")


def _value(name: str, value: object) -> object:
    option = train_network_options().get(name)
    if option is not None and option.many and isinstance(value, str):
        return split_words(value)
    return value


def _read_network(document: Mapping[str, Any], found: ForeignSettings) -> None:
    kind = str(document.get("LoRA_type", "Standard"))
    found.values["network_module"] = _MODULES.get(kind, "networks.lora")
    if kind not in _MODULES:
        found.notes.append(f"LoRA_type = {kind!r}: it becomes a standard LoRA; set network_module and network_args")
    more = {"Kohya LoCon": _CONVOLUTIONS, "Kohya DyLoRA": (*_CONVOLUTIONS, "unit")}.get(kind, ())
    given = [f"{name}={document[name]}" for name in (*more, *_NETWORK_ARGS) if document.get(name) not in _UNSET]
    if given:
        found.values["network_args"] = [*found.values.get("network_args", []), *given]


def _read_rates(document: Mapping[str, Any], found: ForeignSettings) -> None:
    """Leave out the half whose learning rate is 0."""
    rates = {name: document.get(name) for name in ("text_encoder_lr", "unet_lr")}
    zero = [name for name, rate in rates.items() if rate is not None and str(rate).strip() in ("0", "0.0")]
    if len(zero) == 1:
        only = "network_train_unet_only" if zero == ["text_encoder_lr"] else "network_train_text_encoder_only"
        found.values[only] = True
        found.values.pop(zero[0], None)


def _read_length(document: Mapping[str, Any], found: ForeignSettings) -> None:
    """Take the window's epochs only without max_train_epochs and max_train_steps; they are its cycles, too."""
    epoch = document.get("epoch")
    if epoch in _UNSET:
        return
    if not {"max_train_epochs", "max_train_steps"} & found.values.keys():
        found.put("max_train_epochs", epoch)
    if found.values.get("lr_scheduler") == "cosine_with_restarts" and "lr_scheduler_num_cycles" not in found.values:
        found.put("lr_scheduler_num_cycles", epoch)


def _leave_out(document: Mapping[str, Any], found: ForeignSettings) -> None:
    """Drop the noise of the other kind, and sampling: its prompts are a text here, and a file to sd-scripts."""
    chosen = str(document.get("noise_offset_type") or "Original")
    dropped = [name for kind, names in _NOISES.items() if kind != chosen for name in names]
    if found.values.get("sample_prompts"):
        found.notes.append("sample_prompts: sd-scripts wants a file with them; [samples] renders pictures afterwards")
    for name in (*dropped, *_SAMPLING):
        found.values.pop(name, None)


def _read_rest(document: Mapping[str, Any], found: ForeignSettings) -> None:
    attention = document.get("xformers")
    if attention in (True, "xformers", "sdpa"):
        found.values["sdpa" if attention == "sdpa" else "xformers"] = True
    percent = document.get("lr_warmup")
    if isinstance(percent, int | float) and percent > 0 and "lr_warmup_steps" not in found.values:
        found.values["lr_warmup_steps"] = float(percent) / 100  # the GUI says percent, sd-scripts takes a share
    if str(document.get("max_token_length", "75")) == "75":
        found.values.pop("max_token_length", None)
    if document.get("additional_parameters"):
        read_words(split_words(str(document["additional_parameters"])), found)
