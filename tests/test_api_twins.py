"""Every command has its twin in the Python interface: the same findings and the same outcome on the same inputs."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from workplace import FAKES, SD15_KEY, TRANSCRIPTS, Workplace, make_workplace

from spyke_kohya import api
from spyke_kohya.cli import entry
from spyke_kohya.errors import SpykeError

TWINS = {
    "validate": ["validate"],
    "plan": ["plan"],
    "doctor": ["doctor"],
    "lock": ["lock", "drift"],
    "new": ["new"],
    "import": ["import_settings"],
    "holdout": ["holdout", "put_back"],
    "train": ["train", "dry_run"],
    "rank": ["rank"],
    "evaluate": ["evaluate", "evaluation"],
    "samples": ["samples"],
    "report": ["report"],
    "runs": ["runs", "compare", "deletable", "delete"],
    "deploy": ["deploy", "undo"],
    "list": ["deployed"],
}
WITHOUT = {
    "completion": "it is a shell's",
    "watch": "a program iterates its own training, and reads the record of another",
}


@dataclass
class Twins:
    """Runs a command as a person does, and its twin as a program does, in one folder."""

    place: Workplace

    @property
    def environment(self) -> dict[str, str]:
        return self.place.environment()

    def load(self, **settings: object) -> Any:
        values = [f"train_network.{key}={json.dumps(value)}" for key, value in settings.items()]
        return api.load_preset("tiny", root=self.place.root, settings=values)

    def train(self, **how: Any) -> api.Training:
        """Train by the interface to the end; its events are thrown away."""
        preset = None if "recorded" in how else self.load()
        training = api.train(preset, environment=self.environment, root=self.place.root, **how)
        for _ in training:
            pass
        return training


@pytest.fixture
def twins(tmp_path, monkeypatch) -> Twins:
    place = make_workplace(tmp_path / "work")
    place.change("tiny", train_network={"max_train_epochs": 3}, expect={"total_steps": 24})
    monkeypatch.chdir(place.root)
    monkeypatch.setenv("XDG_CACHE_HOME", place.environment()["XDG_CACHE_HOME"])
    return Twins(place)


def codes_of(text: str) -> list[str]:
    """The codes of findings that a person reads."""
    return sorted(re.findall(r"\[([a-z0-9.-]+\.[a-z0-9-]+)\]", text))


def half_a_picture(place: Workplace) -> None:
    picture = sorted(place.images.glob("*.png"))[0]
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])


def no_base(place: Workplace) -> None:
    (place.root / "base.safetensors").unlink()


def no_memory(place: Workplace) -> None:
    """A base of a full size, on the disk as a hole, and a batch of which no machine holds the attention."""
    numbers = 900_000_000
    header = json.dumps({SD15_KEY: {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    with (place.root / "base.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * numbers)
    config = place.root / "presets/data.toml"
    config.write_text(config.read_text().replace("batch_size = 1", "batch_size = 1000000"))


def unknown_option(place: Workplace) -> None:
    place.change("tiny", train_network={"lerning_rate": 1e-4})


FAULTS = [half_a_picture, no_base, unknown_option]


def test_every_command_has_a_twin_or_a_reason():
    assert set(entry.cli.commands) == TWINS.keys() | WITHOUT.keys()
    assert not TWINS.keys() & WITHOUT.keys()
    for names in TWINS.values():
        assert all(callable(getattr(api, name)) for name in names)


@pytest.mark.parametrize("fault", [*FAULTS, no_memory])
def test_validate_finds_the_same(twins, fault):
    fault(twins.place)
    (said,) = json.loads(twins.place.spyke("validate", "tiny", "--json").stdout)
    found = api.validate(twins.load(), environment=twins.environment, root=twins.place.root)
    assert [finding.to_dict() for finding in found] == said["findings"]
    assert (fault is no_memory) == ("machine.memory" in [finding.code for finding in found])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_is_refused_for_the_same(twins, fault):
    fault(twins.place)
    refused = twins.place.spyke("train", "tiny", "--json")
    with pytest.raises(SpykeError) as raised:
        twins.train()
    assert json.loads(refused.stdout) == json.loads(json.dumps(raised.value.to_dict()))
    assert raised.value.exit_code == refused.returncode != 0


def test_a_run_in_progress_is_found_and_refused_by_both(twins):
    with running(twins.place) as trainer:
        (said,) = json.loads(twins.place.spyke("validate", "tiny", "--json").stdout)
        found = api.validate(twins.load(), environment=twins.environment, root=twins.place.root)
        assert [finding.to_dict() for finding in found] == said["findings"]
        assert "output.in-use" in [finding.code for finding in found]
        refused = twins.place.spyke("train", "tiny")
        with pytest.raises(SpykeError, match="one run at a time") as raised:
            twins.train()
        assert (refused.returncode, raised.value.exit_code) == (3, 3)
        os.kill(trainer, 0)


def test_another_commit_of_the_engine_is_a_finding_of_both(twins, tmp_path):
    engine = tmp_path / "engine"
    (engine / "library").mkdir(parents=True)
    (engine / "library/train_util.py").touch()
    (engine / "train_network.py").write_bytes((FAKES / "engine/train_network.py").read_bytes())
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(engine), *words], check=True)
    said = twins.place.spyke("train", "tiny", "--dry-run", "--engine", str(engine))
    launch = api.dry_run(twins.load(), environment=twins.environment, engine=engine, root=twins.place.root)
    assert codes_of(said.stderr) == sorted(finding.code for finding in launch.findings)
    assert "engine.other-commit" in codes_of(said.stderr)
    assert launch.command.as_shell().splitlines()[0] == said.stdout.splitlines()[0]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_is_allowed_by_both_where_it_is_asked_for(twins, allowed):
    (twins.place.root / "base.safetensors").rename(twins.place.root / "base.ckpt")
    preset = twins.load(pretrained_model_name_or_path="base.ckpt")
    words = ["--set", 'train_network.pretrained_model_name_or_path="base.ckpt"', *["--allow-pickle"] * allowed]
    said = twins.place.spyke("train", "tiny", "--dry-run", *words)
    launch = api.dry_run(preset, environment=twins.environment, allow_pickle=allowed, root=twins.place.root)
    assert codes_of(said.stderr) == sorted(finding.code for finding in launch.findings)
    assert ("base.pickle" in codes_of(said.stderr)) != allowed


@pytest.mark.parametrize("scenario", ["", "traceback", "spoiled", "no-data"])
def test_a_training_ends_in_the_same_way(tmp_path, monkeypatch, scenario):
    """A crash is gone on with where the preset says so, by both."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_SCENARIO", scenario)
    monkeypatch.setenv("FAKE_AT", "12")
    ends = []
    for name in ("command", "api"):
        place = make_workplace(tmp_path / name)
        place.change(
            "tiny", train_network={"max_train_epochs": 3}, expect={"total_steps": 24}, launch={"auto_resume": True}
        )
        monkeypatch.chdir(place.root)
        if name == "command":
            end = json.loads(place.spyke("train", "tiny", "--json").stdout)
        else:
            end = json.loads(json.dumps(Twins(place).train().outcome.to_dict()))
        for saved in end["checkpoints"]:
            saved["file"] = re.sub(r"\d{8}-\d{6}", "TIME", saved["file"])
        runs = sorted(path.name[16:] for path in (place.output / "runs").iterdir())
        ends.append(({key: end[key] for key in ("status", "reason", "remedy", "steps", "checkpoints")}, runs))
    assert ends[0] == ends[1]
    assert len(ends[0][1]) == (2 if scenario in ("traceback", "spoiled") else 1)


