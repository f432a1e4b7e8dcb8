"""The environment that the engine needs on each device, and the options that fail or harm there.

Data only: a rule names its option, the case it speaks of, the reason, the remedy and where the behaviour was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Target = Literal["mps", "cuda", "cpu"]
Options = Mapping[str, Any]

# Read by torch when it is loaded; accelerate sets it in-process, which is too late (accelerate 1.6.0 state.py:714).
TARGET_ENVIRONMENT: Mapping[Target, Mapping[str, str]] = {
    "mps": {"PYTORCH_ENABLE_MPS_FALLBACK": "1"},
    "cuda": {},
    "cpu": {},
}


@dataclass(frozen=True)
class Rule:
    """One verdict. ``applies`` gets all options, defaults included, and ``rows_a_batch``.

    That is the latent pixels of the largest batch, 0 where the datasets aren't known.
    """

    code: str
    severity: Literal["error", "warning"]
    targets: tuple[Target, ...]
    option: str
    applies: Callable[[Options], bool]
    reason: str
    remedy: str
    source: str


def rules_broken(target: Target, options: Options) -> list[Rule]:
    """Return the rules that these options, defaults included, break on this target."""
    known = {"rows_a_batch": 0, **options}
    return [rule for rule in RULES if target in rule.targets and rule.applies(known)]


def _optimizer(options: Options) -> str:
    return str(options["optimizer_type"] or "").lower()


def _is_bitsandbytes(options: Options) -> bool:
    name = _optimizer(options)
    return name.endswith("8bit") or name.startswith(("paged", "bitsandbytes.")) or options["use_8bit_adam"]


def _has_dropout(options: Options) -> bool:
    ranked = any(str(word).startswith("rank_dropout=") for word in options["network_args"] or [])
    return bool(options["network_dropout"]) or ranked


_ALL: tuple[Target, ...] = ("mps", "cuda", "cpu")
_MPS: tuple[Target, ...] = ("mps",)
_NO_CUDA: tuple[Target, ...] = ("mps", "cpu")

RULES: tuple[Rule, ...] = (
    Rule(
        "target.mixed-precision",
        "error",
        _MPS,
        "mixed_precision",
        lambda o: o["mixed_precision"] != "no",
        "the pinned accelerate 1.6.0 raises ValueError for fp16 and for bf16 on MPS",
        'set mixed_precision = "no": training runs in fp32',
        "accelerate 1.6.0 accelerator.py:539-573",
    ),
    Rule(
        "target.full-precision",
        "error",
        _ALL,
        "full_fp16",
        lambda o: (
            (o["full_fp16"] and o["mixed_precision"] != "fp16") or (o["full_bf16"] and o["mixed_precision"] != "bf16")
        ),
        "full_fp16 and full_bf16 assert the same mixed_precision",
        "remove it",
        "sd-scripts v0.10.1 train_network.py:809-823",
    ),
    Rule(
        "target.fp8",
        "error",
        _NO_CUDA,
        "fp8_base",
        lambda o: o["fp8_base"] or o["fp8_base_unet"],
        "float8 weights need mixed precision, and MPS has no float8",
        "remove fp8_base and fp8_base_unet",
        "sd-scripts v0.10.1 train_network.py:826-831",
    ),
    Rule(
        "target.xformers",
        "error",
        _NO_CUDA,
        "xformers",
        lambda o: o["xformers"],
        "xformers has no memory-efficient attention off CUDA, and it wins over sdpa",
        "use sdpa = true",
        "sd-scripts v0.10.1 train_util.py:3366-3371",
    ),
    Rule(
        "target.optimizer-8bit",
        "error",
        _NO_CUDA,
        "optimizer_type",
        _is_bitsandbytes,
        "8-bit and paged optimizers are bitsandbytes kernels for CUDA",
        'use optimizer_type = "AdamW"',
        "sd-scripts v0.10.1 train_util.py:4890-4966",
    ),
    Rule(
        "target.optimizer-missing",
        "error",
        _ALL,
        "optimizer_type",
        lambda o: _optimizer(o).startswith("dadapt"),
        "the package dadaptation is not among sd-scripts' requirements",
        'use optimizer_type = "Prodigy" or "AdamW"',
        "sd-scripts v0.10.1 train_util.py:5003-5007",
    ),
    Rule(
        "target.deepspeed",
        "error",
        _NO_CUDA,
        "deepspeed",
        lambda o: o["deepspeed"],
        "deepspeed is not installed and needs CUDA",
        "remove deepspeed and its options",
        "sd-scripts v0.10.1 deepspeed_utils.py:76-82",
    ),
    Rule(
        "target.validation",
        "error",
        _MPS,
        "validation_split",
        lambda o: o["validation_split"] > 0,
        "the first validation calls torch.cuda.get_rng_state on MPS and dies before that epoch is saved",
        "remove validation_split; judge the checkpoints after the run on images that were kept out of it",
        "sd-scripts v0.10.1 train_network.py:1378",
    ),
    Rule(
        "target.cpu-offload-checkpointing",
        "error",
        _ALL,
        "cpu_offload_checkpointing",
        lambda o: o["cpu_offload_checkpointing"],
        "the Stable Diffusion 1.5 U-Net takes no such argument: TypeError at the start",
        "use gradient_checkpointing = true alone",
        "sd-scripts v0.10.1 original_unet.py:1510",
    ),
    Rule(
        "target.workers",
        "error",
        _ALL,
        "persistent_data_loader_workers",
        lambda o: o["persistent_data_loader_workers"] and o["max_data_loader_n_workers"] == 0,
        "torch raises ValueError: persistent_workers needs num_workers > 0",
        "remove persistent_data_loader_workers, or set max_data_loader_n_workers = 1",
        "sd-scripts v0.10.1 train_network.py:783-796",
    ),
    Rule(
        "target.attention",
        "warning",
        _MPS,
        "sdpa",
        lambda o: not (o["sdpa"] or o["mem_eff_attn"]),
        "the default attention can turn to NaN on MPS after some hundred steps: its baddbmm does not skip an "
        "uninitialised input (fp32 too, torch up to 2.13)",
        "set sdpa = true",
        "sd-scripts v0.10.1 original_unet.py:665-671; pytorch#187521",
    ),
    Rule(
        "target.dropout-checkpointing",
        "warning",
        _MPS,
        "network_dropout",
        lambda o: o["gradient_checkpointing"] and _has_dropout(o),
        "gradient checkpointing redraws dropout masks on MPS, so gradients are wrong",
        "remove gradient_checkpointing or the dropout",
        "pytorch#127676",
    ),
    Rule(
        "target.torch-compile",
        "warning",
        _MPS,
        "torch_compile",
        lambda o: o["torch_compile"],
        "torch.compile's Metal backend is a prototype: its backward pass failed in several releases",
        "remove torch_compile",
        "pytorch#150121",
    ),
    Rule(
        "target.samples-reseed",
        "warning",
        _MPS,
        "sample_prompts",
        lambda o: o["sample_prompts"] is not None,
        "a seeded sample prompt reseeds the MPS generator, so training noise repeats after every sampling",
        "leave sampling to after the run, or give prompts without --d",
        "sd-scripts v0.10.1 train_util.py:6454-6487",
    ),
    Rule(
        "target.workers-default",
        "warning",
        _MPS,
        "max_data_loader_n_workers",
        lambda o: o["max_data_loader_n_workers"] == 8,
        "8 spawned loader workers take 6 to 7 GB",
        "set max_data_loader_n_workers = 0 with cache_latents, else 1 with persistent_data_loader_workers = true",
        "measured on sd-scripts v0.10.1, forced spawn",
    ),
    Rule(
        "target.scale-weight-norms",
        "warning",
        _MPS,
        "scale_weight_norms",
        lambda o: o["scale_weight_norms"] is not None,
        "every step waits for the device hundreds of times",
        "remove scale_weight_norms",
        "sd-scripts v0.10.1 networks/lora.py:1369-1410",
    ),
    Rule(
        "target.lowram",
        "warning",
        _MPS,
        "lowram",
        lambda o: o["lowram"],
        "nothing is gained on unified memory",
        "remove lowram",
        "sd-scripts v0.10.1 model_util.py:978",
    ),
    Rule(
        "target.workers-not-persistent",
        "warning",
        _MPS,
        "persistent_data_loader_workers",
        lambda o: o["max_data_loader_n_workers"] > 0 and not o["persistent_data_loader_workers"],
        "loader workers are started again at every epoch, 12 s and up to 0.9 GB each: more workers cost more",
        "set persistent_data_loader_workers = true, or max_data_loader_n_workers = 0",
        "measured on sd-scripts v0.10.1, forced spawn",
    ),
    Rule(
        "target.memory-efficient-attention",
        "warning",
        _MPS,
        "mem_eff_attn",
        lambda o: o["mem_eff_attn"],
        "mem_eff_attn is a loop of many small kernels: slow, for 2.5 times less memory",
        "use sdpa = true, unless memory is short",
        "sd-scripts v0.10.1 original_unet.py:166-300",
    ),
    Rule(
        "target.batch-rows",
        "warning",
        _MPS,
        "train_batch_size",
        lambda o: o["rows_a_batch"] > 32768,
        "a batch has more than 32768 latent pixels, where wrong gradients were reported on MPS",
        "lower batch_size (8 at 512x512), and raise gradient_accumulation_steps for it",
        "pytorch#177116",
    ),
)
