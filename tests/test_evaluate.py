"""Evaluating a run of the miniature: every loss is right, the same each time, and paid for once."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spyke_kohya.errors import NothingToRank
from spyke_kohya.evaluate.evaluation import PROGRAM
from spyke_kohya.evaluate.request import midpoints
from spyke_kohya.files import sha256_of
from spyke_kohya.rank.directory import rank_best
from spyke_kohya.rank.heldout_file import MeasuredLoss, read_evaluation, read_record, read_rows
from spyke_kohya.record.rundir import RunDirectory

ROOT = Path(__file__).parents[1]
MINIATURE = ROOT / "scripts" / "miniature"
NAMES = ["base", *(f"tiny-step0000000{step}.safetensors" for step in (2, 4)), "tiny.safetensors", "base again"]


def spyke(where: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spyke_kohya.cli", *map(str, words)]
    return subprocess.run(command, cwd=where, env=environment(), capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPYKE_")}
    return kept | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def trained(tiny_base, demo_pictures, tmp_path_factory) -> Path:
    """A folder in which the miniature has trained 6 steps and saved at 2, 4 and 6; 4 pictures are held out."""
    place = tmp_path_factory.mktemp("trained")
    shutil.copytree(demo_pictures, place / "dataset" / "demo")
    for file in sorted((place / "dataset" / "demo" / "heldout").iterdir())[8:]:
        file.unlink()
    (place / "presets").mkdir()
    shutil.copy(ROOT / "presets" / "demo_dataset.toml", place / "presets")
    preset = (ROOT / "presets" / "demo.toml").read_text()
    preset = preset.replace("scripts/miniature", str(MINIATURE)).replace("models/miniature", str(tiny_base))
    (place / "presets" / "tiny.toml").write_text(preset)
    settings = {"max_train_steps": 6, "save_every_n_steps": 2, "output_dir": "output", "output_name": "tiny"}
    words = [word for key, value in settings.items() for word in ("--set", f"train_network.{key}={value}")]
    done = spyke(place, "train", "tiny", *words)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def evaluated(trained) -> Path:
    done = spyke(trained, "evaluate", "output")
    assert done.returncode == 0, done.stderr
    assert "480 predictions: 3 checkpoints + twice the base, on 4 held-out + 8 trained pictures" in done.stderr
    return trained


@pytest.fixture
def place(evaluated, tmp_path) -> Path:
    """A copy of the evaluated folder, whose run can be changed."""
    copy = shutil.copytree(evaluated, tmp_path / "place")
    record = run_in(copy).record
    record.write_text(record.read_text().replace(str(evaluated), str(copy)))
    request = run_in(copy).evaluation_request
    request.write_text(request.read_text().replace(str(evaluated), str(copy)))
    return copy


def run_in(place: Path) -> RunDirectory:
    (run,) = (place / "output" / "runs").iterdir()
    return RunDirectory(run)


def rows_in(place: Path) -> list[MeasuredLoss]:
    run = run_in(place)
    return read_rows(run, read_record(run))[0]


def test_every_checkpoint_is_measured_on_every_picture_at_every_timestep(evaluated):
    with run_in(evaluated).evaluation.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["checkpoint", "image", "group", "timestep", "replicate", "loss"]
    hashes = {row["checkpoint"]: row["checkpoint_id"] for row in rows}
    assert hashes["tiny.safetensors"] == sha256_of(evaluated / "output" / "tiny.safetensors")
    assert len({row["picture_id"] for row in rows}) == 12
    assert Counter(row["checkpoint"] for row in rows) == dict.fromkeys(NAMES, 12 * 8)
    assert list(dict.fromkeys(row["checkpoint"] for row in rows)) == NAMES
    assert sorted({int(row["timestep"]) for row in rows}) == midpoints(8) == [62, 187, 312, 437, 562, 687, 812, 937]


def test_the_base_measured_twice_is_the_same(evaluated):
    found = read_evaluation(run_in(evaluated))
    assert np.array_equal(found.heldout.base, found.heldout.base_again)
    assert not np.array_equal(found.heldout.losses[0], found.heldout.base)


def test_an_evaluation_that_is_whole_is_not_made_again(place):
    before = run_in(place).evaluation.read_bytes()
    done = spyke(place, "evaluate", "output")
    assert "480 of them are measured already" in done.stderr
    assert "to load" not in done.stderr
    assert run_in(place).evaluation.read_bytes() == before


def test_a_person_who_stops_it_keeps_what_was_measured_and_the_rest_is_the_same_to_the_last_digit(place):
    file = run_in(place).evaluation
    whole = file.read_bytes()
    file.unlink()
    command = [sys.executable, "-m", "spyke_kohya.cli", "evaluate", "output"]
    with subprocess.Popen(command, cwd=place, env=environment(), stderr=subprocess.PIPE) as process:
        while process.poll() is None and (not file.exists() or file.stat().st_size < 5000):
            pass
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130, told
    kept = rows_in(place)
    assert 0 < len(kept) < 480
    with file.open("a") as torn:
        torn.write("base again,dataset/de")  # a line that was being written when the machine died
    done = spyke(place, "evaluate", "output")
    assert f"{len(kept)} of them are measured already" in done.stderr
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())


def as_trained_before_hashes_were_recorded(place: Path) -> None:
    record = run_in(place).record
    document = json.loads(record.read_text())
    entries = [one | {"sha256": ""} for one in document["checkpoints"]]
    record.write_text(json.dumps(document | {"checkpoints": entries}))


def with_other_weights(place: Path, checkpoint: Path) -> None:
    """Put the last checkpoint's weights into another, under its own metadata."""
    with safe_open(checkpoint, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(place / "output" / "tiny.safetensors"), checkpoint, metadata=metadata)