def test_a_run_is_resumed_by_both(twins, monkeypatch):
    for number in range(2):
        monkeypatch.setenv("FAKE_SCENARIO", "traceback")
        monkeypatch.setenv("FAKE_AT", "12")
        assert twins.train().outcome.status == "failed"
        monkeypatch.setenv("FAKE_SCENARIO", "")
        if number:
            training = twins.train(resume=True)
            outcome = json.loads(json.dumps(training.outcome.to_dict()))
            assert training.launch.steps_before == 8
        else:
            outcome = json.loads(twins.place.spyke("train", "tiny", "--resume", "--json").stdout)
        assert (outcome["status"], outcome["steps"]) == ("finished", 24)


def test_what_a_killed_wrapper_left_is_found_by_both_and_ended_where_that_is_allowed(twins):
    with running(twins.place, kill=True):
        refused = twins.place.spyke("train", "tiny")
        with pytest.raises(SpykeError, match="still trains") as raised:
            twins.train()
        assert (refused.returncode, raised.value.exit_code) == (3, 3)
        said: list[str] = []
        assert twins.train(end_stale=True, say=said.append).outcome.status == "finished"
        assert any("ended what was left" in text for text in said)


def test_a_recorded_run_is_repeated_by_both(twins):
    first = twins.train().run_directory
    (twins.place.root / "presets/tiny.toml").unlink()
    again = json.loads(twins.place.spyke("train", "--from", str(first), "--json").stdout)
    assert twins.train(recorded=first).outcome.status == again["status"] == "finished"


def test_plan_doctor_lock_and_drift(twins):
    root, environment = twins.place.root, twins.environment
    assert api.plan(twins.load(), root=root).to_dict() == json.loads(twins.place.spyke("plan", "tiny", "--json").stdout)
    checks = [check.to_dict() for check in api.doctor(twins.load(), environment=environment, root=root)]
    assert checks == json.loads(twins.place.spyke("doctor", "tiny", "--json").stdout)
    assert twins.place.spyke("lock", "tiny").returncode == 0
    locked = (root / "presets/tiny.lock").read_bytes()
    assert api.lock(twins.load(), environment=environment, root=root).read_bytes() == locked
    assert api.drift(twins.load(), environment=environment, root=root) == []
    sorted(twins.place.images.glob("*.txt"))[0].write_text("another caption")
    drifted = api.drift(twins.load(), environment=environment, root=root)
    said = twins.place.spyke("lock", "tiny", "--check")
    assert codes_of(said.stderr) == sorted(finding.code for finding in drifted) == ["captions.drifted"]
    with pytest.raises(SpykeError, match=r"captions\.drifted|since the lock"):
        twins.train(locked=True)
    assert twins.place.spyke("train", "tiny", "--locked").returncode == 4


