"""The size of a LoRA's change, from its file alone, against multiplying it out."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from spyke_kohya.errors import NothingToRank
from spyke_kohya.rank.norms import blown_up, weight_norm


def layer(rng, name, rank, inputs, outputs, alpha, kernel=()):
    return {
        f"{name}.lora_down.weight": rng.standard_normal((rank, inputs, *kernel)).astype(np.float32),
        f"{name}.lora_up.weight": rng.standard_normal((outputs, rank, *(1 for _ in kernel))).astype(np.float32),
        f"{name}.alpha": np.array(alpha, dtype=np.float32),
    }


def multiplied_out(tensors):
    names = {name.partition(".")[0] for name in tensors}
    squares = 0.0
    for name in names:
        down, up = (tensors[f"{name}.lora_{part}.weight"].astype(np.float64) for part in ("down", "up"))
        rank = len(down)
        change = up.reshape(-1, rank) @ down.reshape(rank, -1) * (tensors[f"{name}.alpha"] / rank)
        squares += (change**2).sum()
    return np.sqrt(squares)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return layer(rng, "lora_unet_a", 4, 30, 20, 2.0) | layer(rng, "lora_te_b", 8, 16, 12, 8.0, kernel=(3, 3))


def test_the_norm_is_that_of_the_whole_change(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    found = weight_norm(tmp_path / "a.safetensors")
    assert found.total == pytest.approx(multiplied_out(tensors), rel=1e-6)
    assert found.largest == "lora_te_b"


def test_half_precision_reads_as_well(tmp_path, tensors):
    save_file({name: value.astype(np.float16) for name, value in tensors.items()}, tmp_path / "a.safetensors")
    assert weight_norm(tmp_path / "a.safetensors").total == pytest.approx(multiplied_out(tensors), rel=1e-3)


def test_bfloat16_reads_as_well_although_numpy_has_none(tmp_path, tensors):
    halves = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in tensors.items()}
    header, data = {}, b""
    for name, value in halves.items():
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert weight_norm(tmp_path / "a.safetensors").total == pytest.approx(multiplied_out(tensors), rel=2e-2)


def test_a_file_that_is_no_lora_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"short")
    with pytest.raises(NothingToRank, match="can't be read"):
        weight_norm(tmp_path / "a.safetensors")
    save_file({"a": np.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(NothingToRank, match="no LoRA"):
        weight_norm(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "odd",
    [
        {"lora_unet_a.lora_down.weight": np.zeros((0, 3)), "lora_unet_a.lora_up.weight": np.zeros((3, 0))},
        {"lora_unet_a.lora_down.weight": np.zeros((2, 3))},
        {
            "lora_unet_a.lora_down.weight": np.zeros((2, 3)),
            "lora_unet_a.lora_up.weight": np.zeros((3, 2)),
            "lora_unet_a.alpha": np.ones(2),
        },
    ],
)
def test_a_lora_of_odd_shapes_is_refused(tmp_path, odd):
    save_file(odd, tmp_path / "a.safetensors")
    with pytest.raises(NothingToRank, match="can't be read"):
        weight_norm(tmp_path / "a.safetensors")


def test_growth_is_no_blow_up_and_a_leap_is():
    assert blown_up([0.1, 1.0, 1.5, 1.8, 2.0]) == []
    assert blown_up([0.1, 1.0, 1.5, 9.0, 9.5]) == [3]
    assert blown_up([0.1, 1.0, 3.0]) == []
    assert blown_up([0.1, 1.0, 3.01]) == [2]
    assert blown_up([0.1, 1.0, float("nan"), 9.0]) == [2]
