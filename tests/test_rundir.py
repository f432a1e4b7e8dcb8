"""The run directory: its names, and that what is read there is never half."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from spyke_kohya.errors import PresetError
from spyke_kohya.record.rundir import RunDirectory, not_before

NOW = datetime(2026, 2, 20, 10, 15, 30)


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory.named(tmp_path / "output", "spyke_plasma_v1", NOW)
    directory.create()
    return directory


def test_every_file_has_its_place():
    run = RunDirectory.named(Path("output/loras/spyke"), "spyke_plasma_v1", NOW)
    assert run.path == Path("output/loras/spyke/runs/20260220-101530-spyke_plasma_v1")
    assert run.output_dir == Path("output/loras/spyke")
    files = [run.record, run.command, run.accelerate_config, run.dataset_config, run.console, run.losses, run.events]
    assert [file.name for file in (*files, run.tensorboard)] == [
        "run.json",
        "command.sh",
        "accelerate.yaml",
        "dataset.toml",
        "console.log",
        "losses.csv",
        "events.jsonl",
        "tensorboard",
    ]
    assert {file.parent for file in files} == {run.path}


def test_it_can_be_seen_from_anywhere(tmp_path):
    run = RunDirectory.named(Path("output"), "x", NOW)
    assert run.under(tmp_path).path == tmp_path / run.path


def test_a_run_directory_is_made_once(run):
    assert run.path.is_dir()
    with pytest.raises(PresetError, match="already") as caught:
        run.create()
    assert "wait a second" in caught.value.remedy


def test_a_file_in_its_place_is_named(tmp_path):
    run = RunDirectory.named(tmp_path, "x", NOW)
    run.path.parent.mkdir()
    run.path.write_text("")
    with pytest.raises(PresetError, match="already") as caught:
        run.create()
    assert "move that file" in caught.value.remedy


@pytest.mark.parametrize("blocked", ["output", "output/runs"])
def test_an_output_directory_that_can_not_be_written(tmp_path, blocked):
    place = tmp_path / blocked
    place.parent.mkdir(exist_ok=True)
    place.write_text("a file where a directory should be")
    with pytest.raises(PresetError, match="can't be written") as caught:
        RunDirectory.named(tmp_path / "output", "x", NOW).create()
    assert "output_dir" in caught.value.remedy


def test_events_are_a_line_each(run):
    run.append_event({"event": "a", "text": "two\nlines"})
    run.append_event({"event": "b"})
    lines = run.events.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"event": "a", "text": "two\nlines"}, {"event": "b"}]


@pytest.mark.parametrize(
    ("standing", "named"),
    [
        ([], "20260220-101530-x"),
        (["20260230-101010-x"], "20260220-101530-x"),
        (["20260230-101010-x", "20260220-101530-x"], "20260220-101531-x"),
        (["20991231-235959-x"], "21000101-000000-x"),
        (["20991231-235959-x", "21000101-000000-x"], "21000101-000001-x"),
        (["99991231-235959-x"], "20260220-101530-x"),
    ],
)
def test_a_run_is_named_after_the_newest_whose_name_is_a_time(tmp_path, standing, named):
    for name in standing:
        (tmp_path / "runs" / name).mkdir(parents=True)
    run = RunDirectory.named(tmp_path, "x", not_before(tmp_path, NOW))
    assert run.path.name == named
    run.create()