def test_new_import_and_holdout(twins):
    root, folder = twins.place.root, str(twins.place.images.relative_to(twins.place.root))
    assert twins.place.spyke("new", "a", "--images", folder, "--base", "b", "--target", "cpu").returncode == 0
    api.new("c", folder, base="b", target="cpu", root=root)
    for ending in (".toml", "_dataset.toml"):
        made = (root / f"presets/a{ending}").read_text()
        assert made.replace('"a', '"c').replace("/a", "/c") == (root / f"presets/c{ending}").read_text()
    settings = json.dumps({"pretrained_model_name_or_path": "b", "output_name": "ours", "LoRA_type": "Standard"})
    (root / "gui.json").write_text(settings)
    said = twins.place.spyke("import", "gui.json", "--target", "cpu")
    written = {path: path.read_text() for path in (root / "presets").glob("ours*")}
    for path in written:
        path.unlink()
    imported = api.import_settings(settings, target="cpu", root=root)
    assert {path: path.read_text() for path in (root / "presets").glob("ours*")} == written
    assert all(note in " ".join(said.stderr.split()) for note in imported.notes)
    assert twins.place.spyke("holdout", folder, "--count", "2").returncode == 0
    moved = sorted(path.name for path in twins.place.images.iterdir())
    assert api.put_back(Path(folder)) == 4
    choice = api.holdout(Path(folder), 2)
    assert sorted(path.name for path in twins.place.images.iterdir()) == moved
    assert len(choice.pictures) == 2


def test_after_a_training(twins, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_EVENTS", str(TRANSCRIPTS / "two_epochs.tfevents"))
    place = twins.place
    place.change("tiny", train_network={"max_train_epochs": 2}, expect={"total_steps": 16})
    run = twins.train().run_directory
    output = Path("output")
    for by in ("avr_loss", "loss"):
        said = json.loads(place.spyke("rank", "output", "--by", by, "--json").stdout)
        assert api.rank(output, by=by).to_dict() == said
    assert json.loads(place.spyke("rank", "output", "--json").stdout) == api.rank(output, by=None).to_dict()
    same_refusal(place, ("rank", "output", "--by", "heldout"), lambda: api.rank(output, by="heldout"))
    words = ("evaluate", str(run), "--heldout", "nowhere")
    same_refusal(place, words, lambda: api.evaluate(run, heldout=Path("nowhere"), environment=twins.environment))
    same_refusal(place, ("samples", str(run)), lambda: api.samples(run, environment=twins.environment))
    pages = [page.read_bytes() for page in api.report(output)]
    assert place.spyke("report", "output").returncode == 0
    assert [(run / name).read_bytes() for name in ("report.html", "summary.md")] == pages
    assert json.loads(place.spyke("runs", "output", "--json").stdout) == plain(
        [one.to_dict() for one in api.runs(output)]
    )
    found = json.loads(place.spyke("runs", str(run), str(run), "--json").stdout)
    assert found["differences"] == api.compare(run, run) == []
    gone = [str(one.path) for one in api.deletable(output)]
    assert [one["path"] for one in json.loads(place.spyke("runs", "output", "--gc", "--json").stdout)] == gone
    loras = tmp_path / "ui/models/loras"
    loras.mkdir(parents=True)
    to = tmp_path / "ui"
    same_refusal(place, ("deploy", "output", "--to", str(to)), lambda: api.deploy(output, to=to))
    same_refusal(place, ("deploy", "output", "--to", str(to), "--undo"), lambda: api.undo(output, to=to))
    assert json.loads(place.spyke("list", str(to), "--json").stdout) == api.deployed(to) == []


def same_refusal(place: Workplace, words: tuple[str, ...], twin: Any) -> None:
    """Hold a command that fails against its twin."""
    refused = place.spyke(*words, *(["--json"] if words[0] in ("rank", "evaluate", "deploy") else []))
    with pytest.raises(SpykeError) as raised:
        twin()
    assert refused.returncode == raised.value.exit_code != 0
    assert " ".join(raised.value.what.split()) in " ".join(refused.stderr.split())
    if refused.stdout:
        assert json.loads(refused.stdout)["error"]["message"] == raised.value.what


def plain(value: object) -> object:
    return json.loads(json.dumps(value))


class running:
    """A training that waits in its middle; with ``kill`` its wrapper is killed."""

    def __init__(self, place: Workplace, *, kill: bool = False) -> None:
        self._ready = place.root / "ready"
        os.mkfifo(self._ready)
        environment = place.environment(FAKE_SCENARIO="waits", FAKE_AT="12", FAKE_READY=str(self._ready))
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._wrapper = subprocess.Popen(place.command("train", "tiny"), cwd=place.root, env=environment, **quiet)
        self._trainer = int(self._ready.read_text())
        if kill:
            self._wrapper.kill()
            self._wrapper.wait()

    def __enter__(self) -> int:
        return self._trainer

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(os.getpgid(self._trainer), signal.SIGKILL)
        self._wrapper.wait()
