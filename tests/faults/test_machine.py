"""What a machine does to a run: full disks, directories that go, clocks that go back, two at once."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from workplace import assert_gone, make_workplace

from tests.faults.conftest import Scene


def test_a_full_disk_under_the_record_does_not_end_a_training(scene):
    """10 MB of console where a file may have half a MB: a real failure of a write, on any machine."""
    limited = (
        "import resource, os, sys\nlimit = 500_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, limit)\nos.execv(sys.argv[1], sys.argv[1:])\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    ended = subprocess.run(
        [sys.executable, "-c", limited, *scene.place.command("train", "tiny")],
        cwd=scene.place.root,
        env=scene.environment("loud"),
        capture_output=True,
        encoding="utf-8",
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("console.log can't be written: File too large; the training goes on") == 1
    assert scene.record()["status"] == "finished"
    assert (scene.runs()[0] / "console.log").stat().st_size == 500_000


def test_a_full_disk_ends_the_run_with_its_cause_and_a_true_record(scene):
    scene.place.output.mkdir()
    with small_disk(scene.place.output, "2m"):
        (scene.place.output / "other").write_bytes(b"")
        ended = scene.run("fills-disk")
        assert ended.returncode == 6
        assert "No space left on device" in ended.stderr
        assert "make room" in ended.stderr
        record = scene.record()
        assert record["status"] == "failed"
        assert "No space left on device" in record["reason"]
        assert record["safe"]["checkpoints"] == ["tiny-step00000005.safetensors", "tiny-step00000010.safetensors"]
        (scene.place.output / "filler").unlink()
        scene.assert_resumes()


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small disk here")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("removed", ["output", "output/runs"])
def test_a_directory_that_is_removed_under_a_run_does_not_end_it(scene, removed):
    os.mkfifo(scene.go)
    process, _ = scene.start_until_ready("holds", at=4)
    gone = (scene.place.root / removed).rename(scene.place.root / "gone")
    shutil.rmtree(gone)
    scene.go.write_text("go")
    ended = scene.end(process)
    assert ended.returncode == 0, ended.stderr
    record = scene.record()
    assert record["status"] == "finished"
    assert [saved["step"] for saved in record["checkpoints"]] == [5, 10, 15, 20, 24]
    assert set(scene.files()) == {saved["file"] for saved in record["checkpoints"]}


def test_two_launches_at_once(scene):
    os.mkfifo(scene.go)
    process, _ = scene.start_until_ready("holds")
    second = scene.run()
    assert second.returncode == 3
    said = " ".join(second.stderr.split())
    assert f"one run at a time: {scene.runs()[0].name}, process {process.pid}, since" in said
    assert len(scene.runs()) == 1
    scene.go.write_text("go")
    assert scene.end(process).returncode == 0
    assert scene.record()["status"] == "finished"


def test_a_run_of_the_same_name_elsewhere_is_left_alone(scene, tmp_path):
    """Two folders whose runs began in the same second; both wrappers were killed, here before it noted its engine."""
    process, trainer = scene.start_until_ready("waits")
    process.kill()
    process.wait()
    elsewhere = Scene(make_workplace(tmp_path / "elsewhere", images=1))
    shutil.copytree(scene.place.output / "runs", elsewhere.place.output / "runs")
    file = elsewhere.runs()[0] / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"engine_process": None}))
    ended = elsewhere.run("", "--end-stale")
    assert ended.returncode == 0, ended.stderr
    assert f"stale: {elsewhere.runs()[0].name}" in ended.stderr
    assert "ended what was left" not in ended.stderr
    os.kill(trainer, 0)


def test_two_launches_in_the_same_moment(scene):
    os.mkfifo(scene.go)
    os.mkfifo(scene.ready)
    both = [scene.start("holds"), scene.start("holds")]
    scene.ready.read_text()
    loser = next(process for process in iter(lambda: _ended(both), None) if process)
    winner = next(process for process in both if process is not loser)
    assert scene.end(loser).returncode == 3
    scene.go.write_text("go")
    assert scene.end(winner).returncode == 0
    assert len(scene.runs()) == 1


def _ended(processes):
    return next((process for process in processes if process.poll() is not None), False)


def test_a_clock_that_goes_back(scene):
    """A run from the future stands here, and every file that is written has a time in the past."""
    future = scene.place.output / "runs" / "20991231-235959-tiny"
    future.mkdir(parents=True)
    ended = scene.run("clock-back")
    assert ended.returncode == 0, ended.stderr
    assert [run.name for run in scene.runs()] == ["20991231-235959-tiny", "21000101-000000-tiny"]
    record = scene.record(-1)
    assert (record["status"], len(record["checkpoints"])) == ("finished", 5)
    future.rmdir()


def test_a_machine_that_went_down_is_a_stale_run(scene):
    """As after a reboot: the process of that number now is another one."""
    process, trainer = scene.start_until_ready("waits")
    process.kill()
    process.wait()
    os.killpg(os.getpgid(trainer), signal.SIGKILL)
    assert_gone(trainer)
    file = scene.runs()[0] / "run.json"
    own = str(os.getpid())
    text = file.read_text().replace(f'"pid": {process.pid}', f'"pid": {own}')
    file.write_text(text)
    scene.ready.unlink()
    ended = scene.run()
    assert ended.returncode == 0, ended.stderr
    assert f"stale: {scene.runs()[0].name}" in " ".join(ended.stderr.split())
    assert scene.record()["status"] == "stale"
