"""sd-scripts' file names: built, and read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyke_kohya.engine import filenames
from spyke_kohya.engine.filenames import FileName, parse_file_name


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("spyke-step00000200.safetensors", FileName("spyke", "step", 200)),
        ("spyke-000002.safetensors", FileName("spyke", "epoch", 2)),
        ("spyke.safetensors", FileName("spyke", "final", None)),
        ("at-step123456789.ckpt", FileName("at", "step", 123456789)),
        ("a-step00000004-step00000008.pt", FileName("a-step00000004", "step", 8)),
        ("my.lora v1-step200.safetensors", FileName("my.lora v1-step200", "final", None)),
        (".safetensors", None),
        ("spyke-step00000200-state", None),
        ("spyke.txt", None),
    ],
)
def test_a_file_name_says_what_it_holds(name, meaning):
    assert parse_file_name(name) == meaning


def test_a_training_without_a_name_gets_sd_scripts_own():
    assert filenames.step_file(None, 200) == "at-step00000200.safetensors"
    assert filenames.epoch_file(None, 2) == "epoch-000002.safetensors"
    assert filenames.last_file(None) == "last.safetensors"


def test_a_state_directory_is_named_after_its_checkpoint():
    assert filenames.epoch_state_dir("spyke", 2) == "spyke-000002-state"


@given(st.from_regex(r"[a-z][a-z0-9_. -]{0,20}[a-z]", fullmatch=True), st.integers(1, 10**9))
def test_whatever_is_built_reads_back(name, number):
    assert parse_file_name(filenames.step_file(name, number)) == (name, "step", number)
    assert parse_file_name(filenames.epoch_file(name, number)) == (name, "epoch", number)
    assert parse_file_name(filenames.last_file(name)) == (name, "final", None)
