"""What a run is started with, whole: the locked command of the run of record against its golden files."""

import io
import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
import toml
from PIL import Image
from workplace import PROJECT, make_workplace

from spyke_kohya.audit.examine import examine
from spyke_kohya.engine.release import COMMIT, Engine
from spyke_kohya.presets.loading import load
from spyke_kohya.run.launch import prepare_launch

GOLDEN = Path(__file__).parent / "golden"
HOME = Path("/home/spyke")
ENGINE = Engine(HOME / "sd-scripts", HOME / "venv/bin/python", COMMIT)
NOW = datetime(2026, 2, 20, 10, 15, 30)
HOSTILE = {"PATH": "/usr/bin:/bin", "ACCELERATE_USE_CPU": "true", "LOCAL_RANK": "0", "RANK": "0", "TQDM_DISABLE": "1"}


@pytest.fixture(scope="module")
def record_root(tmp_path_factory):
    """The presets of the project, and as many images with captions as the run of record had."""
    root = tmp_path_factory.mktemp("record")
    shutil.copytree(PROJECT / "presets", root / "presets")
    png = io.BytesIO()
    Image.new("RGB", (64, 64)).save(png, "PNG")
    for folder, count in (("train/1_spyke_plasma_v1", 23), ("reg/1_anime_character", 100)):
        directory = root / "dataset/spyke" / folder
        directory.mkdir(parents=True)
        for index in range(count):
            (directory / f"{index:03}.png").write_bytes(png.getvalue())
            (directory / f"{index:03}.txt").write_text("spyke_plasma_v1, 1boy")
    return root


@pytest.fixture
def launch_of(record_root, monkeypatch):
    def launch(name, *settings):
        monkeypatch.setenv("HOME", str(HOME))
        examined = examine(load(name, record_root, settings), record_root)
        assert [finding.code for finding in examined.findings if finding.severity == "error"] == ["base.missing"]
        return prepare_launch(examined.loaded, examined.plan, ENGINE, root=HOME / "project", now=NOW, inherited=HOSTILE)

    return launch


def test_the_run_of_record_is_planned_as_it_was_run(launch_of):
    plan = launch_of("spyke_plasma_v1").plan
    assert (plan.batches_per_epoch, plan.epochs, plan.total_steps) == (460, 4, 1840)
    assert [saved.step for saved in plan.checkpoints] == [*range(200, 1801, 200), 1840]


def test_the_planned_run_is_half_of_it(launch_of):
    assert launch_of("spyke_plasma_v2").plan.total_steps == 920


@pytest.mark.parametrize("name", ["spyke_plasma_v1", "spyke_plasma_v2"])
def test_the_dry_run_is_the_golden_file_s(launch_of, name):
    told = json.dumps(launch_of(name).to_dict(), indent=2, ensure_ascii=False) + "\n"
    assert told == (GOLDEN / f"{name}.dry_run.json").read_text(encoding="utf-8")


def test_the_script_is_the_golden_file_s(launch_of):
    script = launch_of("spyke_plasma_v1").command.as_shell()
    assert script == (GOLDEN / "spyke_plasma_v1.command.sh").read_text(encoding="utf-8")


def test_the_options_are_exactly_the_preset_s_and_those_of_the_launcher(launch_of):
    preset = toml.loads((PROJECT / "presets/spyke_plasma_v1.toml").read_text(encoding="utf-8"))["train_network"]
    argv = launch_of("spyke_plasma_v1").command.argv
    words = argv[argv.index("/home/spyke/sd-scripts/train_network.py") + 1 :]
    names = [word.removeprefix("--").partition("=")[0] for word in words]
    states = ["save_state", "save_every_n_epochs", "save_last_n_epochs_state", "save_last_n_steps_state"]
    assert names == [*preset, *states, "dataset_config", "logging_dir", "log_with"]


def test_without_states_the_options_are_the_preset_s_and_three_of_the_launcher(launch_of):
    words = launch_of("spyke_plasma_v1", "launch.save_state=false").command.argv
    assert not [word for word in words if "state" in word or "epochs=1" in word]


def test_a_home_in_the_dataset_is_written_out_and_json_becomes_toml(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = make_workplace(tmp_path)
    data = toml.loads((tmp_path / "presets/data.toml").read_text())
    data["datasets"][0]["subsets"][0]["image_dir"] = "~/dataset/1_spyke"
    (tmp_path / "presets/data.json").write_text(json.dumps(data))
    text = (tmp_path / "presets/tiny.toml").read_text().replace("data.toml", "data.json")
    (tmp_path / "presets/tiny.toml").write_text(text)
    examined = examine(load("tiny", tmp_path), tmp_path)
    assert examined.findings == ()
    launch = prepare_launch(examined.loaded, examined.plan, ENGINE, root=tmp_path, now=NOW, inherited={})
    data["datasets"][0]["subsets"][0]["image_dir"] = str(place.images)
    assert toml.loads(launch.files["dataset.toml"]) == data


def test_a_dataset_in_toml_is_handed_on_word_for_word(launch_of):
    given = launch_of("spyke_plasma_v1").files["dataset.toml"]
    assert given == (PROJECT / "presets/spyke.toml").read_text(encoding="utf-8")


def test_nothing_is_made_before_the_start(launch_of, record_root):
    launch = launch_of("spyke_plasma_v1")
    assert not (record_root / "output").exists()
    assert str(launch.run.path) == "output/loras/spyke/runs/20260220-101530-spyke_plasma_v1"
