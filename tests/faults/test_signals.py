"""Whoever is hit by a signal, whenever: no orphan is left, the record is right, and the run can be gone on with."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios

import pytest
from workplace import assert_gone, assert_group_is_gone

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_stop_in_the_middle_of_a_step(scene, number):
    process, trainer = scene.start_until_ready("waits")
    process.send_signal(number)
    ended = scene.end(process)
    assert ended.returncode == 130
    record = scene.record()
    assert (record["status"], record["reason"]) == ("interrupted", f"stopped by {number.name}")
    assert record["safe"]["checkpoints"] == ["tiny-step00000005.safetensors", "tiny-step00000010.safetensors"]
    assert record["safe"]["state"]["step"] == 8
    assert "--resume" in ended.stderr
    assert_gone(trainer)
    scene.ready.unlink()
    scene.assert_resumes()


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_stop_at_the_start(scene, number):
    process, trainer = scene.start_until_ready("at-start")
    process.send_signal(number)
    assert scene.end(process).returncode == 130
    assert scene.record()["status"] == "interrupted"
    assert_gone(trainer)
    scene.assert_nothing_runs()


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_stop_while_a_checkpoint_is_written(scene, number):
    process, trainer = scene.start_until_ready("saving")
    process.send_signal(number)
    assert scene.end(process).returncode == 130
    (saved,) = scene.record()["checkpoints"]
    assert saved["problem"].startswith("it is cut off")
    assert scene.record()["safe"]["checkpoints"] == []
    assert_gone(trainer)
    refused = scene.resume()
    assert refused.returncode == 3
    assert "no whole state" in refused.stderr


def test_a_killed_trainer(scene):
    ended = scene.run("killed")
    assert ended.returncode == 6
    assert "SIGKILL" in ended.stderr
    assert scene.record()["status"] == "failed"
    scene.assert_resumes()


def test_a_killed_launcher_does_not_orphan_the_trainer(scene):
    os.mkfifo(scene.ready)
    process = scene.start("launcher-killed")
    trainer = int(scene.ready.read_text())
    ended = scene.end(process)
    assert ended.returncode == 6
    assert scene.record()["reason"] == "the engine was killed by SIGKILL"
    assert_gone(trainer)
    scene.ready.unlink()
    scene.assert_resumes()


def test_a_child_that_ignores_everything_but_kill(scene):
    process, trainer = scene.start_until_ready("deaf")
    process.send_signal(signal.SIGINT)
    assert scene.ready.read_text() == "heard"
    process.send_signal(signal.SIGTERM)  # each further one asks for the next rung
    assert scene.ready.read_text() == "heard"
    process.send_signal(signal.SIGINT)
    assert scene.end(process).returncode == 130
    rungs = [event["signal"] for event in scene.events() if event["event"] == "signal"]
    assert rungs == ["SIGINT", "SIGTERM", "SIGKILL"]
    assert_gone(trainer)
    scene.ready.unlink()
    scene.assert_resumes()


@pytest.mark.parametrize(("scenario", "at"), [("at-start", 12), ("waits", 12), ("saving", 12)])
def test_a_killed_wrapper_is_found_by_the_next_command(scene, scenario, at):
    process, trainer = scene.start_until_ready(scenario, at=at)
    group = os.getpgid(trainer)
    process.kill()
    process.wait()
    assert scene.record()["status"] == "running"
    scene.ready.unlink()
    refused = scene.run()
    assert refused.returncode == 3
    assert f"process {group}, {trainer}" in " ".join(refused.stderr.split())
    assert "--end-stale" in refused.stderr
    os.kill(trainer, 0)  # nothing is ended without being told
    assert scene.record()["status"] == "stale"
    ended = scene.run("", "--end-stale")
    assert ended.returncode == 0, ended.stderr
    assert_gone(trainer)
    assert len(scene.runs()) == 2


def test_a_killed_wrapper_can_be_resumed(scene):
    process, trainer = scene.start_until_ready("waits")
    process.kill()
    process.wait()
    os.killpg(os.getpgid(trainer), signal.SIGKILL)
    assert_gone(trainer)
    scene.ready.unlink()
    scene.assert_resumes()
    assert scene.record()["status"] == "stale"


def test_a_trainer_without_its_wrapper_ends_at_its_next_word(scene):
    os.mkfifo(scene.go)
    process, trainer = scene.start_until_ready("holds")
    group = os.getpgid(trainer)
    process.kill()
    process.wait()
    scene.go.write_text("go")
    assert_group_is_gone(group)


def test_a_closed_terminal(scene):
    ours, theirs = pty.openpty()
    os.mkfifo(scene.ready)
    with_terminal = (
        "import fcntl, os, sys, termios\nos.setsid()\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    fcntl.ioctl(ours, termios.TIOCSWINSZ, b"\x18\0\x50\0\0\0\0\0")
    process = subprocess.Popen(
        [sys.executable, "-c", with_terminal, *scene.place.command("train", "tiny")],
        cwd=scene.place.root,
        env=scene.environment("waits"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    trainer = int(scene.ready.read_text())
    os.close(ours)
    assert process.wait(60) == 130
    record = scene.record()
    assert (record["status"], record["reason"]) == ("interrupted", "stopped by SIGHUP")
    assert_gone(trainer)
    scene.ready.unlink()
    scene.assert_resumes()
