"""What this project relies on, seen on both engines through ``spyke-kohya train``."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
from safetensors import safe_open

from spyke_kohya.engine.filenames import last_file, step_file
from spyke_kohya.ship.choose import choose
from spyke_kohya.ship.deploy import deploy, find_place

STEPS = 16


@pytest.fixture(scope="session")
def trained(bench):
    """The run of record's own options: 2 epochs of 8 steps, a checkpoint every 5."""
    preset = bench.write_preset("spyke_plasma_v1", "spyke", max_train_epochs=2, save_every_n_steps=5, network_dim=4)
    return bench.train(preset)


def test_a_run_ends_well_beside_a_hostile_accelerate_config(bench, trained):
    assert trained.returncode == 0, trained.stderr.decode()
    record = json.loads((bench.run_directory("spyke") / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["result"]["steps"] == STEPS


@pytest.mark.usefixtures("trained")
def test_the_engine_counts_what_the_plan_says(bench):
    run = bench.run_directory("spyke")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (header,) = [event for event in events if event["event"] == "Header"]
    assert (header["num_train_images"], header["num_reg_images"], header["batches_per_epoch"]) == (4, 1, 8)
    assert (header["epochs"], header["total_steps"]) == (2, STEPS)
    assert [event["device"] for event in events if event["event"] == "DeviceReported"] == ["cpu"]
    assert json.loads((run / "run.json").read_text())["plan"]["total_steps"] == STEPS


@pytest.mark.usefixtures("trained")
def test_every_step_has_a_finite_loss_and_the_window_is_an_epoch(bench):
    with (bench.run_directory("spyke") / "losses.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    losses = [float(row["loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert all(math.isfinite(loss) for loss in losses)
    for step, row in enumerate(rows, start=1):
        window = losses[max(0, step - 8) : step]
        assert float(row["avr_loss"]) == pytest.approx(sum(window) / len(window), rel=1e-5)
    assert {"lr_unet", "lr_textencoder"} <= rows[0].keys()


@pytest.mark.usefixtures("trained")
def test_the_checkpoints_have_the_names_steps_and_keys_of_sd_scripts(bench):
    folder = bench.root / "output" / "spyke"
    expected = {step_file("spyke", step): step for step in (5, 10, 15)} | {last_file("spyke"): STEPS}
    assert {file.name for file in folder.glob("*.safetensors")} == expected.keys()
    for name, step in expected.items():
        with safe_open(folder / name, framework="numpy") as file:
            assert file.metadata()["ss_steps"] == str(step)
            assert file.metadata()["ss_num_batches_per_epoch"] == "8"
            keys = set(file.keys())
        assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
        assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha" in keys


def test_the_checkpoints_are_ranked_after_the_run(trained):
    assert b"test order" in trained.stdout.lower()


def test_a_deployed_file_with_metadata_loads_in_the_engine(bench, trained):
    if bench.engine.name == "miniature":
        pytest.skip("the miniature takes no --network_weights")
    assert trained.returncode == 0, trained.stderr.decode()
    run = bench.run_directory("spyke")
    (bench.root / "ComfyUI/models/loras").mkdir(parents=True)
    done = deploy(choose(run), find_place(bench.root / "ComfyUI"), now=datetime.now(), metadata=True)
    with safe_open(done.file, framework="numpy") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "spyke_contract"
    preset = bench.write_preset(
        "spyke_plasma_v1", "again", network_weights=str(done.file), max_train_epochs=None, max_train_steps=1,
        save_every_n_steps=None, network_dim=4,
    )  # fmt: skip
    again = bench.train(preset)
    assert again.returncode == 0, again.stderr.decode()


@pytest.mark.parametrize("shipped", ["spyke_plasma_v2", "demo"])
def test_every_option_of_the_other_presets_is_accepted(bench, shipped):
    if (bench.engine.name, shipped) == ("miniature", "demo"):
        pytest.skip("test_docs.py trains the demo on it, as it is")
    preset = bench.write_preset(
        shipped, shipped, max_train_epochs=None, max_train_steps=2, save_every_n_steps=None, network_dim=4
    )
    done = bench.train(preset)
    assert done.returncode == 0, done.stderr.decode()


def test_a_smoke_run_takes_5_steps_and_leaves_nothing(bench):
    preset = bench.write_preset("spyke_plasma_v1", "smoked", network_dim=4)
    done = bench.train(preset, "--smoke", "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["steps"] == 5
    assert not (bench.root / "output" / "smoked").exists()


def test_a_bad_option_fails_with_its_cause_named(bench):
    preset = bench.write_preset("spyke_plasma_v1", "bad", optimizer_type="NoSuchOptimizer")
    done = bench.train(preset)
    assert done.returncode == 6
    assert b"NoSuchOptimizer" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_killed_trainer_is_reported_as_such(bench):
    preset = bench.write_preset("spyke_plasma_v1", "killed", max_train_epochs=50, network_dim=4)
    process = bench.start(preset)
    _wait_for_step(process)
    os.kill(_trainer_of(bench.run_directory("killed")), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 6
    assert b"SIGKILL" in stderr
    assert json.loads((bench.run_directory("killed") / "run.json").read_text())["status"] == "failed"


def test_ctrl_c_ends_the_whole_group_and_keeps_the_record(bench):
    preset = bench.write_preset("spyke_plasma_v1", "stopped", max_train_epochs=50, network_dim=4)
    process = bench.start(preset)
    _wait_for_step(process)
    trainer = _trainer_of(bench.run_directory("stopped"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr.decode()
    assert not _is_alive(trainer)
    assert json.loads((bench.run_directory("stopped") / "run.json").read_text())["status"] == "interrupted"


def test_a_trainer_whose_wrapper_is_killed_ends_by_itself(bench):
    """Its next line finds nobody who reads the pipe."""
    preset = bench.write_preset("spyke_plasma_v1", "orphaned", max_train_epochs=50, network_dim=4)
    process = bench.start(preset)
    _wait_for_step(process)
    trainer = _trainer_of(bench.run_directory("orphaned"))
    process.kill()
    process.communicate()
    deadline = time.monotonic() + bench.engine.patience_s
    while _is_alive(trainer):
        assert time.monotonic() < deadline
    assert json.loads((bench.run_directory("orphaned") / "run.json").read_text())["status"] == "running"


def _wait_for_step(process) -> None:
    """Read the wrapper's plain lines until the engine has begun to train."""
    for line in process.stderr:
        if line.startswith(b"training on"):
            return
    pytest.fail("the engine ended before it trained")


def _trainer_of(run: Path) -> int:
    """The engine's own process: the child of the launcher, which leads the record's process group."""
    launcher = json.loads((run / "run.json").read_text())["process_group"]
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
    return next(pid for pid, parent in pairs if parent == launcher)


def _is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked for its exit code (a zombie) does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")
