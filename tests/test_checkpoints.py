"""Checkpoints found on a real disk: small real safetensors files, and files that only look like some."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from spyke_kohya.errors import UsageError
from spyke_kohya.files import sha256_of
from spyke_kohya.rank.checkpoints import OVERWRITTEN, find_checkpoints, merged_facts, one_per_step, place, recorded
from spyke_kohya.rank.result import Candidate
from spyke_kohya.rank.training_info import Facts, facts_from_metadata, facts_from_run
from spyke_kohya.record.record import Record, parse_record


def save(path, **metadata):
    weights = {"lora_unet_a.lora_down.weight": np.zeros((1, 4), dtype=np.float32)}
    save_file(weights, path, metadata={key: str(value) for key, value in metadata.items()} or None)


def test_the_step_is_the_one_in_the_metadata(tmp_path):
    save(tmp_path / "spyke-000002.safetensors", ss_steps=920, ss_epoch=2, ss_output_name="spyke")
    save(tmp_path / "spyke-step00000200.safetensors", ss_steps=200, ss_epoch=0)
    save(tmp_path / "spyke.safetensors", ss_steps=1840)
    found = find_checkpoints(tmp_path)
    assert [(one.step, one.kind) for one in found] == [(200, "step"), (920, "epoch"), (1840, "final")]


def test_without_metadata_the_name_gives_the_step_and_the_training_the_rest(tmp_path):
    for name in ("spyke-step00000200", "spyke-000002", "spyke"):
        save(tmp_path / f"{name}.safetensors")
    found = find_checkpoints(tmp_path)
    assert [one.step for one in found] == [200, None, None]
    assert [one.step for one in place(found, 460, 1840)] == [200, 920, 1840]
    unplaced = place(found, None, None)
    assert [one.readable for one in unplaced] == [True, False, False]
    assert "its step is not known" in unplaced[1].problem


def test_an_output_name_that_ends_like_an_epoch_is_told_from_one_by_its_metadata(tmp_path):
    save(tmp_path / "spyke-000002.safetensors", ss_steps=100, ss_output_name="spyke-000002")
    assert [(one.output_name, one.kind) for one in find_checkpoints(tmp_path)] == [("spyke-000002", "final")]


def test_files_that_cannot_be_read_are_named_with_their_reason(tmp_path):
    save(tmp_path / "spyke.safetensors", ss_steps=4)
    whole = (tmp_path / "spyke.safetensors").read_bytes()
    (tmp_path / "spyke-step00000001.safetensors").write_bytes(whole[:-3])
    (tmp_path / "spyke-step00000002.safetensors").write_bytes(b"")
    (tmp_path / "spyke-step00000003.safetensors").write_text("<html>not found</html>")
    (tmp_path / "spyke-step00000004.safetensors").mkdir()
    found = find_checkpoints(tmp_path)
    assert [one.file.name for one in found if one.readable] == ["spyke.safetensors"]
    assert all("not a readable safetensors file" in one.problem for one in found if not one.readable)
    assert len(found) == 5


def test_two_trainings_in_one_directory_have_to_be_told_apart(tmp_path):
    save(tmp_path / "one.safetensors", ss_steps=4)
    save(tmp_path / "two-step00000002.safetensors", ss_steps=2)
    with pytest.raises(UsageError, match="checkpoints of 2 trainings here: one, two") as refused:
        find_checkpoints(tmp_path)
    assert "--name one" in refused.value.remedy
    assert [one.step for one in find_checkpoints(tmp_path, "two")] == [2]
    assert find_checkpoints(tmp_path, "three") == []


def test_the_metadata_tell_how_the_losses_are_to_be_read(tmp_path):
    datasets = json.dumps([{"batch_size_per_device": 4}, {"batch_size_per_device": 2}])
    save(tmp_path / "a-step00000002.safetensors", ss_steps=2, ss_num_batches_per_epoch=12, ss_min_snr_gamma="5.0")
    save(tmp_path / "a.safetensors", ss_steps=4, ss_gradient_accumulation_steps=2, ss_datasets=datasets)
    assert merged_facts(find_checkpoints(tmp_path)) == Facts(None, 12, 2, 2, 5.0)


@pytest.mark.parametrize("datasets", ["None", "[", "{}", "[1]", '[{"batch_size_per_device": "many"}]'])
def test_odd_metadata_read_as_unknown(datasets):
    odd = {"ss_datasets": datasets, "ss_num_batches_per_epoch": "0", "ss_min_snr_gamma": "None"}
    assert facts_from_metadata(odd) == Facts()


def test_a_run_s_record_may_hold_anything_or_nothing():
    assert facts_from_run(Record()) == Facts()
    assert facts_from_run(parse_record({"plan": None, "settings": [], "output_name": 3})) == Facts()
    record = {
        "output_name": "spyke",
        "plan": {"batches_per_epoch": 460, "gradient_accumulation_steps": 1},
        "settings": {"train_batch_size": 1, "min_snr_gamma": None},
    }
    assert facts_from_run(parse_record(record)) == Facts("spyke", 460, 1, 1, None)


def test_the_record_of_a_run_knows_true_steps_and_problems(tmp_path):
    for name, step in (("a-step00000013", 5), ("a-step00000010", 10), ("a", 16)):
        save_file({"x": np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors", {"ss_steps": str(step)})
    (tmp_path / "kept").mkdir()
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "kept" / "a-step00000010.safetensors", {"ss_output_name": "a"})
    size = (tmp_path / "a.safetensors").stat().st_size
    entries = [
        {"file": "a-step00000013.safetensors", "step": 13, "problem": ""},
        {"file": "a-step00000010.safetensors", "step": 10, "problem": "replaced"},
        {"file": "a.safetensors", "step": 24, "problem": ""},
        {"file": "gone.safetensors", "step": 30, "problem": ""},
    ]
    record = [entry | {"size_bytes": (tmp_path / entry["file"]).stat().st_size} for entry in entries[:3]]
    record += [entries[3] | {"size_bytes": size}]
    elsewhere = tmp_path / "kept" / "a-step00000010.safetensors"
    record += [{"file": "kept/a-step00000010.safetensors", "step": 18, "problem": ""} | _size_of(elsewhere)]
    known = recorded(find_checkpoints(tmp_path, "a"), parse_record({"checkpoints": record}), tmp_path)
    assert [(one.file.relative_to(tmp_path).as_posix(), one.step, one.problem) for one in known] == [
        ("a-step00000010.safetensors", 10, "replaced"),
        ("a-step00000013.safetensors", 13, ""),
        ("kept/a-step00000010.safetensors", 18, ""),
        ("a.safetensors", 24, ""),
    ]


def overwritten(tmp_path, **entry):
    """Which of a run's two checkpoints are other files than those that it saved, and what is ranked of them."""
    for step in (13, 26):
        save(tmp_path / f"a-step{step:08d}.safetensors", ss_steps=5)
    file = tmp_path / "a-step00000013.safetensors"
    about = {"file": file.name, "step": 13, "problem": "", **_size_of(file), "sha256": sha256_of(file)}
    record = {"checkpoints": [about | entry, {"odd": 1}], "ended_at": "2020-01-01T00:00:00"}
    found = recorded(find_checkpoints(tmp_path, "a"), parse_record(record), tmp_path)
    return [one.step for one in found if one.problem == OVERWRITTEN], one_per_step(found)


def test_a_file_that_is_not_the_one_that_was_recorded_is_not_that_checkpoint(tmp_path):
    assert overwritten(tmp_path)[0] == []
    assert overwritten(tmp_path)[1][-1].sha256 == sha256_of(tmp_path / "a-step00000013.safetensors")
    for changed in ({"size_bytes": 1}, {"sha256": "0" * 64}):
        found, candidates = overwritten(tmp_path, **changed)
        assert found == [13]
        assert candidates[-1] == Candidate(13)


def test_a_record_without_hashes_or_lists_is_believed_by_size(tmp_path):
    assert overwritten(tmp_path, sha256="")[0] == []
    save(tmp_path / "b.safetensors", ss_steps=5)
    (one,) = recorded(find_checkpoints(tmp_path, "b"), parse_record({"checkpoints": None}), tmp_path)
    assert (one.step, one.problem) == (5, "")


def _size_of(file):
    return {"size_bytes": file.stat().st_size}
