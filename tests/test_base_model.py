"""What a base model is, by its header: on small real files of every form."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spyke_kohya.engine.base_model import BaseHeader, inspect_base_model

FAMILIES = {
    "SD1.5": "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "SD2": "cond_stage_model.model.transformer.resblocks.0.ln_1.weight",
    "SDXL": "conditioner.embedders.1.model.ln_final.weight",
    "SD3": "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight",
    "FLUX": "double_blocks.0.img_attn.proj.weight",
    "unknown": "something.else",
}


def safetensors(path: Path, *names: str, cut_bytes: int = 0, **more: object) -> Path:
    entries = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * place, 4 * place + 4]}
        for place, name in enumerate(names)
    }
    header = json.dumps(entries | more).encode()
    path.write_bytes((struct.pack("<Q", len(header)) + header + b"\0" * 4 * len(names))[: -cut_bytes or None])
    return path


def diffusers(directory: Path, index: object, encoder: object) -> Path:
    (directory / "text_encoder").mkdir(parents=True)
    (directory / "model_index.json").write_text(json.dumps(index))
    (directory / "text_encoder" / "config.json").write_text(json.dumps(encoder))
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_is_told_by_a_tensor_s_name(tmp_path, family):
    file = safetensors(tmp_path / "m.safetensors", "first_stage_model.x", FAMILIES[family], __metadata__={"a": "b"})
    assert inspect_base_model(file) == BaseHeader("safetensors", family)


def test_an_sdxl_model_also_has_a_first_text_encoder(tmp_path):
    names = ("conditioner.embedders.0.transformer.text_model.x", FAMILIES["SDXL"])
    assert inspect_base_model(safetensors(tmp_path / "m.safetensors", *names)).family == "SDXL"


def test_a_file_that_is_cut_short_is_broken(tmp_path):
    header = inspect_base_model(safetensors(tmp_path / "m.safetensors", FAMILIES["SD1.5"], cut_bytes=1))
    assert header.form == "broken"
    assert "cut short" in header.problem


def test_a_missing_file_and_a_name_no_file_can_have(tmp_path):
    assert inspect_base_model(tmp_path / "none.safetensors").form == "missing"
    assert inspect_base_model(tmp_path / ("x" * 5000)).form == "missing"


def test_a_pickle_is_not_opened(tmp_path):
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert inspect_base_model(file) == BaseHeader("pickle", "unknown")


@pytest.mark.parametrize(
    ("index", "encoder", "family"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, {"hidden_size": 768}, "SD1.5"),
        ({"_class_name": "StableDiffusionPipeline"}, {"hidden_size": 1024}, "SD2"),
        ({"_class_name": "StableDiffusionXLPipeline"}, {"hidden_size": 768}, "SDXL"),
        ({"_class_name": "FluxPipeline"}, {"hidden_size": 768}, "FLUX"),
    ],
)
def test_a_diffusers_directory(tmp_path, index, encoder, family):
    assert inspect_base_model(diffusers(tmp_path / "m", index, encoder)) == BaseHeader("diffusers", family)


@pytest.mark.parametrize("index", [[], "text", {"_class_name": ["list"]}])
def test_a_directory_with_something_else_in_its_index_is_broken(tmp_path, index):
    assert inspect_base_model(diffusers(tmp_path / "m", index, {})).form == "broken"


def test_an_empty_directory_is_broken(tmp_path):
    header = inspect_base_model(tmp_path)
    assert header.form == "broken"
    assert "not a diffusers model" in header.problem


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["data_offsets", "x", "__metadata__"]), inner),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary())
@example(b"")
@example(b"[" * 100_000)
@example(b'{"a": {"data_offsets": []}}')
@example(b'{"a": {"data_offsets": "xy"}}')
def test_no_header_raises(tmp_path, header):
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert inspect_base_model(file).form in ("safetensors", "broken")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.binary(max_size=64))
def test_no_bytes_raise(tmp_path, data):
    file = tmp_path / "m.safetensors"
    file.write_bytes(data)
    assert inspect_base_model(file).form in ("safetensors", "broken")