def test_a_checkpoint_that_changed_is_measured_again_and_no_other(place):
    as_trained_before_hashes_were_recorded(place)
    checkpoint = place / "output" / "tiny-step00000002.safetensors"
    before = rows_in(place)
    with_other_weights(place, checkpoint)
    done = spyke(place, "evaluate", "output")
    assert "384 of them are measured already" in done.stderr, done.stderr
    after = rows_in(place)
    assert after[: len(before)] == before
    assert {row.checkpoint for row in after[len(before) :]} == {checkpoint.name}
    last = {row.key[1:]: row.loss for row in before if row.checkpoint == "tiny.safetensors"}
    assert all(row.loss == last[row.key[1:]] for row in after[len(before) :])


def test_a_checkpoint_that_was_put_back_is_not_measured_again(place):
    as_trained_before_hashes_were_recorded(place)
    checkpoint = place / "output" / "tiny-step00000002.safetensors"
    own = checkpoint.read_bytes()
    checkpoint.write_bytes((place / "output" / "tiny.safetensors").read_bytes())
    assert "480 of them are measured already" in spyke(place, "evaluate", "output").stderr
    checkpoint.write_bytes(own)
    assert "480 of them are measured already" in spyke(place, "evaluate", "output").stderr


def test_a_checkpoint_that_was_overwritten_since_the_run_saved_it_is_named_and_not_measured(place):
    with_other_weights(place, place / "output" / "tiny-step00000002.safetensors")
    done = spyke(place, "evaluate", "output")
    assert "not measured: tiny-step00000002.safetensors, it was overwritten since this run saved it" in done.stderr
    assert "384 predictions: 2 checkpoints" in done.stderr
    ranking = rank_best(run_in(place).path, by="avr_loss").ranking
    assert {row.step: row.candidate.file is None for row in ranking.rows} == {2: True, 4: False, 6: False}
    assert ranking.notes[0].startswith("Not ranked: tiny-step00000002.safetensors, it was overwritten")


def test_an_evaluation_of_before_rows_had_an_identity_goes_on_and_is_not_paid_for_twice(place):
    run = run_in(place)
    rows = list(csv.reader(run.evaluation.read_text().splitlines()))
    run.evaluation.write_text("".join(",".join(row[:6]) + "\n" for row in rows))
    document = json.loads(run.evaluation_request.read_text())
    prepared = ("sha256", "bucket", "resized", "interpolation", "caption", "role", "group")
    known = {
        "checkpoints": {one["name"]: one["sha256"] for one in document["checkpoints"]},
        "pictures": {one["name"]: [one[key] for key in prepared] for one in document["pictures"]},
    }
    for one in [*document["checkpoints"], *document["pictures"]]:
        del one["id"]
    run.evaluation_request.write_text(json.dumps(document | {"schema_version": 1, "known": known}))
    done = spyke(place, "evaluate", "output")
    assert "480 of them are measured already" in done.stderr, done.stderr
    assert list(csv.reader(run.evaluation.read_text().splitlines())) == rows
    assert json.loads(run.evaluation_request.read_text()) == {**document, **asked_again(run)}


def asked_again(run: RunDirectory) -> dict:
    """What the upgraded request must hold again."""
    document = json.loads(run.evaluation_request.read_text())
    assert "known" not in document
    return {key: document[key] for key in ("schema_version", "checkpoints", "pictures")} | {"schema_version": 2}


@pytest.mark.parametrize("name", ["evaluate.json", "evaluate.csv"])
def test_an_evaluation_that_can_t_be_read_is_set_aside_and_made_anew(place, name):
    (run_in(place).path / name).write_text("damaged")
    done = spyke(place, "evaluate", "output", "--quick")
    assert done.returncode == 0, done.stderr
    assert (run_in(place).path / name.replace(".", "-1.")).read_text() == "damaged"


