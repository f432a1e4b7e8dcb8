"""How big a checkpoint of ``networks.lora`` on Stable Diffusion 1.5 will be, and a state to resume from."""

from __future__ import annotations

from collections.abc import Mapping

# Numbers at rank 1 and modules, counted in the header of a checkpoint of sd-scripts v0.10.1: 192 modules of the U-Net
# (every linear layer and 1x1 convolution of its transformers), 72 of the text encoder. Both grow with the rank.
_UNET_NUMBERS, _UNET_MODULES = 423_936, 192
_TEXT_ENCODER_NUMBERS, _TEXT_ENCODER_MODULES = 165_888, 72
# The file's own header: about 142 bytes for each of a module's three tensors, and sd-scripts' notes on the run.
_TENSOR_ENTRY_BYTES, _NOTES_BYTES = 142, 3_832
# Arguments that leave the shapes alone; conv_dim, block_dims and the like don't.
_HARMLESS_NETWORK_ARGS = ("dropout", "rank_dropout", "module_dropout", "loraplus_")
_DEFAULT_DIM = 4  # networks/lora.py:430
# A state holds the weights in float32 and what the optimizer keeps for each: two numbers for AdamW, as for most.
_STATE_NUMBERS_A_WEIGHT = 3
_STATE_NUMBER_BYTES = 4


def checkpoint_bytes(options: Mapping[str, object]) -> int | None:
    """Estimate the bytes of each checkpoint, to about 0.1 %; None where the network isn't known here.

    ``options`` are train_network.py's. Rank 32 in float is 75,614,824 bytes on the real engine.
    """
    dim = _known_dim(options)
    return None if dim is None else _bytes(dim, _number_bytes(options), options)


def state_bytes(options: Mapping[str, object]) -> int | None:
    """Estimate the bytes of a saved state, for AdamW; None where the network isn't known here.

    28.6 MB at rank 4 on the real engine.
    """
    dim = _known_dim(options)
    return None if dim is None else _STATE_NUMBERS_A_WEIGHT * _bytes(dim, _STATE_NUMBER_BYTES, options)


def _known_dim(options: Mapping[str, object]) -> int | None:
    if options.get("network_module") != "networks.lora" or options.get("v2") or options.get("dim_from_weights"):
        return None
    arguments = options.get("network_args") or []
    if not isinstance(arguments, list) or not all(str(word).startswith(_HARMLESS_NETWORK_ARGS) for word in arguments):
        return None
    dim = options.get("network_dim") or _DEFAULT_DIM
    return dim if isinstance(dim, int) else None


def _bytes(dim: int, number_bytes: int, options: Mapping[str, object]) -> int:
    numbers = modules = 0
    if not options.get("network_train_text_encoder_only"):
        numbers, modules = _UNET_NUMBERS, _UNET_MODULES
    if not options.get("network_train_unet_only"):
        numbers, modules = numbers + _TEXT_ENCODER_NUMBERS, modules + _TEXT_ENCODER_MODULES
    return (numbers * dim + modules) * number_bytes + 3 * modules * _TENSOR_ENTRY_BYTES + _NOTES_BYTES


def _number_bytes(options: Mapping[str, object]) -> int:
    precision = options.get("save_precision")
    if precision is None:  # saved as it is trained
        return 2 if options.get("full_fp16") or options.get("full_bf16") else 4
    return 4 if precision == "float" else 2
