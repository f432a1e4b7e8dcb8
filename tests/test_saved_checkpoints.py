"""Which checkpoints a run really left: whole, and its own."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from spyke_kohya.run.checkpoints import SavedCheckpoint, check_checkpoints, is_whole


def checkpoint(path: Path, *, at: float = 1000.0) -> Path:
    save_file({"a": np.ones((4, 2), np.float32), "b": np.ones(3, np.float16)}, path, {"ss_seed": "42"})
    os.utime(path, (at, at))
    return path


def test_files_of_this_run_are_told_from_what_is_missing_old_or_cut(tmp_path):
    names = ("whole", "missing", "old", "cut")
    whole, missing, old, cut = ((step, tmp_path / f"{name}.safetensors") for step, name in enumerate(names, 1))
    checkpoint(whole[1])
    checkpoint(old[1], at=900.0)
    cut[1].write_bytes(checkpoint(cut[1]).read_bytes()[:-1])
    saved, lacking = check_checkpoints([whole, missing, old, cut], newer_than=999.5)
    assert saved == [SavedCheckpoint(1, "whole.safetensors", whole[1].stat().st_size)]
    assert lacking == [missing[1], old[1], cut[1]]


def test_a_whole_file_with_and_without_tensors(tmp_path):
    assert is_whole(checkpoint(tmp_path / "a.safetensors"))
    save_file({}, tmp_path / "b.safetensors", {"only": "metadata"})
    assert is_whole(tmp_path / "b.safetensors")


def test_no_cut_of_a_file_is_whole(tmp_path):
    data = checkpoint(tmp_path / "a.safetensors").read_bytes()
    part = tmp_path / "part.safetensors"
    for length in range(len(data)):
        part.write_bytes(data[:length])
        assert not is_whole(part), length
    part.write_bytes(data + b"x")
    assert not is_whole(part)


def test_a_directory_is_no_checkpoint(tmp_path):
    assert not is_whole(tmp_path)


@pytest.mark.parametrize("header", [[], 5, {"a": 1}, {"a": {"data_offsets": []}}, {"a": {"data_offsets": "xy"}}])
def test_a_header_of_something_else_is_not_whole(tmp_path, header):
    text = json.dumps(header).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    assert not is_whole(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.binary(max_size=64))
def test_no_bytes_raise(tmp_path, data):
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(data)) + data)
    assert is_whole(file) in (True, False)
