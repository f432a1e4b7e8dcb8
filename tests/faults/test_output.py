"""What an engine says or leaves, or doesn't: lines of megabytes, no text at all, silence, no number for a loss."""

import os
import subprocess

import pytest


def test_a_reader_that_leaves_does_not_end_the_run(scene):
    os.mkfifo(scene.go)
    process, _ = scene.start_until_ready("holds")
    process.stderr.close()
    process.stdout.close()
    scene.go.write_text("go")
    assert process.wait(60) == 0
    assert scene.record()["status"] == "finished"


def test_a_line_of_10_megabytes(scene):
    ended = scene.run("loud")
    assert ended.returncode == 0, ended.stderr
    log = scene.runs()[0] / "console.log"
    assert log.stat().st_size > 10_000_000
    assert (scene.runs()[0] / "events.jsonl").stat().st_size < 100_000
    assert scene.record()["result"]["steps"] == 24


def test_bytes_that_are_no_text(scene):
    ended = scene.run("bytes")
    assert ended.returncode == 0, ended.stderr
    assert bytes(range(256)) * 40 in (scene.runs()[0] / "console.log").read_bytes()
    assert scene.record()["status"] == "finished"


def test_a_loss_that_is_no_number_ends_the_run_within_3_steps(scene):
    """The engine would wait for ever after the third step: only the wrapper can end it."""
    os.mkfifo(scene.ready)
    process = scene.start("nan")
    scene.ready.read_text()
    ended = scene.end(process)
    assert ended.returncode == 6
    said = " ".join(ended.stderr.split())
    assert "the loss is not a number from step 12 on" in said
    assert "the last good checkpoint is tiny-step00000010.safetensors, of step 10" in said
    assert scene.record()["faults"] == {"nan": 1}
    scene.ready.unlink()
    scene.assert_resumes()


def test_a_silence_is_ended_where_that_was_asked_for(scene):
    os.mkfifo(scene.ready)
    process = scene.start("waits", "--stall-timeout", "1")
    scene.ready.read_text()
    ended = scene.end(process)
    assert ended.returncode == 6
    assert "the engine has said nothing for 1 s" in ended.stderr
    assert scene.record()["faults"] == {"silence": 1}
    scene.ready.unlink()
    scene.assert_resumes()


def test_a_checkpoint_with_a_nan_is_no_success_and_not_ranked(scene):
    ended = scene.run("spoiled")
    assert ended.returncode == 6
    assert "tensors hold numbers that are not finite" in ended.stderr
    assert all("not finite" in saved["problem"] for saved in scene.record()["checkpoints"])
    assert scene.record()["safe"]["checkpoints"] == []


@pytest.mark.parametrize(("scenario", "reason"), [("no-data", "No data found"), ("unsaved", "checkpoints are missing")])
def test_an_exit_code_of_0_is_no_proof(scene, scenario, reason):
    ended = scene.run(scenario)
    assert ended.returncode == 6
    assert reason in ended.stderr
    assert scene.record()["status"] == "failed"


def test_a_crash_is_told_by_its_own_traceback(scene):
    ended = scene.run("traceback")
    assert ended.returncode == 6
    assert "OSError: image file is truncated" in ended.stderr
    assert "CalledProcessError" not in ended.stderr
    scene.assert_resumes()


def test_a_crash_is_resumed_without_a_word_where_the_preset_says_so(scene):
    scene.place.change("tiny", launch={"auto_resume": True})
    ended = scene.run("traceback")
    assert ended.returncode == 0, ended.stderr
    assert "resuming by itself, 1 of 3" in ended.stderr
    assert [scene.record(number)["status"] for number in (0, 1)] == ["failed", "finished"]
    assert scene.record(1)["resumed_from"]["step"] == 8


def test_a_run_that_always_crashes_is_resumed_3_times(scene):
    scene.place.change("tiny", launch={"auto_resume": True})
    ended = scene.run("traceback", FAKE_AT_IN_RESUMED="2")
    assert ended.returncode == 6
    assert len(scene.runs()) == 4, ended.stderr


@pytest.mark.parametrize("scenario", ["nan", "no-data"])
def test_neither_a_nan_nor_a_bad_configuration_is_resumed_by_itself(scene, scenario):
    scene.place.change("tiny", launch={"auto_resume": True})
    reader = subprocess.Popen(["cat", scene.ready]) if scenario == "nan" and not os.mkfifo(scene.ready) else None
    ended = scene.run(scenario)
    assert ended.returncode == 6
    assert len(scene.runs()) == 1
    if reader:
        reader.wait(10)


def test_what_changed_since_is_named_and_nothing_is_mixed(scene):
    scene.run("traceback")
    caption = scene.place.images / "0.txt"
    caption.write_text("spyke, another picture")
    scene.place.change("tiny", train_network={"learning_rate": 0.5})
    refused = scene.resume()
    assert refused.returncode == 3
    assert "changed since that run: the preset, the captions" in " ".join(refused.stderr.split())
    assert len(scene.runs()) == 1


def test_a_state_that_is_not_whole_is_not_resumed_from(scene):
    """Two states; the newer one lacks the end of a file."""
    scene.run("traceback", at=20)
    newer = scene.place.output / "tiny-000002-state" / "optimizer.bin"
    newer.write_bytes(newer.read_bytes()[:-5])
    done = scene.resume()
    assert done.returncode == 0, done.stderr
    assert "at step 8, the end of epoch 1; the 12 steps" in " ".join(done.stderr.split())


def test_resumes_in_a_row(scene):
    scene.run("traceback", at=12)
    assert scene.run("traceback", "--resume", FAKE_AT_IN_RESUMED="10").returncode == 6
    done = scene.resume()
    assert done.returncode == 0, done.stderr
    assert "at step 16, the end of epoch 2; the 2 steps" in " ".join(done.stderr.split())
    record = scene.record(-1)
    assert (record["status"], record["result"]["steps"]) == ("finished", 24)
    good = {one["step"]: one["file"] for one in record["checkpoints"] if not one["problem"]}
    assert sorted(good) == [5, 13, 21, 24]
    assert set(good.values()) <= set(scene.files())


def test_no_secret_and_no_home_is_recorded_or_printed(scene):
    secrets = {"HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "WANDB_API_KEY": "0123456789" * 4}
    ended = scene.run("tells-secrets", **secrets, HOME=str(scene.place.root))
    assert ended.returncode == 0, ended.stderr
    texts = [ended.stdout, ended.stderr]
    texts += [file.read_text(errors="replace") for file in scene.runs()[0].iterdir() if file.is_file()]
    assert len(texts) > 5
    for text in texts:
        assert not [secret for secret in secrets.values() if secret in text]
    assert "*" * 40 in (scene.runs()[0] / "console.log").read_text()
    assert str(scene.place.root) not in (scene.runs()[0] / "run.json").read_text()
    assert str(scene.place.root) not in (scene.runs()[0] / "events.jsonl").read_text() + ended.stderr
