"""A run from its start to its end, with a fake engine in real processes: every way it can end, told truthfully."""

import csv
import json
import os
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
from workplace import FAKES, TRANSCRIPTS, assert_gone, assert_group_is_gone, make_workplace

from spyke_kohya.audit.examine import examine
from spyke_kohya.engine.events import Step
from spyke_kohya.engine.release import Engine
from spyke_kohya.presets.loading import load
from spyke_kohya.record.redact import Redactor
from spyke_kohya.run.launch import prepare_launch
from spyke_kohya.run.supervision import Patience
from spyke_kohya.run.train import train

DEFAULT = Patience()
NOW = datetime(2026, 2, 20, 10, 15, 30)


@pytest.fixture
def place(tmp_path):
    return make_workplace(tmp_path)


def launch_of(place, inherited):
    examined = examine(load("tiny", place.root), place.root)
    assert examined.ok
    engine = Engine(FAKES / "engine", place.root / "venv/bin/python", None)
    return prepare_launch(examined.loaded, examined.plan, engine, root=place.root, now=NOW, inherited=inherited)


def run(place, scenario="", listen=lambda event, progress: None, patience=DEFAULT, **more):
    inherited = place.environment(FAKE_SCENARIO=scenario, FAKE_READY=str(place.root / "ready"), **more)
    return train(
        launch_of(place, inherited),
        inherited=inherited,
        redactor=Redactor(inherited, Path.home()),
        listen=listen,
        now=datetime.now,
        patience=patience,
    )


def wait_for(file: Path, process: subprocess.Popen) -> str:
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    return file.read_text()


def test_a_run_that_ends_well(place):
    told = []
    outcome = run(place, listen=lambda event, progress: told.append(event))
    assert (outcome.status, outcome.reason, outcome.returncode, outcome.steps) == ("finished", "", 0, 16)
    assert [(saved.step, saved.file) for saved in outcome.checkpoints] == [
        (5, "tiny-step00000005.safetensors"),
        (10, "tiny-step00000010.safetensors"),
        (15, "tiny-step00000015.safetensors"),
        (16, "tiny.safetensors"),
    ]
    assert [event.step for event in told if isinstance(event, Step)] == list(range(1, 17))
    record = place.record()
    assert record["status"] == "finished"
    assert record["result"] == outcome.to_dict()
    assert (record["plan"]["total_steps"], record["output_name"], record["target"]) == (16, "tiny", "cpu")
    assert record["settings"]["max_train_epochs"] == 2
    assert_group_is_gone(record["process_group"])


def test_the_engine_gets_the_locked_command_in_the_root_and_a_clean_environment(place):
    note = place.root / "note.json"
    run(place, FAKE_NOTE=str(note), LOCAL_RANK="0", ACCELERATE_USE_CPU="true", TQDM_DISABLE="1")
    given = json.loads(note.read_text())
    record = place.record()
    assert given["argv"] == record["argv"]
    assert given["cwd"] == record["cwd"] == str(place.root)
    assert given["env"].items() >= record["env"].items()
    assert record["env_removed"] == ["ACCELERATE_USE_CPU", "LOCAL_RANK", "TQDM_DISABLE"]
    assert not given["env"].keys() & set(record["env_removed"])


def test_the_run_directory_holds_what_the_engine_was_given_and_every_byte_it_said(place):
    run(place)
    directory = place.only_run()
    assert directory.name == "20260220-101530-tiny"
    assert (directory / "dataset.toml").read_text() == (place.root / "presets/data.toml").read_text()
    assert "use_cpu: true" in (directory / "accelerate.yaml").read_text()
    # the command of the run directory, run by hand, says the same again
    by_hand = subprocess.run(
        ["sh", str(directory / "command.sh")], env=place.environment(), cwd="/", capture_output=True, check=True
    )
    assert (directory / "console.log").read_bytes() == by_hand.stdout
    assert by_hand.stdout.count(b"avr_loss=") == 16


