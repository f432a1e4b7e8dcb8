"""The doctor, on engines, homes and caches made for it."""

import os
import sys
from pathlib import Path

import pytest
from workplace import make_workplace, write_base_model

from spyke_kohya.audit.doctor import Checkup, accelerate_user_config, examine
from spyke_kohya.engine.release import COMMIT, Engine
from spyke_kohya.errors import EngineError
from spyke_kohya.presets.loading import load

FAKE_TORCH = """
from types import SimpleNamespace
__version__ = "2.14.1"
cuda = SimpleNamespace(is_available=lambda: False)
backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
"""


@pytest.fixture
def place(tmp_path):
    return make_workplace(tmp_path)


@pytest.fixture
def engine(tmp_path):
    """An engine whose start imports what the test's Python has, and an accelerate beside that Python."""
    directory = tmp_path / "sd-scripts"
    (directory / "library").mkdir(parents=True)
    (directory / "train_network.py").write_text("import toml, torch\nfrom library import train_util\n")
    (directory / "library" / "train_util.py").write_text("import json\n")
    return Engine(directory, Path(sys.executable), COMMIT)


def checks(place, engine=None, *, preset=True, environment=None, reaches=False):
    def find() -> Engine:
        if engine is None:
            raise EngineError("no sd-scripts here", where="third_party", remedy="make engine")
        return engine

    torch = place.root / "packages" / "torch.py"  # the real one takes seconds to import
    torch.parent.mkdir(exist_ok=True)
    torch.write_text(FAKE_TORCH)
    home = place.root / "home"
    patient = Checkup(
        find_engine=find,
        preset=load("tiny", place.root).training if preset else None,
        root=place.root,
        environment={"PATH": os.environ["PATH"], "PYTHONPATH": str(torch.parent)} | (environment or {}),
        home=home,
        reaches=lambda host: reaches,
    )
    return {check.subject: check for check in examine(patient)}


def test_a_sound_machine_has_no_fault(place, engine):
    told = checks(place, engine, reaches=True)
    assert {subject: check.status for subject, check in told.items()} == {
        "Python": "ok",
        "sd-scripts": "ok",
        "engine's Python": "ok",
        "device": "ok",
        "accelerate": "ok",
        "accelerate config": "ok",
        "base model": "ok",
        "CLIP tokenizer": "warning",
        "disk": told["disk"].status,
        "sleep": told["sleep"].status,
    }
    assert all(bool(check.remedy) == (check.status != "ok") for check in told.values())
    assert "has all 5 modules" in told["engine's Python"].message
    assert "SD1.5, safetensors" in told["base model"].message


def test_a_module_that_the_engine_imports_and_its_python_lacks_is_named(place, engine):
    (engine.directory / "library" / "train_util.py").write_text("import no_such_module_here, toml\n")
    check = checks(place, engine)["engine's Python"]
    assert check.status == "fault"
    assert check.message.endswith("lacks no_such_module_here")
    assert "pip install -r" in check.remedy


def test_a_python_that_fails_says_its_last_words(place, engine, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: libtorch is broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    check = checks(place, Engine(engine.directory, broken, COMMIT))["engine's Python"]
    assert (check.status, check.message) == ("fault", f"{broken}: ImportError: libtorch is broken")


def test_a_python_that_is_none_is_a_fault(place, engine):
    check = checks(place, Engine(engine.directory, engine.script, COMMIT))["engine's Python"]
    assert check.status == "fault"
    assert "Permission denied" in check.message


def test_an_engine_at_another_commit_or_without_git_is_a_warning(place, engine):
    for commit, words in (("0" * 40, "is at 000000000000"), (None, "is no git checkout")):
        check = checks(place, Engine(engine.directory, engine.python, commit))["sd-scripts"]
        assert check.status == "warning"
        assert words in check.message


def test_without_an_engine_the_rest_is_still_told(place):
    told = checks(place)
    assert (told["sd-scripts"].status, told["sd-scripts"].remedy) == ("fault", "make engine")
    assert {"accelerate config", "base model", "CLIP tokenizer", "disk"} <= told.keys()
    assert "device" not in told


def test_an_accelerate_that_is_missing_is_a_fault(place, engine, tmp_path):
    python = tmp_path / "bare" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    check = checks(place, Engine(engine.directory, python, COMMIT))["accelerate"]
    assert check.status == "fault"
    assert "pip install accelerate" in check.remedy


@pytest.mark.parametrize("target", ["mps", "cuda"])
def test_a_device_that_the_preset_asks_for_in_vain(place, engine, target):
    place.change("tiny", launch={"target": target})
    check = checks(place, engine)["device"]
    assert (check.status, check.message) == (
        "fault",
        f"torch 2.14.1 can use cpu; the preset's target is {target}",
    )


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("use_cpu: true", "warning"),
        ("use_cpu: false", "ok"),
        ("distributed_type: MULTI_GPU", "warning"),
        ("distributed_type: MPS", "warning"),
        ("distributed_type: 'MULTI_CPU'", "warning"),
        ("distributed_type: 'NO'", "ok"),
        ("distributed_type: NO", "ok"),
        ('distributed_type: "NO"', "ok"),
        ("use_mps_device: true", "warning"),
        ("use_mps_device: false", "warning"),
        ("mixed_precision: fp16", "ok"),
    ],
)
def test_a_user_s_accelerate_config_that_would_bend_a_bare_launch(place, line, status):
    config = place.root / "home/.cache/huggingface/accelerate/default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"compute_environment: LOCAL_MACHINE\n{line}\n")
    check = checks(place)["accelerate config"]
    assert check.status == status
    assert (line in check.message) == (status == "warning")


