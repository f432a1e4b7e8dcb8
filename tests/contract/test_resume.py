"""An interrupted run that is resumed is the run that was planned: its steps, learning rates, names and losses."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import signal

import pytest

from spyke_kohya.engine.filenames import last_file, step_file

AN_EPOCH, EPOCHS = 8, 3
STEPS = AN_EPOCH * EPOCHS
INTERRUPTED_AT = step_file("resumed", 15)  # announced, and perhaps not written


@pytest.fixture(scope="module")
def resumed(bench):
    """3 epochs of 8 steps, a checkpoint every 5: interrupted in epoch 2, then resumed from the end of epoch 1."""
    preset = bench.write_preset("spyke_plasma_v1", "resumed", max_train_epochs=3, save_every_n_steps=5, network_dim=4)
    process = bench.start(preset)
    for line in process.stderr:
        if INTERRUPTED_AT.encode() in line:
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=bench.engine.patience_s)
    assert process.returncode == 130, stderr.decode()
    before = _hashes(bench)
    done = bench.train(preset, "--resume")
    assert done.returncode == 0, done.stderr.decode()
    return done, before


def test_it_says_where_it_goes_on(resumed):
    done, _ = resumed
    assert b"at step 8, the end of epoch 1; the " in done.stderr


def test_it_trains_exactly_the_steps_that_were_planned(bench, resumed):
    run = _newest(bench)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["result"]["steps"]) == ("finished", STEPS)
    assert (record["resumed_from"]["step"], record["resumed_from"]["epoch"]) == (AN_EPOCH, 1)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "EpochStarted"] == [2, 3]
    assert [int(row["step"]) for row in _losses(run)] == list(range(1, STEPS + 1))


def test_the_learning_rate_is_that_of_the_uninterrupted_run(bench, resumed):
    for row in _losses(_newest(bench)):
        share = (1 + math.cos(math.pi * int(row["step"]) / STEPS)) / 2
        assert float(row["lr_unet"]) == pytest.approx(1e-4 * share, rel=1e-4, abs=1e-10)
        assert float(row["lr_textencoder"]) == pytest.approx(5e-5 * share, rel=1e-4, abs=1e-10)


def test_avr_loss_goes_over_both_parts(bench, resumed):
    rows = _losses(_newest(bench))
    losses = [float(row["loss"]) for row in rows]
    assert all(math.isfinite(loss) for loss in losses)
    for step, row in enumerate(rows, start=1):
        window = losses[max(0, step - AN_EPOCH) : step]
        assert float(row["avr_loss"]) == pytest.approx(sum(window) / len(window), rel=1e-5)


def test_the_files_have_their_true_steps_and_none_is_written_over(bench, resumed):
    _, before = resumed
    after = _hashes(bench)
    assert before.keys() - {INTERRUPTED_AT} == {step_file("resumed", 5), step_file("resumed", 10)}
    assert {name: after[name] for name in before} == before
    new = {step_file("resumed", step) for step in (13, 18, 23)} | {last_file("resumed")}
    assert after.keys() == before.keys() | new
    record = json.loads((_newest(bench) / "run.json").read_text())
    recorded = {one["file"]: one for one in record["checkpoints"]}
    assert {name: one["step"] for name, one in recorded.items()} == {
        **{name: int(name[-20:-12]) for name in after.keys() - {last_file("resumed")}},
        last_file("resumed"): STEPS,
    }
    assert {name: one["sha256"] for name, one in recorded.items()} == after
    replaced = before.keys() - {step_file("resumed", 5)}
    assert {name for name, one in recorded.items() if one["problem"]} == replaced


def test_the_ranking_knows_the_true_steps(resumed, bench):
    done, _ = resumed
    text = done.stdout.decode()
    ranked = [line.split()[1] for line in text.splitlines() if line[:6].strip().isdigit() and "." in line]
    assert set(ranked) == {"5", "13", "18", "23", "24"}


def _newest(bench):
    return sorted((bench.root / "output" / "resumed" / "runs").iterdir())[-1]


def _losses(run):
    with (run / "losses.csv").open() as stream:
        return list(csv.DictReader(stream))


def _hashes(bench) -> dict[str, str]:
    files = (bench.root / "output" / "resumed").glob("*.safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
