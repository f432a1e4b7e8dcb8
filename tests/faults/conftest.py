"""A place where things go wrong: the real command line in real processes, around an engine that fails on demand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
from workplace import Workplace, assert_group_is_gone, make_workplace

PATIENCE_S = 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=int, default=1, help="run each fault so many times")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    times = metafunc.config.getoption("--times", default=1)
    if times > 1:
        metafunc.fixturenames.append("time")
        metafunc.parametrize("time", range(times))


@dataclass
class Scene:
    """A workplace whose run has 3 epochs of 8 steps; what happens, happens at step 12, in the second epoch."""

    place: Workplace
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def ready(self) -> Path:
        return self.place.root / "ready"

    @property
    def go(self) -> Path:
        return self.place.root / "go"

    def environment(self, scenario: str, at: int = 12, **more: str) -> dict[str, str]:
        named = {"FAKE_SCENARIO": scenario, "FAKE_AT": str(at), "FAKE_READY": str(self.ready), "FAKE_GO": str(self.go)}
        return self.place.environment(**(named | more))

    def start(
        self, scenario: str, *flags: str, at: int = 12, err: int | IO[str] = subprocess.PIPE, **more: str
    ) -> subprocess.Popen[str]:
        """``train`` as a program starts it, which wants no ranking and no picture; returns at once."""
        process = subprocess.Popen(
            self.place.command("train", "tiny", "--json", *flags),
            cwd=self.place.root,
            env=self.environment(scenario, at, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            encoding="utf-8",
        )
        self.started.append(process)
        return process

    def start_until_ready(self, scenario: str, *flags: str, at: int = 12, **more: str) -> tuple:
        """The wrapper and the trainer's process id, once the engine waits in the middle of what it does."""
        os.mkfifo(self.ready)
        process = self.start(scenario, *flags, at=at, **more)
        trainer = int(self.ready.read_text())  # opens as soon as the engine writes
        return process, trainer

    def run(self, scenario: str = "", *flags: str, at: int = 12, **more: str) -> subprocess.CompletedProcess[str]:
        """``train`` from its start to its end."""
        return self.end(self.start(scenario, *flags, at=at, **more))

    def end(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def resume(self) -> subprocess.CompletedProcess[str]:
        return self.run("", "--resume")

    def runs(self) -> list[Path]:
        return sorted((self.place.output / "runs").iterdir())

    def record(self, number: int = 0) -> dict:
        return json.loads((self.runs()[number] / "run.json").read_text(encoding="utf-8"))

    def events(self, number: int = 0) -> list[dict]:
        return [json.loads(line) for line in (self.runs()[number] / "events.jsonl").read_text().splitlines()]

    def files(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.place.output.glob("*.safetensors")}

    def assert_nothing_runs(self) -> None:
        for number in range(len(self.runs())):
            if group := self.record(number).get("process_group"):  # a killed wrapper may not have noted it
                assert_group_is_gone(group)

    def assert_resumes(self) -> None:
        """The run goes on from the end of epoch 1, ends well, and has written over nothing."""
        before = self.files()
        done = self.resume()
        assert done.returncode == 0, done.stderr
        assert "at step 8, the end of epoch 1" in done.stderr
        record = self.record(-1)
        assert (record["status"], record["result"]["steps"]) == ("finished", 24)
        after = self.files()
        assert {name: after[name] for name in before} == before
        good = {one["step"] for one in record["checkpoints"] if not one["problem"]}
        assert good == {5, 13, 18, 23, 24}
        self.assert_nothing_runs()


@pytest.fixture
def scene(tmp_path):
    place = make_workplace(tmp_path, images=1)  # there is nothing to compare, which would take as long as the rest
    place.change("tiny", train_network={"max_train_epochs": 3}, expect={"total_steps": 24})
    scene = Scene(place)
    yield scene
    for process in scene.started:
        process.kill()
        process.wait()
        for stream in filter(None, (process.stdout, process.stderr)):
            stream.close()
    for run in (place.output / "runs").glob("*/run.json"):
        if group := json.loads(run.read_text()).get("process_group"):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