def test_events_are_kept_without_the_steps(place):
    run(place)
    events = [json.loads(line) for line in (place.only_run() / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == [
        "DeviceReported",
        "Header",
        "CheckpointAnnounced",
        "CheckpointAnnounced",
        "StateSaved",
        *["CheckpointAnnounced"] * 3,
        "ModelSaved",
    ]
    assert [event["after_step"] for event in events if event["event"] == "CheckpointAnnounced"] == [5, 8, 10, 15, 16]


def test_losses_come_from_the_engine_s_own_event_file_in_full_precision(place):
    run(place, FAKE_EVENTS=str(TRANSCRIPTS / "two_epochs.tfevents"))
    with (place.only_run() / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (TRANSCRIPTS / "two_epochs.losses.csv").open() as file:
        truth = list(csv.DictReader(file))
    assert len(rows) == 16
    assert [(int(r["step"]), float(r["loss"]), float(r["avr_loss"])) for r in rows] == [
        (int(t["step"]), float(t["loss_current"]), float(t["loss_average"])) for t in truth
    ]
    assert float(rows[0]["lr_unet"]) == pytest.approx(9.9039e-05, rel=1e-4)


def test_without_event_files_no_losses_are_made_up(place):
    run(place)
    assert not (place.only_run() / "losses.csv").exists()


def test_a_damaged_event_file_does_not_spoil_a_run(place):
    damaged = place.root / "damaged.tfevents"
    damaged.write_bytes(b"\xff" * 100)
    assert run(place, FAKE_EVENTS=str(damaged)).status == "finished"


def test_the_record_can_be_read_and_says_running_at_every_moment(place):
    seen = []

    def look(event, progress):
        record = place.record()
        seen.append((record["status"], "process_group" in record))

    run(place, listen=look)
    assert set(seen) == {("running", True)}
    assert len(seen) > 16


def test_a_header_unlike_the_plan_stops_the_run_at_once(place):
    outcome = run(place, "header")
    assert (outcome.status, outcome.steps) == ("failed", 0)
    assert outcome.reason == "the engine's own header differs from the plan: train images * repeats 9 (planned 8)"
    assert_group_is_gone(place.record()["process_group"])
    events = [json.loads(line) for line in (place.only_run() / "events.jsonl").read_text().splitlines()]
    assert [event["signal"] for event in events if event["event"] == "signal"] == ["SIGINT"]


def test_another_device_than_the_target_stops_the_run_at_once(place):
    outcome = run(place, "device")
    assert outcome.status == "failed"
    assert outcome.reason == "the engine runs on the device cuda, and the preset's target is cpu"


@pytest.mark.parametrize(
    ("scenario", "reason", "returncode", "steps"),
    [
        ("no-data", "No data found. Please verify arguments", 0, 0),
        ("unsaved", "checkpoints are missing: tiny.safetensors", 0, 16),
        ("traceback", "OSError: image file is truncated", 1, 4),
        ("killed", "died with <Signals.SIGKILL: 9>", 1, 4),
        ("launcher-killed", "the engine was killed by SIGKILL", -9, 4),
        ("silent-exit", "the engine ended with exit code 9 and no message", 9, 4),
    ],
)
def test_a_run_that_did_not_end_well_says_why(place, scenario, reason, returncode, steps):
    outcome = run(place, scenario, patience=Patience(straggler_s=0.1))
    assert (outcome.status, outcome.reason, outcome.returncode, outcome.steps) == (
        "failed",
        reason,
        returncode,
        steps,
    )
    assert place.record()["reason"] == reason


def test_a_checkpoint_of_an_earlier_run_does_not_count(place):
    run(place)
    for file in place.output.glob("*.safetensors"):
        os.utime(file, (1000, 1000))
    (place.only_run()).rename(place.output / "runs" / "earlier")
    outcome = run(place, "unsaved")
    assert outcome.reason == "checkpoints are missing: tiny.safetensors"
    assert [saved.step for saved in outcome.checkpoints] == [5, 10, 15]


def test_what_was_saved_before_a_failure_is_named(place):
    place.change("tiny", train_network={"save_every_n_steps": 2})
    outcome = run(place, "traceback")
    assert [saved.step for saved in outcome.checkpoints] == [2, 4]


def test_an_engine_that_can_not_be_started_is_recorded_as_failed(place):
    (place.root / "venv/bin/accelerate").chmod(0o644)
    with pytest.raises(Exception, match="Permission denied"):
        run(place)
    record = place.record()
    assert record["status"] == "failed"
    assert "Permission denied" in record["reason"]


def test_a_fault_of_the_wrapper_ends_the_engine_too(place):
    def broken(event, progress):
        if progress.step:
            raise RuntimeError("a fault of the wrapper")

    with pytest.raises(RuntimeError, match="a fault of the wrapper"):
        run(place, "waits", listen=broken)
    record = place.record()
    assert (record["status"], record["reason"]) == ("failed", "a fault of the wrapper")
    assert_group_is_gone(record["process_group"])


def test_signals_mean_to_the_caller_what_they_meant_before(place):
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in watched]
    during = []
    run(place, listen=lambda event, progress: during.append([signal.getsignal(number) for number in watched]))
    assert [signal.getsignal(number) for number in watched] == before
    assert all(handlers != before for handlers in during)


def test_a_hangup_that_nohup_ignores_stays_ignored(place):
    during = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run(place, listen=lambda event, progress: during.append(signal.getsignal(signal.SIGHUP)))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert set(during) == {signal.SIG_IGN}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_line_ends_the_whole_group(place, number):
    ready = place.root / "ready"
    process = subprocess.Popen(
        place.command("train", "tiny"),
        cwd=place.root,
        env=place.environment(FAKE_SCENARIO="waits", FAKE_READY=str(ready)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    trainer = int(wait_for(ready, process))
    assert place.record()["status"] == "running"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"stopped by {number.name} after 4 steps" in " ".join(err.split())
    assert out == ""
    record = place.record()
    assert (record["status"], record["result"]["steps"]) == ("interrupted", 4)
    assert_group_is_gone(record["process_group"])
    assert_gone(trainer)
