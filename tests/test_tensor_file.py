"""A safetensors header, on real files: whole, cut, too long, and of everything else; and the numbers behind it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from spyke_kohya.formats.tensor_file import Tensor, TensorFileError, parse_header, read_header, read_values

TENSORS = {
    "a": np.array([[1.5, -2.0, 3.0], [0.0, 65504.0, 6e-8]], np.float16),
    "b": np.array(0.1, np.float32),
    "c": np.linspace(-1, 1, 5),
    "none": np.zeros((0, 4), np.float32),
    "whole": np.arange(3, dtype=np.int64),
}


def whole(path: Path) -> Path:
    save_file(TENSORS, path, {"ss_steps": "4"})
    return path


def written(path: Path, entries: object, data: bytes = b"") -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape or [(end - start) // 4], "data_offsets": [start, end]}


def values(file: Path) -> dict[str, np.ndarray]:
    """Every tensor that is no whole number."""
    header = read_header(file)
    with file.open("rb") as stream:
        return {name: read_values(stream, header, name) for name in header.tensors if name != "whole"}


def is_loadable(file: Path) -> bool:
    try:
        with safe_open(file, "numpy"):
            return True
    except SafetensorError:
        return False


def test_a_whole_file_tells_its_metadata_and_where_its_tensors_lie(tmp_path):
    file = whole(tmp_path / "x.safetensors")
    header = read_header(file)
    assert header.metadata == {"ss_steps": "4"}
    assert header.file_bytes == file.stat().st_size
    assert header.tensors.keys() == TENSORS.keys()
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {k: v.shape for k, v in TENSORS.items()}
    for name, tensor in header.tensors.items():
        begin = header.data_start
        assert file.read_bytes()[begin + tensor.start : begin + tensor.end] == TENSORS[name].tobytes()


def test_a_file_without_metadata_or_without_tensors_is_whole(tmp_path):
    assert read_header(written(tmp_path / "x", {"t": entry(0, 4)}, b"1234")).metadata == {}
    assert read_header(written(tmp_path / "x", {"__metadata__": None})).tensors == {}
    assert read_header(written(tmp_path / "x", {})).file_bytes == 10


def test_no_cut_of_a_file_is_whole_and_each_says_why(tmp_path):
    data = whole(tmp_path / "x.safetensors").read_bytes()
    begin = read_header(tmp_path / "x.safetensors").data_start
    reasons = {
        0: "the file ends before it",
        7: "the file ends before it",
        8: "it would be longer than the file",
        begin - 1: "it would be longer than the file",
        begin: f"it is cut short: it has {begin} bytes, and its header promises {len(data)}",
        len(data) - 1: f"it is cut short: it has {len(data) - 1} bytes, and its header promises {len(data)}",
    }
    for length in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(TensorFileError, match=reasons.get(length)):
            read_header(tmp_path / "cut")


def test_bytes_after_the_last_tensor_are_too_many(tmp_path):
    file = written(tmp_path / "x", {"t": entry(0, 4)}, b"12345")
    size = file.stat().st_size
    with pytest.raises(
        TensorFileError, match=f"it is too long: it has {size} bytes, and its header promises {size - 1}"
    ):
        read_header(file)
    assert not is_loadable(file)


@pytest.mark.parametrize("length", [3, 2**27, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_not_read(tmp_path, length):
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(TensorFileError, match="it would be longer than the file"):
        read_header(tmp_path / "x")


def test_a_header_longer_than_the_library_takes_is_not_read_either(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(100_000_009)
    with pytest.raises(TensorFileError, match="header can't be read"):
        read_header(tmp_path / "sparse")
    assert not is_loadable(tmp_path / "sparse")


@pytest.mark.parametrize(
    "spans", [[(0, 4), (0, 4)], [(0, 8), (4, 12)], [(0, 4), (8, 12)], [(4, 12)], [(0, 12), (4, 8)]]
)
def test_tensors_that_overlap_or_leave_a_gap_are_refused_as_by_the_library(tmp_path, spans):
    file = written(tmp_path / "x", {f"t{i}": entry(*span) for i, span in enumerate(spans)}, bytes(max(spans)[1]))
    with pytest.raises(TensorFileError, match="do not follow one another"):
        read_header(file)
    assert not is_loadable(file)


def test_tensors_may_be_named_in_any_order(tmp_path):
    entries = {"b": entry(8, 12), "a": entry(0, 8), "empty": entry(8, 8)}
    file = written(tmp_path / "x", entries, bytes(12))
    assert list(read_header(file).tensors) == ["b", "a", "empty"]
    assert is_loadable(file)


@pytest.mark.parametrize("text", [b"", b"<html>not found</html>", b"{", b"\xff{}", b"[" * 100_000, b"9" * 5000])
def test_what_is_not_json_is_not_safetensors(tmp_path, text):
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(TensorFileError, match="its header can't be read: it is not safetensors'"):
        read_header(tmp_path / "x")


SOUND = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        5,
        {"t": 1},
        {"t": {}},
        {"t": SOUND | {"dtype": 5}},
        {"t": SOUND | {"shape": 1}},
        {"t": SOUND | {"shape": [-1]}},
        {"t": SOUND | {"shape": ["1"]}},
        {"t": SOUND | {"data_offsets": []}},
        {"t": SOUND | {"data_offsets": "04"}},
        {"t": SOUND | {"data_offsets": [4, 0]}},
        {"t": SOUND | {"data_offsets": [-4, 0]}},
        {"t": SOUND | {"data_offsets": [0.0, 4.0]}},
        {"t": SOUND, "__metadata__": {"ss_steps": 4}},
        {"t": SOUND, "__metadata__": "text"},
    ],
)
def test_json_of_something_else_is_not_safetensors(tmp_path, header):
    file = written(tmp_path / "x", header, b"1234")
    with pytest.raises(TensorFileError, match="its header can't be read: it is not safetensors'"):
        read_header(file)
    assert not is_loadable(file)


def test_what_can_not_be_opened_says_why(tmp_path):
    with pytest.raises(TensorFileError, match="Is a directory"):
        read_header(tmp_path)
    with pytest.raises(TensorFileError, match="No such file"):
        read_header(tmp_path / "none")


def test_a_stream_is_left_where_the_tensors_begin(tmp_path):
    file = written(tmp_path / "x", {"t": entry(0, 4)}, b"1234")
    with file.open("rb") as stream:
        header = parse_header(stream.read, file.stat().st_size)
        assert stream.read() == b"1234"
    assert header.tensors == {"t": Tensor("F32", (1,), 0, 4)}


def test_numbers_are_those_that_were_saved(tmp_path):
    for name, found in values(whole(tmp_path / "x")).items():
        assert (found.dtype, found.shape) == (TENSORS[name].dtype, TENSORS[name].shape)
        assert np.array_equal(found, TENSORS[name])


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    exact = np.array([[1.0, -2.5], [2.0**-126, np.inf]], np.float32)
    halves = (exact.view(np.uint32) >> 16).astype("<u2").tobytes()
    found = values(written(tmp_path / "x", {"t": entry(0, 8, "BF16", [2, 2])}, halves))["t"]
    assert found.dtype == np.float32
    assert np.array_equal(found, exact)
    scalar = {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]}
    assert values(written(tmp_path / "y", {"t": scalar}, b"\xc0\x3f"))["t"] == np.array(1.5)


@pytest.mark.parametrize("shape", [[1], [3], [2, 2], [2**70], [0, 2**70], [1] * 80])
def test_numbers_that_do_not_fit_their_shape_are_refused(tmp_path, shape):
    file = written(tmp_path / "x", {"t": entry(0, 8, "F32", shape)}, bytes(8))
    with pytest.raises(TensorFileError, match="t has 8 bytes, which are not those of its shape"):
        values(file)


def test_a_file_cut_since_its_header_was_read_is_refused(tmp_path):
    file = whole(tmp_path / "x")
    header = read_header(file)
    file.write_bytes(file.read_bytes()[: header.data_start])
    with file.open("rb") as stream, pytest.raises(TensorFileError, match="c has 0 bytes"):
        read_values(stream, header, "c")


def test_other_types_are_refused_by_name(tmp_path):
    file = whole(tmp_path / "x")
    with file.open("rb") as stream, pytest.raises(TensorFileError, match="whole is of the type I64"):
        read_values(stream, read_header(file), "whole")


def read_all(file: Path) -> None:
    """Header and numbers; TensorFileError is the one error that may come."""
    with suppress(TensorFileError):
        values(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.data())
def test_bytes_cut_or_flipped_anywhere_raise_nothing_else(tmp_path, data):
    spoiled = bytearray(whole(tmp_path / "x.safetensors").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(spoiled) - 1), max_size=4)):
        spoiled[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / "y").write_bytes(spoiled[: data.draw(st.integers(0, len(spoiled)) | st.none())])
    read_all(tmp_path / "y")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.binary(max_size=64))
@example(b"{}")
def test_no_bytes_raise_anything_else(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    read_all(tmp_path / "x")
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(data)) + data)
    read_all(tmp_path / "x")


def test_who_reads_headers_only_waits_for_no_numpy():
    check = "import sys, spyke_kohya.run.inspection, spyke_kohya.engine.base_model; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
