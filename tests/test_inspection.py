"""A checkpoint is trusted once it has been read: header, sizes, and every number in it."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from spyke_kohya.run.inspection import inspect


def checkpoint(path: Path) -> Path:
    save_file({"a": np.ones((4, 2), np.float32), "b": np.ones(3, np.float16)}, path, {"ss_seed": "42"})
    return path


def written(path: Path, dtype: str, data: bytes) -> Path:
    """A file of one tensor, of a type that numpy doesn't have."""
    header = json.dumps({"t": {"dtype": dtype, "shape": [1], "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_a_whole_file_has_its_size_its_hash_and_no_problem(tmp_path):
    file = checkpoint(tmp_path / "a.safetensors")
    seen = inspect(file)
    assert (seen.problem, seen.size_bytes) == ("", file.stat().st_size)
    assert seen.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    save_file({}, tmp_path / "b.safetensors", {"only": "metadata"})
    assert inspect(tmp_path / "b.safetensors").problem == ""


def test_no_cut_of_a_file_is_whole(tmp_path):
    data = checkpoint(tmp_path / "a.safetensors").read_bytes()
    part = tmp_path / "part.safetensors"
    for length in range(len(data)):
        part.write_bytes(data[:length])
        assert inspect(part).problem, length
    part.write_bytes(data + b"x")
    assert inspect(part).problem == "it is too long"


def test_a_cut_says_how_much_is_there(tmp_path):
    file = checkpoint(tmp_path / "a.safetensors")
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    assert inspect(file).problem == f"it is cut off: {size - 1} of {size} bytes"


@pytest.mark.parametrize("data", [b"", b"short", b"<html>not found</html>", struct.pack("<Q", 2) + b"[]"])
def test_the_hash_is_that_of_all_bytes_whatever_they_are(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    assert inspect(tmp_path / "a.safetensors").sha256 == hashlib.sha256(data).hexdigest()


def test_tensors_that_share_bytes_are_no_checkpoint(tmp_path):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert inspect(tmp_path / "a.safetensors").problem == "its tensors do not follow one another"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_number_that_is_not_finite_spoils_a_file(tmp_path, number, dtype):
    values = np.ones((7, 5), dtype)
    values[6, 4] = number
    file = tmp_path / "a.safetensors"
    save_file({"good": np.ones(3, np.float32), "bad": values}, file)
    seen = inspect(file)
    assert seen.problem == "1 of its 2 tensors hold numbers that are not finite, bad first"
    assert seen.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("number", "finite"), [(0x7F80, False), (0xFF80, False), (0x7FC0, False), (0x7F7F, True), (0x0001, True)]
)
def test_bfloat16_is_judged_by_its_exponent(tmp_path, number, finite):
    file = written(tmp_path / "a.safetensors", "BF16", struct.pack("<3H", 0x3F80, number, 0x3F80))
    assert (inspect(file).problem == "") is finite


@pytest.mark.parametrize(
    ("dtype", "number", "finite"),
    [
        *[("F8_E4M3", number, finite) for number, finite in ((0x7F, False), (0xFF, False), (0x7E, True), (0x78, True))],
        *[
            ("F8_E5M2", number, finite)
            for number, finite in ((0x7C, False), (0xFD, False), (0x7F, False), (0x7B, True))
        ],
    ],
)
def test_8_bit_floats_are_judged_by_their_own_rules(tmp_path, dtype, number, finite):
    """E4M3 has no infinity and one number that is none, E5M2 has both."""
    file = written(tmp_path / "a.safetensors", dtype, bytes([0x38, number, 0x38]))
    assert (inspect(file).problem == "") is finite


def test_a_number_at_the_end_of_a_large_tensor_is_seen(tmp_path):
    values = np.zeros(3_000_001, np.float32)
    values[-1] = np.nan
    save_file({"large": values}, tmp_path / "a.safetensors")
    assert "not finite" in inspect(tmp_path / "a.safetensors").problem


def test_whole_numbers_have_no_infinity(tmp_path):
    save_file({"i": np.full(4, -1, np.int32)}, tmp_path / "a.safetensors")
    assert inspect(tmp_path / "a.safetensors").problem == ""


def test_of_torch_s_own_files_the_archive_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("data.pkl", b"x")
    assert inspect(tmp_path / "a.pt").problem == ""
    (tmp_path / "b.ckpt").write_bytes((tmp_path / "a.pt").read_bytes()[:-10])
    assert "cut off" in inspect(tmp_path / "b.ckpt").problem


@pytest.mark.parametrize("missing", ["directory", "nothing"])
def test_what_is_no_file_can_not_be_read(tmp_path, missing):
    place = tmp_path if missing == "directory" else tmp_path / "a.safetensors"
    assert inspect(place).problem.startswith("can't be read")


@pytest.mark.parametrize("header", [[], 5, {"a": 1}, {"a": {"data_offsets": []}}, {"a": {"data_offsets": "xy"}}])
def test_a_header_of_something_else_is_not_whole(tmp_path, header):
    text = json.dumps(header).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    assert inspect(file).problem.startswith("its header can't be read")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.binary(max_size=64))
def test_no_bytes_raise(tmp_path, data):
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(data)) + data)
    assert isinstance(inspect(file).problem, str)