def test_other_settings_set_the_old_evaluation_aside_and_quick_measures_less(place):
    run = run_in(place)
    before = run.evaluation.read_bytes()
    document = json.loads(run.evaluation_request.read_text())
    run.evaluation_request.write_text(json.dumps(document | {"seed": 7}))
    shape = json.loads(spyke(place, "evaluate", "output", "--quick", "--json").stdout)
    assert (shape["pictures"], shape["trained_pictures"], shape["timesteps"]) == (4, 0, [125, 375, 625, 875])
    assert (run.path / "evaluate-1.csv").read_bytes() == before
    assert len(rows_in(place)) == 5 * 4 * 4


def test_a_flipped_training_picture_is_refused_as_held_out(place):
    heldout = place / "dataset" / "demo" / "heldout"
    with Image.open(place / "dataset/demo/train/1_spyke_demo/spyke_03.png") as image:
        ImageOps.mirror(image).resize((96, 96)).save(heldout / "sneaky.png")
    (heldout / "sneaky.txt").write_text("spyke_demo")
    done = spyke(place, "evaluate", "output")
    assert done.returncode == 4
    assert "sneaky.png is spyke_03.png" in " ".join(done.stderr.split())


def test_a_held_out_picture_without_a_caption_is_refused(place):
    (place / "dataset/demo/heldout/unseen_00.txt").unlink()
    done = spyke(place, "evaluate", "output")
    assert done.returncode == 4
    assert "the caption is missing" in done.stderr


def test_without_held_out_pictures_it_is_a_memorisation_curve(place):
    record = run_in(place).record
    document = json.loads(record.read_text())
    record.write_text(json.dumps(document | {"evaluate": {"heldout_dir": None}}))
    done = spyke(place, "evaluate", "output", "--quick", "--json")
    shape = json.loads(done.stdout)
    assert (shape["kind"], shape["test_order"], shape["pictures"]) == ("memorisation", [], 8)
    assert "no demonstrated winner" in shape["verdict"]
    assert rank_best(place / "output").to_dict()["by"] == "avr_loss"


def test_rank_takes_the_best_evidence_there_is_unless_told_otherwise(evaluated):
    assert rank_best(evaluated / "output").to_dict()["by"] == "heldout"
    assert rank_best(run_in(evaluated).path).to_dict()["by"] == "heldout"
    for by in ("avr_loss", "loss", "heldout"):
        shape = rank_best(evaluated / "output", by=by).to_dict()
        assert shape["by"] == by
        assert [row["step"] for row in shape["ranking"]] != []
    heldout = rank_best(evaluated / "output").to_dict()["ranking"][0]
    assert heldout["weight_norm"] > 0
    assert heldout["avr_loss"] > 0


def test_a_run_that_was_not_evaluated_has_no_held_out_ranking(place):
    run_in(place).evaluation.unlink()
    with pytest.raises(NothingToRank, match="no evaluated run here"):
        rank_best(place / "output", by="heldout")


def test_a_loss_is_that_of_the_merged_model_on_the_mean_latent(evaluated, tiny_base):
    """One loss of the last checkpoint, computed here by merging the LoRA into the base."""
    program = load_program()
    request = json.loads(run_in(evaluated).evaluation_request.read_text())
    picture = request["pictures"][0]
    models = program.DiffusersModels(request)
    weights = load_file(evaluated / "output" / "tiny.safetensors")
    for name in {key.partition(".")[0] for key in weights}:
        down, up = (weights[f"{name}.lora_{part}.weight"].flatten(1) for part in ("down", "up"))
        layer = models.layers[name]
        layer.weight.data += (up @ down * weights[f"{name}.alpha"] / len(down)).reshape(layer.weight.shape)
    with torch.no_grad():
        latents = models.vae.encode(models.read_picture(picture)[None]).latent_dist.mean[0] * 0.18215
        noise = program.noise_for(request["seed"], picture["sha256"], 437, 0, latents.shape)
        kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[437]  # scaled linear betas
        noisy = kept**0.5 * latents + (1 - kept) ** 0.5 * noise
        predicted = models.unet(noisy[None], torch.tensor([437]), models.encode(picture["caption"])).sample
    found = {(row.checkpoint, row.image, row.timestep): row.loss for row in rows_in(evaluated)}
    expected = float((predicted[0] - noise).square().mean())
    assert found["tiny.safetensors", picture["name"], 437] == pytest.approx(expected, rel=1e-4)


def test_noise_depends_on_its_own_key_alone():
    noise_for = load_program().noise_for
    shape = (4, 8, 8)
    assert torch.equal(noise_for(0, "ab", 62, 0, shape), noise_for(0, "ab", 62, 0, shape))
    others = [
        noise_for(*key, shape) for key in [(1, "ab", 62, 0), (0, "ac", 62, 0), (0, "ab", 63, 0), (0, "ab", 62, 1)]
    ]
    assert not any(torch.equal(noise_for(0, "ab", 62, 0, shape), other) for other in others)


def load_program():
    spec = importlib.util.spec_from_file_location("evaluate_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
