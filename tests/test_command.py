"""The locked command: its words, its environment, and that its script really runs by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spyke_kohya.engine.command import COMMON_ENVIRONMENT, LaunchFiles, accelerate_config, expand_home, lock_command

HOSTILE = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8",
    "TQDM_DISABLE": "1",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMI_SIZE": "2",
}
# prints what it was given, as JSON
FAKE_ACCELERATE = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}))
"""


def locked(tmp_path, *, inherited=None, target="mps", options=None, cwd=None, accelerate=Path("/venv/bin/accelerate")):
    run = Path("out/runs/now")
    return lock_command(
        accelerate=accelerate,
        script=Path("/engine/train_network.py"),
        target=target,
        num_cpu_threads_per_process=4,
        options=options or {"output_dir": "out", "no_half_vae": True},
        launch_files=LaunchFiles(run / "accelerate.yaml", run / "dataset.toml", run / "tensorboard"),
        cwd=cwd or tmp_path,
        inherited=inherited or {},
    )


def test_the_words_in_their_order(tmp_path):
    assert locked(tmp_path).argv == (
        "/venv/bin/accelerate",
        "launch",
        "--config_file=out/runs/now/accelerate.yaml",
        "--num_processes=1",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--num_cpu_threads_per_process=4",
        "/engine/train_network.py",
        "--output_dir=out",
        "--no_half_vae",
        "--dataset_config=out/runs/now/dataset.toml",
        "--logging_dir=out/runs/now/tensorboard",
        "--log_with=tensorboard",
    )


def test_what_would_bend_the_run_is_dropped_from_the_environment(tmp_path):
    inherited = {"PATH": "/bin", "HF_HOME": "/hf", "PYTORCH_ENABLE_MPS_FALLBACK": "0", **HOSTILE}
    command = locked(tmp_path, inherited=inherited)
    assert command.env_removed == tuple(sorted(HOSTILE))
    assert command.environment(inherited) == {
        "PATH": "/bin",
        "HF_HOME": "/hf",
        **COMMON_ENVIRONMENT,
        "PYTORCH_ENABLE_MPS_FALLBACK": "1",
    }


def test_the_fallback_is_for_a_mac_alone(tmp_path):
    assert "PYTORCH_ENABLE_MPS_FALLBACK" not in locked(tmp_path, target="cpu").env
    assert "PYTORCH_ENABLE_MPS_FALLBACK" not in locked(tmp_path, target="cuda").env


@pytest.mark.parametrize("folder", ["plain", "with space", 'it\'s "quoted" $HOME `ls`', "émoji 🐱", "-dash", "a\nb"])
def test_the_script_runs_by_hand_with_the_same_words_and_environment(tmp_path, folder):
    place = tmp_path / folder
    (place / "bin").mkdir(parents=True)
    accelerate = place / "bin" / "accelerate"
    accelerate.write_text(FAKE_ACCELERATE, encoding="utf-8")
    accelerate.chmod(0o755)
    inherited = {"PATH": os.environ["PATH"], **HOSTILE}
    options = {
        "output_dir": f"{place}/out",
        "training_comment": "two\nlines; $(touch x)",
        "network_args": ["a=1", "b c"],
    }
    command = locked(tmp_path, inherited=inherited, options=options, cwd=place, accelerate=accelerate)
    script = tmp_path / "command.sh"
    script.write_text(command.as_shell(), encoding="utf-8")
    done = subprocess.run(["sh", str(script)], env=inherited, cwd="/", capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["argv"] == list(command.argv[1:])
    assert told["cwd"] == str(place)
    wanted = command.environment(inherited)
    set_by_the_shell = {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}
    assert {name: value for name, value in told["env"].items() if name not in set_by_the_shell} == wanted


def test_a_variable_that_no_shell_can_name_does_not_break_the_script(tmp_path):
    inherited = {"ACCELERATE_$(touch x)": "1", "TQDM_ASCII": "1"}
    script = locked(tmp_path, inherited=inherited).as_shell()
    assert "unset TQDM_ASCII\n" in script
    assert "touch" not in script


@pytest.mark.parametrize(("target", "use_cpu"), [("mps", "false"), ("cuda", "false"), ("cpu", "true")])
def test_accelerate_s_own_config_leaves_nothing_to_a_user_s(target, use_cpu):
    lines = dict(line.split(": ") for line in accelerate_config(target).splitlines())
    assert lines["use_cpu"] == use_cpu
    assert lines["distributed_type"] == "'NO'"
    assert lines["mixed_precision"] == "'no'"
    assert lines["num_processes"] == "1"


def test_accelerate_reads_that_config():
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    import yaml

    told = yaml.safe_load(accelerate_config("mps"))
    assert config_args.ClusterConfig(**told).use_cpu is False


def test_home_is_expanded_in_paths_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("HOME", "/home/spyke")
    assert expand_home("output_dir", "~/loras") == "/home/spyke/loras"
    assert expand_home("base_weights", ["~/a", "b//c"]) == ["/home/spyke/a", "b//c"]
    assert expand_home("output_name", "~/loras") == "~/loras"
    assert expand_home("vae", "stabilityai/sd-vae") == "stabilityai/sd-vae"


def test_the_home_of_nobody_stays_as_it_is():
    assert expand_home("output_dir", "~no-such-user-here/x") == "~no-such-user-here/x"
