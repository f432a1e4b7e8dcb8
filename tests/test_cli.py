"""The command line: its JSON, its exit codes, what goes where, and how it fails."""

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import click
import pytest
from workplace import PROJECT, TRANSCRIPTS, make_workplace

from spyke_kohya.cli import main
from spyke_kohya.cli.group import cli


@pytest.fixture
def place(tmp_path, monkeypatch):
    made = make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def spyke(place, monkeypatch, capfd):
    """The command line in this process: exit code, stdout, stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["spyke-kohya", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return ended.value.code, out, err

    return run


def flat(text):
    return " ".join(text.split())


def test_validate_gives_json_alone_for_each_preset_in_turn(spyke, place):
    place.change("tiny", expect={"total_steps": 20})
    code, out, err = spyke("validate", "data", "tiny", "none", "--json")
    assert (code, err) == (3, "")
    data, tiny, none = json.loads(out)
    assert data == {"preset": "data", "kind": "dataset", "ok": True, "findings": []}
    assert (tiny["kind"], tiny["ok"]) == ("training", False)
    assert (none["ok"], none["findings"][0]["code"]) == (False, "schema.no-such-preset")
    for one in (tiny, none):
        for finding in one["findings"]:
            assert list(finding) == ["code", "severity", "where", "message", "remedy"]
            assert finding["severity"] in ("error", "warning")


def test_validate_for_people_counts_and_explains(spyke, place):
    (place.images / "1.txt").unlink()
    code, out, _ = spyke("validate", "tiny", "data")
    assert code == 4
    assert out.startswith("tiny: 1 error, 1 warning\nerror: ")
    assert "data: 1 warning\n" in out
    assert "[captions.missing]" in out
    assert "  do: " in out


def test_strict_takes_warnings_for_errors(spyke, place):
    (place.images / "1.txt").unlink()
    assert spyke("validate", "data")[0] == 0
    assert spyke("validate", "data", "--strict")[0] == 4


def test_settings_are_put_over_what_is_validated(spyke):
    assert spyke("validate", "tiny", "--set", "expect.total_steps=3")[0] == 3
    assert spyke("validate", "tiny", "--set", "train_network.max_train_steps=3")[0] == 0


def test_a_setting_that_is_none_is_a_usage_error(spyke):
    code, out, err = spyke("validate", "tiny", "--set", "nonsense")
    assert (code, out) == (2, "")
    assert "table.key=value" in err


@pytest.mark.parametrize("words", [("nonsense",), ("validate",), ("plan", "tiny", "--nonsense"), ("plan", "a", "b")])
def test_words_that_are_off_are_usage_errors(spyke, words):
    code, out, err = spyke(*words)
    assert (code, out) == (2, "")
    assert "Error" in err


def test_a_plan_has_every_promised_number(spyke):
    code, out, err = spyke("plan", "tiny", "--json")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    promised = {
        "num_train_images": 8,
        "num_reg_images": 0,
        "batches_per_epoch": 8,
        "steps_per_epoch": 8,
        "epochs": 2,
        "total_steps": 16,
        "validation_batches": 0,
        "buckets": [[[[64, 64], 8]]],
        "checkpoints": [
            {"step": 5, "file": "tiny-step00000005.safetensors"},
            {"step": 10, "file": "tiny-step00000010.safetensors"},
            {"step": 15, "file": "tiny-step00000015.safetensors"},
            {"step": 16, "file": "tiny.safetensors"},
        ],
    }
    assert plan.items() >= promised.items()


def test_a_dataset_s_plan_is_completed_by_flags(spyke):
    words = ("plan", "data", "--epochs", "3", "--gradient-accumulation-steps", "4", "--num-processes", "2", "--json")
    code, out, _ = spyke(*words)
    plan = json.loads(out)
    assert (code, plan["steps_per_epoch"], plan["total_steps"]) == (0, 1, 3)


def test_a_plan_is_printed_whatever_the_findings(spyke):
    code, out, err = spyke("plan", "tiny", "--set", "expect.total_steps=20")
    assert code == 0
    assert out.startswith("4 images x 2 repeats = 8 batches an epoch, x 2 epochs = 16 steps")
    assert err.count("[plan.unexpected-steps]") == 1


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (("train_network.learning_rat=1",), 3),
        (("dataset=none",), 3),
        (("train_network.gradient_accumulation_steps=0",), 3),
    ],
)
def test_where_sd_scripts_could_not_start_there_is_no_plan(spyke, settings, code):
    words = [word for setting in settings for word in ("--set", setting)]
    returned, out, err = spyke("plan", "tiny", *words)
    assert (returned, out) == (code, "")
    assert "there is no plan" in flat(err)
    assert err.count("error: presets/tiny.toml") <= 1


def test_a_dry_run_gives_the_command_and_its_files_and_starts_nothing(spyke, place):
    code, out, err = spyke("train", "tiny", "--dry-run", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["argv"][:2] == [str(place.root / "venv/bin/accelerate"), "launch"]
    assert told["cwd"] == str(place.root)
    assert set(told["files"]) == {"accelerate.yaml", "dataset.toml", "command.sh"}
    assert told["env"]["PYTHONUNBUFFERED"] == "1"
    code, out, err = spyke("train", "tiny", "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("#!/bin/sh\n")
    assert not place.output.exists()


def test_a_dry_run_is_printed_whatever_the_findings(spyke, place):
    (place.root / "base.safetensors").unlink()
    code, out, err = spyke("train", "tiny", "--dry-run")
    assert code == 0
    assert out.startswith("#!/bin/sh\n")
    assert err.count("[base.missing]") == 1


def test_a_fault_stops_a_launch_and_is_told_once(spyke, place):
    (place.root / "base.safetensors").unlink()
    code, out, err = spyke("train", "tiny")
    assert (code, out) == (3, "")
    assert err.count("[base.missing]") == 1
    assert "not started: 1 error" in err
    assert not place.output.exists()


def test_strict_stops_a_launch_for_a_warning(spyke, place):
    setting = ("--set", "train_network.pretrained_model_name_or_path=a/b")
    code, _, err = spyke("train", "tiny", "--strict", *setting)
    assert code == 3
    assert "not started: 1 warning" in err


def test_a_run_is_trained_recorded_and_ranked(spyke, place, monkeypatch):
    monkeypatch.setenv("FAKE_EVENTS", str(TRANSCRIPTS / "two_epochs.tfevents"))
    code, out, err = spyke("train", "tiny")
    assert code == 0
    assert "training on cpu: 8 batches an epoch, 2 epochs, 16 steps" in err
    assert "step 5: saved tiny-step00000005.safetensors" in err
    assert "finished: 16 steps in 0:0" in err
    assert "4 checkpoints, whole on the disk" in err
    assert "tiny-step00000010" in out
    assert (place.only_run() / "ranking.png").is_file()
    code, out, err = spyke("rank", "output", "--json")
    ranking = json.loads(out)
    assert (code, err) == (0, "")
    promised = {"window", "regime", "ranking", "minimum_step", "tied_steps", "onset_step", "verdict", "test_order"}
    assert promised <= ranking.keys()
    assert {"rank", "step", "file", "avr_loss", "standard_error", "tied"} <= ranking["ranking"][0].keys()


def test_a_finished_run_without_event_files_is_ranked_by_its_console(spyke, place):
    code, out, _ = spyke("train", "tiny")
    assert code == 0
    assert not (place.only_run() / "losses.csv").exists()
    assert "4 checkpoints by avr_loss" in out


def test_an_outcome_in_json_is_alone_on_stdout(spyke):
    code, out, err = spyke("train", "tiny", "--json")
    told = json.loads(out)
    assert (code, told["status"], told["steps"], len(told["checkpoints"])) == (0, "finished", 16, 4)
    assert "finished: 16 steps" in err


def test_a_failed_run_says_why_and_where_to_look(spyke, place, monkeypatch):
    monkeypatch.setenv("FAKE_SCENARIO", "traceback")
    code, out, err = spyke("train", "tiny")
    assert (code, out) == (6, "")
    assert "training failed after 4 steps" in flat(err)
    assert "OSError: image file is truncated" in flat(err)
    console = re.search(r"see (\S+console\.log)", flat(err))[1]
    assert Path(console).read_bytes().startswith(b"accelerator device")


def test_a_smoke_run_takes_five_steps_and_leaves_nothing(spyke, place, monkeypatch):
    scratch = place.root / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    code, out, err = spyke("train", "tiny", "--smoke")
    assert (code, out) == (0, "")
    assert "finished: 5 steps" in err
    assert list(scratch.iterdir()) == []
    assert not place.output.exists()


def test_a_smoke_run_that_fails_keeps_its_console(spyke, place, monkeypatch):
    monkeypatch.setenv("FAKE_SCENARIO", "traceback")
    monkeypatch.setattr("tempfile.tempdir", str(place.root))
    code, _, err = spyke("train", "tiny", "--smoke")
    assert code == 6
    assert Path(re.search(r"see (\S+console\.log)", flat(err))[1]).is_file()


def test_nothing_to_rank_has_its_exit_code(spyke, place):
    place.output.mkdir()
    code, out, err = spyke("rank", "output")
    assert (code, out) == (7, "")
    assert err.startswith("error: ")


def test_the_doctor_in_json(spyke):
    code, out, err = spyke("doctor", "--json")
    told = json.loads(out)
    assert err == ""
    assert code == (5 if any(check["status"] == "fault" for check in told) else 0)
    assert all(list(check) == ["subject", "status", "message", "remedy"] for check in told)


def test_the_doctor_of_a_faulty_preset_says_its_faults(spyke):
    code, out, err = spyke("doctor", "data")
    assert (code, out) == (3, "")
    assert "not a training preset" in flat(err)


def commands(group, name="spyke-kohya"):
    yield (name,)
    for child in group.commands:
        yield (name, child)


@pytest.mark.parametrize("words", [*commands(cli)], ids=" ".join)
def test_help_fits_80_columns_and_explains_every_option(spyke, words):
    code, out, err = spyke(*words[1:], "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    command = cli.commands[words[1]] if len(words) > 1 else cli
    assert command.help
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def test_the_version_is_told(spyke):
    assert re.search(r"\d+\.\d+", spyke("--version")[1])


def test_a_fault_of_our_own_leaves_a_log_to_report(spyke, monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr("spyke_kohya.presets.loading.load", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = spyke("validate", "tiny")
    assert (code, out) == (1, "")
    assert err.startswith("error: RuntimeError: a bug of ours\n")
    (log,) = tmp_path.glob("spyke-kohya-*.log")
    assert str(log) in err
    text = log.read_text()
    assert "spyke-kohya validate tiny" in text
    assert "Traceback" in text


def test_an_interruption_outside_a_run_has_its_exit_code(spyke, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("spyke_kohya.presets.loading.load", interrupted)
    code, out, err = spyke("validate", "tiny")
    assert (code, out, err.strip()) == (130, "", "interrupted")


@pytest.mark.parametrize("words", [("plan", "tiny"), ("validate", "tiny", "--json"), ("--help",), ("train", "tiny")])
def test_a_reader_that_has_left_is_no_fault(place, words):
    reading, writing = os.pipe()
    os.close(reading)
    command = place.command(*words)
    environment = place.environment(FAKE_EVENTS=str(TRANSCRIPTS / "two_epochs.tfevents"))
    done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert b"Error" not in done.stderr
    assert done.returncode == 0


def test_a_run_goes_on_when_nobody_reads_along(place):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(place.command("train", "tiny"), env=place.environment(), stderr=writing, check=False)
    os.close(writing)
    assert done.returncode == 0
    assert place.record()["status"] == "finished"


def test_the_front_door_is_light():
    program = "import sys, spyke_kohya.cli; print(sorted({'pydantic', 'numpy', 'rich', 'PIL'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("columns", "width"), [(60, "60"), (80, "80"), (200, "120"), (None, "100")])
def test_a_table_in_a_pipe_is_as_wide_as_the_terminal_beside_it(columns, width):
    """As in `spyke-kohya rank DIR | tail`: stdout is a pipe, stderr the terminal."""
    code = "from spyke_kohya.cli.terminal import terminal_width; print(terminal_width())"
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {
        "PYTHONPATH": str(PROJECT)
    }
    terminal, stderr = os.openpty()
    try:
        if columns:
            fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        told = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=stderr if columns else subprocess.DEVNULL,
            env=environment,
            text=True,
            check=True,
        )
    finally:
        os.close(terminal)
        os.close(stderr)
    assert told.stdout.strip() == width
