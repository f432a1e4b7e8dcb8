"""A training preset: which dataset, how to launch, what is expected, and ``train_network.py``'s own options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from spyke_kohya.engine.options import RESERVED, OptionFault, OptionValue, check_option, parser_defaults
from spyke_kohya.engine.targets import Target
from spyke_kohya.findings import Finding, error, errors_in
from spyke_kohya.presets.invalid import finding_of

_LONGEST_NAME_BYTES = 200  # of the 255 of a file's name: one that is set aside is longer


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


class Launch(_Table):
    """How the engine is started."""

    target: Target
    """The device to train on: mps (a Mac's GPU), cuda or cpu. A run that lands on another device is stopped."""

    num_cpu_threads_per_process: Annotated[int, Field(ge=1)] = 4
    """CPU threads for torch, as `accelerate launch --num_cpu_threads_per_process`."""

    engine: str | None = None
    """A directory with sd-scripts' train_network.py, where neither --engine nor SPYKE_ENGINE names one."""

    save_state: bool = True
    """Save a state at the end of every epoch, so that `train --resume` can go on from it; the last two are kept."""

    auto_resume: bool = False
    """After a crash that is neither a NaN nor a bad configuration, resume by itself, at most 3 times."""


class Expect(_Table):
    """What you planned. A plan that differs stops before the launch."""

    total_steps: Annotated[int, Field(ge=1)] | None = None
    """The number of optimizer steps that the run is meant to take."""

    trigger: Annotated[str, Field(min_length=1)] | None = None
    """The trigger word that every training caption starts with."""


class Evaluate(_Table):
    """What `spyke-kohya evaluate` measures the run's checkpoints on."""

    heldout_dir: Annotated[str, Field(min_length=1)] | None = None
    """A folder of captioned pictures that are never trained on: `spyke-kohya holdout` sets some aside."""


class Samples(_Table):
    """The grid of pictures that `spyke-kohya samples` renders: checkpoints x prompts x strengths, always alike."""

    prompts: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """Prompts by the label that stands above their pictures."""

    negative: str = ""
    """What no picture should show."""

    seed: Annotated[int, Field(ge=0)] = 1
    """The seed of every picture, so that only the checkpoint and the prompt differ."""

    strengths: Annotated[list[float], Field(min_length=1)] = [1.0]
    """How strongly each LoRA is applied; each strength is a column of its own."""

    width: Annotated[int, Field(ge=64, multiple_of=8)] = 512
    """Pixels across."""

    height: Annotated[int, Field(ge=64, multiple_of=8)] = 512
    """Pixels down."""

    steps: Annotated[int, Field(ge=1)] = 25
    """Denoising steps a picture."""

    scale: Annotated[float, Field(gt=0)] = 7.0
    """Classifier-free guidance."""

    sampler: str = "euler_a"
    """A sampler of sd-scripts' gen_img.py."""


def lora_name(name: str) -> str:
    """Return the name of a deployed LoRA. Raises ValueError where NAME.safetensors is no plain file of its folder."""
    if not name or name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError("the name of a LoRA has no slash, no control character and no dot at its beginning")
    if len(name.encode()) > _LONGEST_NAME_BYTES:
        raise ValueError(f"the name of a LoRA has at most {_LONGEST_NAME_BYTES} bytes")
    return name


class Deploy(_Table):
    """Where `deploy` puts the chosen checkpoint, if the command doesn't say."""

    to: Annotated[str, Field(min_length=1)]
    """The directory of ComfyUI, A1111 or Forge."""

    name: Annotated[str, AfterValidator(lora_name)] | None = None
    """The LoRA's name there, without .safetensors; else the output_name."""


class TrainingPreset(_Table):
    """One training preset file."""

    dataset: Annotated[str, Field(min_length=1)]
    """The dataset preset, by path or by bare name (`spyke` is presets/spyke.toml)."""

    launch: Launch
    """How the engine is started."""

    expect: Expect = Expect()
    """What you planned."""

    evaluate: Evaluate = Evaluate()
    """What `spyke-kohya evaluate` measures the run's checkpoints on."""

    samples: Samples = Samples()
    """The pictures that `spyke-kohya samples` renders."""

    deploy: Deploy | None = None
    """Where the chosen checkpoint goes."""

    train_network: dict[str, Any]
    """train_network.py's own options, by their own names."""

    @property
    def options(self) -> Mapping[str, OptionValue]:
        """The options that the preset sets, as it sets them."""
        return self.train_network

    @property
    def effective_options(self) -> dict[str, Any]:
        """Every option of the engine: the preset's value, else the parser's default."""
        return parser_defaults() | self.train_network


def parse_training_preset(document: Mapping[str, Any], where: str) -> tuple[TrainingPreset | None, list[Finding]]:
    """Return the preset, or None; and everything wrong with it, each finding under ``schema.``."""
    findings: list[Finding] = []
    preset = None
    try:
        preset = TrainingPreset.model_validate(document)
    except ValidationError as faults:
        findings = [finding_of(fault, _place_of(fault["loc"], where), _TABLES) for fault in faults.errors()]
    options = document.get("train_network")
    if isinstance(options, dict):
        findings += _check_options(options, where)
    return (None if errors_in(findings) else preset), findings


def sound_options(table: object) -> dict[str, Any]:
    """Return the entries of a ``[train_network]`` table that have no fault."""
    options = table if isinstance(table, dict) else {}
    return {name: value for name, value in options.items() if name not in RESERVED and not check_option(name, value)}


_FAULT_CODES: Mapping[OptionFault, str] = {
    "unknown-key": "schema.unknown-key",
    "wrong-type": "schema.wrong-type",
    "bad-choice": "schema.bad-choice",
    "unsafe-value": "schema.unsafe-value",
}


def _check_options(options: Mapping[str, object], where: str) -> list[Finding]:
    """Find what is wrong with ``[train_network]``: names, types, choices, and what the launcher keeps to itself."""
    findings = []
    for name, value in options.items():
        place = f"{where}: [train_network] {name}"
        if name in RESERVED:
            message = f"`{name}` belongs to the launcher"
            findings.append(error("schema.reserved-option", place, message, RESERVED[name]))
        elif fault := check_option(name, value):
            kind, message = fault
            findings.append(error(_FAULT_CODES[kind], place, message, "correct it, or remove the key"))
    for name, why in REQUIRED.items():
        if options.get(name, "") == "":
            place, remedy = f"{where}: [train_network] {name}", f"add {name} = ... under [train_network]"
            findings.append(error("schema.missing-key", place, f"`{name}` is required: {why}", remedy))
    return findings


REQUIRED: Mapping[str, str] = {
    "pretrained_model_name_or_path": "there is no default base model",
    "output_dir": "sd-scripts fails at the first checkpoint without it, after the steps were paid for",
    "output_name": "checkpoints are found and ranked by it",
    "network_module": "sd-scripts fails without it; `networks.lora` is the LoRA",
}


_TABLES: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): TrainingPreset,
    ("launch",): Launch,
    ("expect",): Expect,
    ("evaluate",): Evaluate,
    ("samples",): Samples,
    ("deploy",): Deploy,
}


def _place_of(location: tuple[int | str, ...], where: str) -> str:
    *tables, key = map(str, location)
    return f"{where}: [{'.'.join(tables)}] {key}" if tables else f"{where}: {key}"
