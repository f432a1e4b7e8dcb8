"""All runs in a table, two compared, what may be deleted, and a live run followed from another terminal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from spyke_kohya.engine.events import CheckpointAnnounced, Step
from spyke_kohya.errors import PresetError
from spyke_kohya.process.process_table import mark_of
from spyke_kohya.rank.logs import read_losses
from spyke_kohya.record.exclusive import output_lock
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.record.runs import deletable, delete, find_runs
from spyke_kohya.repeat.replay import differences
from spyke_kohya.report.overview import summarize
from spyke_kohya.run.watch import follow
from tests.commands import PROJECT, spyke
from tests.recorded import record_run

NOW = datetime(2026, 3, 1)
TRANSCRIPT = Path(__file__).parent / "data" / "transcripts" / "seed_reg.raw"


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    first = record_run(tmp_path, "first", stamp="20260220-101530", dip_at=60)
    second = record_run(tmp_path, "second", stamp="20260221-101530", dip_at=100)
    change(second, learning_rate=2e-4, seed=7)
    (second / "dataset.toml").write_text("[[datasets]]\nresolution = 96\n")
    return [first, second]


def change(run: Path, **settings: object) -> None:
    record = json.loads((run / "run.json").read_text())
    record["settings"] |= settings
    (run / "run.json").write_text(json.dumps(record))


def set_status(run: Path, status: str) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": status}))


def test_runs_are_listed_newest_first(tmp_path, runs):
    assert [run.path for run in find_runs(tmp_path)] == runs[::-1]
    listed = spyke("runs", cwd=tmp_path).stdout.splitlines()
    told = summarize(RunDirectory(runs[1]))
    assert listed[1].split() == [
        "20260221-101530-second", "finished", "120", "2:00", "1",
        f"{told.lowest_loss:.4g}", "at", str(told.lowest_step), str(told.chosen_step),
    ]  # fmt: skip
    assert listed[2].split()[0] == runs[0].name


def test_a_run_that_cannot_be_read_is_listed_too(tmp_path, runs):
    (runs[0] / "run.json").write_text("{")
    assert summarize(RunDirectory(runs[0])).status == "unreadable"
    assert spyke("runs", tmp_path).returncode == 0


def test_two_runs_are_compared_by_what_they_were_asked(runs):
    found = {one.key: (one.first, one.second) for one in differences(*map(RunDirectory, runs))}
    assert found == {
        "train_network.learning_rate": (1e-4, 2e-4),
        "train_network.seed": (None, 7),
        "dataset.datasets[0].resolution": (64, 96),
    }


def test_a_comparison_has_a_picture_of_both(runs):
    done = spyke("runs", *runs)
    assert done.returncode == 0, done.stderr
    assert "train_network.learning_rate" in done.stdout
    assert done.stdout.count("cannot show generalisation") == 2
    with Image.open(runs[1] / f"against-{runs[0].name}.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=10**6)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_a_picture_that_cannot_be_written_is_said(tmp_path, runs):
    for words in (["runs", *runs], ["rank", runs[0]]):
        done = spyke(*words, "--png", tmp_path / "nowhere" / "x.png")
        assert (done.returncode, "--png FILE" in done.stderr) == (2, True), done.stderr


def test_comparing_with_what_is_no_run_is_refused(tmp_path, runs):
    assert spyke("runs", runs[0], tmp_path).returncode == 3
    assert spyke("runs", runs[0], runs[1], tmp_path).returncode == 2


def make_state(output_dir: Path, name: str, age: int) -> Path:
    state = output_dir / f"{name}-state"
    state.mkdir()
    (state / "optimizer.bin").write_bytes(b"x" * 1000)
    os.utime(state, (1_700_000_000 - age,) * 2)
    return state


@pytest.mark.parametrize(
    ("status", "goes"), [("finished", ["old", "new"]), ("failed", ["old"]), ("interrupted", ["old"]), ("running", [])]
)
def test_only_states_that_no_run_needs_may_go(tmp_path, runs, status, goes):
    set_status(runs[0], status)
    old = make_state(runs[0].parents[1], "first-000001", 100)
    new = make_state(runs[0].parents[1], "first-000002", 0)
    found = deletable(tmp_path, tmp_path / "scratch", NOW)
    assert [item.path for item in found] == [{"old": old, "new": new}[which] for which in goes]
    assert all(item.size_bytes == 1000 for item in found)


def test_the_states_of_a_resumed_run_go_too(tmp_path, runs):
    first = make_state(runs[0].parents[1], "first-000001", 100)
    (runs[0] / "segment").mkdir()
    newer = make_state(runs[0] / "segment", "first-000002", 0)
    set_status(runs[0], "interrupted")
    assert [item.path for item in deletable(tmp_path, tmp_path / "scratch", NOW)] == [first]
    set_status(runs[0], "finished")
    assert [item.path for item in deletable(tmp_path, tmp_path / "scratch", NOW)] == [first, newer]


def test_a_failed_run_keeps_its_newest_state_whatever_else_finished_there(tmp_path):
    failed = record_run(tmp_path, "first", stamp="20260220-101530", status="failed")
    output = failed.parents[1]
    other = record_run(tmp_path, "second", stamp="20260221-101530")
    shutil.move(other, failed.parent)
    record = json.loads((failed / "run.json").read_text())
    old, newest, half = (make_state(output, f"first-00000{n}", 0) for n in (1, 2, 3))
    states = [{"epoch": n, "step": 40 * n, "path": str(path)} for n, path in ((1, old), (2, newest))]
    (failed / "run.json").write_text(json.dumps(record | {"states": states}))
    done = make_state(output, "second-000001", 0)
    own = make_state(output, "notes-on-my", 0)
    assert [item.path for item in deletable(tmp_path, tmp_path / "scratch", NOW)] == [old, done]
    assert all(path.is_dir() for path in (newest, half, own))


def test_a_run_that_was_gone_on_with_keeps_what_the_later_one_needs(tmp_path, runs):
    output = runs[0].parents[1]
    set_status(runs[0], "failed")
    state = make_state(output, "first-000001", 0)
    resumed = shutil.copytree(runs[0], runs[0].with_name("20260222-101530-first"))
    record = json.loads((resumed / "run.json").read_text())
    record["resumed_from"] = {"run": runs[0].name, "step": 40}
    record["states"] = [{"epoch": 1, "step": 40, "path": str(state)}]
    (resumed / "run.json").write_text(json.dumps(record))
    assert deletable(output, tmp_path / "scratch", NOW) == []
    set_status(resumed, "finished")
    assert [item.path for item in deletable(output, tmp_path / "scratch", NOW)] == [state]


def test_nothing_goes_while_a_run_holds_the_directory_or_its_record_can_not_be_read(tmp_path, runs):
    state = make_state(runs[0].parents[1], "first-000001", 0)
    with output_lock(runs[0].parents[1]):
        assert deletable(tmp_path, tmp_path / "scratch", NOW) == []
    (runs[0] / "run.json").write_text("{")
    assert deletable(tmp_path, tmp_path / "scratch", NOW) == []
    assert state.is_dir()


def test_a_state_elsewhere_and_a_link_are_left_alone(tmp_path, runs):
    elsewhere = make_state(tmp_path, "first-000001", 0)
    (runs[0].parents[1] / "first-000002-state").symlink_to(elsewhere)
    record = json.loads((runs[0] / "run.json").read_text())
    states = [{"epoch": 1, "step": 40, "path": str(elsewhere)}]
    (runs[0] / "run.json").write_text(json.dumps(record | {"states": states}))
    assert deletable(tmp_path, tmp_path / "scratch", NOW) == []


@pytest.mark.parametrize(
    "text", ["1,1,1\n99999999999999999999,1,1\n", "1,1," + "1" * 200_000 + "\n2,1,1\n", '1,1,1\n"2,1,1\n3,1,1\n']
)
def test_damaged_losses_are_named_and_hide_no_other_run(tmp_path, runs, text):
    (runs[0] / "losses.csv").write_text(f"step,loss,avr_loss\n{text}")
    done = spyke("runs", tmp_path)
    assert (done.returncode, done.stdout.count("finished")) == (0, 2), done.stderr
    assert f"{runs[0].name}: not read: losses.csv: line " in done.stdout
    assert spyke("rank", runs[0]).returncode == 7
    assert spyke("report", runs[0]).returncode == 0


def test_a_damaged_event_file_costs_itself(tmp_path, runs):
    (runs[0] / "losses.csv").unlink()
    (runs[0] / "tensorboard").mkdir()
    events = TRANSCRIPT.with_name("two_epochs.tfevents").read_bytes()
    (runs[0] / "tensorboard/events.out.tfevents.1").write_bytes(events)
    (runs[0] / "tensorboard/events.out.tfevents.2").write_bytes(events[:100] + b"\xff" * 8 + events[100:])
    os.mkfifo(runs[0] / "tensorboard/events.out.tfevents.3")
    done = spyke("runs", tmp_path)
    assert (done.returncode, done.stdout.count("finished")) == (0, 2), done.stderr
    assert read_losses(runs[0] / "tensorboard").problems[0].startswith("events.out.tfevents.2: not a TensorBoard event")


def test_a_run_whose_wrapper_was_killed_is_stale_and_not_running(tmp_path, runs):
    """On record it runs for ever: the wrapper that would have said otherwise is gone."""
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    own = mark_of(os.getpid())
    elsewhere = {"pid": gone.pid, "started": "1.0@1"}  # a number of another container
    marks = (({"pid": gone.pid, "started": "x"}, "stale"), (asdict(own), "running"), (None, "running"))
    for mark, status in (*marks, (elsewhere, "running")):
        record = json.loads((runs[0] / "run.json").read_text()) | {"status": "running", "wrapper": mark}
        (runs[0] / "run.json").write_text(json.dumps(record))
        assert summarize(RunDirectory(runs[0])).status == status
    (runs[0] / "run.json").write_text(json.dumps(record | {"wrapper": {"pid": gone.pid, "started": "x"}}))
    watched = spyke("watch", runs[0])
    assert (watched.returncode, watched.stdout.startswith("stale: it was killed, or the machine went down")) == (
        0,
        True,
    )


def test_scratch_of_smoke_runs_goes_after_a_day(tmp_path):
    for name, age in (("spyke-smoke-1", 10**6), ("spyke-smoke-2", 0), ("other", 10**6)):
        (tmp_path / name).mkdir()
        stamp = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (stamp, stamp))
    for name, target in (("spyke-smoke-3", "gone"), ("spyke-smoke-4", "other")):
        (tmp_path / name).symlink_to(target)
        os.utime(tmp_path / name, (0, 0), follow_symlinks=False)
    found = deletable(tmp_path / "output", tmp_path, datetime.now())
    assert [item.path.name for item in found] == ["spyke-smoke-1"]
    delete(found)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["other", *(f"spyke-smoke-{number}" for number in (2, 3, 4))]


def test_nothing_is_deleted_without_yes(tmp_path, runs):
    state = make_state(runs[0].parents[1], "first-000001", 100)
    checkpoints = sorted(runs[0].parents[1].glob("*.safetensors"))
    done = spyke("runs", "--gc", tmp_path)
    assert (str(state) in done.stdout, state.is_dir()) == (True, True)
    assert spyke("runs", "--gc", "--yes", tmp_path).returncode == 0
    assert not state.exists()
    assert sorted(runs[0].parents[1].glob("*.safetensors")) == checkpoints


def test_a_live_run_is_followed_to_its_end(runs):
    """The console grows by a piece whenever the follower waits, as a run's does, and then the record is closed."""
    run, whole = RunDirectory(runs[0]), TRANSCRIPT.read_bytes()
    run.console.write_bytes(b"")
    set_status(runs[0], "running")
    pieces = [whole[at : at + 997] for at in range(0, len(whole), 997)]

    def grow() -> None:
        if pieces:
            with run.console.open("ab") as log:
                log.write(pieces.pop(0))
        else:
            set_status(runs[0], "finished")

    seen = [event for event, _ in follow(run, grow)]
    steps = [event.step for event in seen if isinstance(event, Step)]
    assert steps == list(range(1, steps[-1] + 1))
    assert sum(isinstance(event, CheckpointAnnounced) for event in seen) > 1
    assert None in seen


def test_watching_ends_with_the_run_and_says_how(runs):
    shutil.copy(TRANSCRIPT, runs[0] / "console.log")
    done = spyke("watch", runs[0])
    assert (done.returncode, done.stdout) == (0, "finished\n")
    assert "training on cpu" in done.stderr
    with pytest.raises(PresetError):
        next(follow(RunDirectory(runs[0] / "nowhere"), lambda: None))


def test_ctrl_c_ends_the_watching_and_not_the_run(runs):
    set_status(runs[0], "running")
    watcher = subprocess.Popen(
        [sys.executable, "-m", "spyke_kohya.cli", "watch", str(runs[0])],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )
    assert watcher.stderr is not None
    assert watcher.stderr.readline().startswith(b"watching")
    watcher.send_signal(2)
    _, told = watcher.communicate(timeout=30)
    assert watcher.returncode == 130
    assert b"no longer watching; the run goes on" in told