def test_the_user_s_config_lies_where_accelerate_looks():
    home = Path("/home/spyke")
    tail = "accelerate/default_config.yaml"
    assert accelerate_user_config({}, home) == home / ".cache/huggingface" / tail
    assert accelerate_user_config({"XDG_CACHE_HOME": "/c"}, home) == Path("/c/huggingface") / tail
    assert accelerate_user_config({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/c"}, home) == Path("/hf") / tail


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("cond_stage_model.transformer.x", "ok"),
        ("cond_stage_model.model.transformer.x", "fault"),
        ("conditioner.embedders.1.model.x", "fault"),
        ("double_blocks.0.x", "fault"),
    ],
)
def test_a_base_model_of_each_family(place, key, status):
    write_base_model(place.root / "base.safetensors", key)
    assert checks(place)["base model"].status == status


def test_without_a_preset_no_base_model_is_looked_at(place):
    assert "base model" not in checks(place, preset=False)


def put_tokenizer(directory):
    directory.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        (directory / name).write_text("")


def test_a_tokenizer_nowhere_is_a_fault_and_within_reach_a_warning(place):
    assert checks(place, reaches=False)["CLIP tokenizer"].status == "fault"
    assert checks(place, reaches=True)["CLIP tokenizer"].status == "warning"


@pytest.mark.parametrize("by", ["home", "HF_HOME", "HF_HUB_CACHE"])
def test_a_tokenizer_in_the_hub_s_cache_is_found(place, by):
    hub = {"home": "home/.cache/huggingface/hub", "HF_HOME": "hf/hub", "HF_HUB_CACHE": "cache"}[by]
    environment = {"HF_HOME": str(place.root / "hf"), "HF_HUB_CACHE": str(place.root / "cache")}
    put_tokenizer(place.root / hub / "models--openai--clip-vit-large-patch14/snapshots/abc")
    environment = {by: environment[by]} if by in environment else {}
    assert checks(place, environment=environment)["CLIP tokenizer"].status == "ok"


def test_half_a_tokenizer_is_none(place):
    snapshot = place.root / "home/.cache/huggingface/hub/models--openai--clip-vit-large-patch14/snapshots/abc"
    put_tokenizer(snapshot)
    (snapshot / "merges.txt").unlink()
    assert checks(place)["CLIP tokenizer"].status == "fault"


def test_a_tokenizer_in_the_preset_s_own_cache_is_found(place):
    put_tokenizer(place.root / "tokens/openai_clip-vit-large-patch14")
    place.change("tiny", train_network={"tokenizer_cache_dir": "tokens"})
    assert checks(place)["CLIP tokenizer"].status == "ok"


def test_an_output_directory_with_a_name_too_long_is_no_crash(place):
    place.change("tiny", train_network={"output_dir": "x" * 5000})
    assert str(place.root) in checks(place)["disk"].message


def test_the_doctor_s_exit_code_tells_faults(place):
    done = place.spyke("doctor", "--engine", "nowhere")
    assert done.returncode == 5
    assert "fault    sd-scripts" in done.stdout
    assert done.stderr == ""
