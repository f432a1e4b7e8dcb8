"""Reading an evaluation back: whose losses they are, what a damaged line costs, and what is not there yet."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from evaluated import write_evaluation, write_rows
from recorded import record_run, write_lora

from spyke_kohya.errors import NothingToRank
from spyke_kohya.files import sha256_of
from spyke_kohya.rank.directory import rank_best, rank_heldout
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.report.overview import summarize
from spyke_kohya.ship.choose import choose

LEVELS = {f"spyke-step{step:08d}.safetensors": (step, level) for step, level in ((20, 0.95), (40, 0.9), (60, 0.97))}


@pytest.fixture
def run(tmp_path) -> Path:
    return record_run(tmp_path)


def ranked(run: Path) -> dict[int, float]:
    """Each step's loss over the base's, the lowest first."""
    result = rank_heldout(run, run.parent.parent)
    return {row.step: row.ratio for row in result.ranking.rows}


@pytest.mark.parametrize("schema", [1, 2])
def test_an_evaluation_is_ranked_whichever_way_it_was_recorded(run, schema):
    write_evaluation(run, LEVELS, schema=schema)
    assert list(ranked(run)) == [40, 20, 60]
    assert rank_best(run).to_dict()["by"] == "heldout"


def clash(run: Path) -> dict[str, tuple[int, float]]:
    """After a resume: a file whose true name was taken stays in `segment` under sd-scripts' own number."""
    output = run.parent.parent
    write_lora(output / "runs" / run.name / "segment" / "spyke-step00000020.safetensors", step=150)
    return LEVELS | {f"runs/{run.name}/segment/spyke-step00000020.safetensors": (150, 0.5)}


def test_two_checkpoints_of_one_file_name_each_have_their_own_loss(run):
    write_evaluation(run, clash(run))
    found = ranked(run)
    assert list(found) == [150, 40, 20, 60]
    assert found[20] == pytest.approx(0.95, abs=0.01)
    shape = rank_best(run).to_dict()["ranking"]
    assert {row["step"]: Path(row["path"]).parent.name for row in shape if row["step"] in (20, 150)} == {
        20: "spyke",
        150: "segment",
    }
    assert choose(run).checkpoint.parent.name == "segment"


def test_a_step_that_is_asked_for_is_the_run_s_own_file_of_it(run):
    output, entries = run.parent.parent, []
    for name, (step, _) in clash(run).items():
        about = {"size_bytes": (output / name).stat().st_size, "sha256": sha256_of(output / name), "problem": ""}
        entries.append({"file": name, "step": step, **about})
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"checkpoints": entries}))
    assert choose(run, step=150).checkpoint.parent.name == "segment"
    write_lora(output / "spyke-step00000040.safetensors", step=40, seed=9)
    with pytest.raises(NothingToRank, match="no checkpoint of step 40"):
        choose(run, step=40)


def test_what_was_recorded_under_a_name_that_two_checkpoints_share_is_nobody_s_loss(run):
    write_evaluation(run, clash(run), schema=1)
    assert list(ranked(run)) == [40, 60]
    notes = " ".join(rank_best(run).ranking.notes)
    assert "spyke-step00000020.safetensors, it is not measured whole yet" in notes


def test_a_checkpoint_that_was_overwritten_since_is_named_and_not_ranked_as_it_was(run):
    write_evaluation(run, LEVELS)
    write_lora(run.parent.parent / "spyke-step00000040.safetensors", step=40, seed=9)
    assert list(ranked(run)) == [20, 60]
    ranking = rank_best(run).ranking
    assert ranking.to_dict()["overwritten"] == ["spyke-step00000040.safetensors"]
    assert any("spyke-step00000040.safetensors, it is not the file that was measured" in note for note in ranking.notes)


def test_a_run_that_was_moved_is_ranked_where_it_is(run, tmp_path):
    write_evaluation(run, clash(run))
    shutil.move(tmp_path / "output", tmp_path / "kept")
    moved = tmp_path / "kept" / "spyke" / "runs" / run.name
    assert list(ranked(moved)) == [150, 40, 20, 60]
    assert all(row.candidate.file.is_file() for row in rank_best(moved).ranking.rows)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("measured", [[], ["base"], ["spyke-step00000020.safetensors"]])
def test_an_evaluation_that_was_only_begun_leaves_the_ranking_to_the_training_loss_and_says_so(run, measured, schema):
    write_evaluation(run, LEVELS, schema=schema, measured=measured)
    result = rank_best(run)
    assert result.ranking.to_dict()["by"] == "avr_loss"
    assert "spyke-kohya evaluate" in result.ranking.notes[0]
    assert choose(run).step == result.ranking.test_order[0].candidate.step
    assert summarize(RunDirectory(run)).chosen_step == choose(run).step
    with pytest.raises(NothingToRank, match=r"evaluat|measured whole"):
        rank_best(run, by="heldout")


def test_a_lora_that_can_t_be_read_costs_its_norm_alone(run):
    output = run.parent.parent
    odd = output / "spyke-step00000040.safetensors"
    odd.write_bytes(b"no tensors")
    write_evaluation(run, LEVELS)
    result = rank_heldout(run, output)
    assert {row.step: row.norm is None for row in result.ranking.rows} == {40: True, 20: False, 60: False}
    assert any(odd.name in note for note in result.ranking.notes)


def test_a_damaged_losses_csv_costs_the_column_beside_the_held_out_losses_alone(run):
    write_evaluation(run, LEVELS)
    (run / "losses.csv").write_text("step,loss,avr_loss\n1,2,3\nhalf,a,line\n")
    result = rank_best(run)
    assert result.ranking.to_dict()["by"] == "heldout"
    assert {row.avr_loss for row in result.ranking.rows} == {None}
    assert any("losses.csv" in note for note in result.ranking.notes)


@pytest.mark.parametrize(
    "line",
    [
        *("", '"', "a,b", "," * 7, "\0" * 9, "x" * 200_000),
        *('"open,a,a,125,0,0.5,a,b', "a,a,a,one,0,0.5,a,b", "a,a,a,1,0,,a,b"),
    ],
)
def test_a_damaged_line_costs_that_line_and_is_named(run, line):
    rows = write_evaluation(run, LEVELS)
    text = (run / "evaluate.csv").read_text().splitlines()
    lost = next(number for number, row in enumerate(rows) if row[0].startswith("spyke-step00000060"))
    text[lost + 1] = line
    (run / "evaluate.csv").write_text("\n".join(text) + "\n")
    assert list(ranked(run)) == [40, 20]
    notes = " ".join(rank_best(run).ranking.notes)
    assert "spyke-step00000060.safetensors, it is not measured whole yet" in notes
    assert f"line {lost + 2} of {run / 'evaluate.csv'} can't be read" in notes


def test_a_loss_that_is_no_number_costs_its_checkpoint_and_of_the_base_the_evaluation(run):
    rows = write_evaluation(run, LEVELS)
    write_rows(run, [[*row[:5], "nan", *row[6:]] if row[0].startswith("spyke-step00000060") else row for row in rows])
    assert list(ranked(run)) == [40, 20]
    for loss in ("nan", "inf", "0.0", "-1.0"):
        write_rows(run, [[*row[:5], loss, *row[6:]] if row[0] == "base" else row for row in rows])
        assert rank_best(run).to_dict()["by"] == "avr_loss"
        assert "base model" in rank_best(run).ranking.notes[0]


def test_a_second_measurement_of_the_base_that_is_no_number_is_named(run):
    rows = write_evaluation(run, LEVELS)
    write_rows(run, [[*row[:5], "nan", *row[6:]] if row[0] == "base again" else row for row in rows])
    ranking = rank_best(run).ranking
    assert "Not ranked: base again, its loss is not a number." in ranking.notes
    json.dumps(ranking.to_dict(), allow_nan=False)


DAMAGED = {
    "not JSON": lambda text: text[:40],
    "no text": lambda text: "\udcff",
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "no timesteps": lambda text: text.replace('"timesteps"', '"times"'),
    "timesteps of text": lambda text: text.replace("[125, 375, 625, 875]", '["a"]'),
    "no replicates": lambda text: text.replace('"replicates": 1', '"replicates": null'),
    "pictures of null": lambda text: text.replace('"pictures"', '"pictures": null, "more"'),
    "checkpoints of numbers": lambda text: text.replace('"checkpoints"', '"checkpoints": [1], "more"'),
    "a newer schema": lambda text: text.replace('"schema_version": ', '"schema_version": 9'),
    "a role of its own": lambda text: text.replace('"heldout", "group"', '"seen", "group"'),
    "known of null": lambda text: text.replace('"known"', '"known": null, "more"'),
}


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_request_costs_the_evaluation_and_is_named_with_its_file(run, name, schema):
    write_evaluation(run, LEVELS, schema=schema)
    file = run / "evaluate.json"
    before = file.read_text()
    file.write_text(DAMAGED[name](before), errors="surrogateescape")
    if file.read_bytes() == before.encode():
        pytest.skip("schema 2 has no such key")
    ranking = rank_best(run).ranking
    assert ranking.to_dict()["by"] == "avr_loss"
    assert str(file) in ranking.notes[0]
    with pytest.raises(NothingToRank):
        rank_best(run, by="heldout")


@pytest.mark.parametrize("content", [b"", b"other,columns\n1,2\n", b"\xff\xfe\0"])
def test_a_file_of_losses_that_is_none_costs_the_evaluation_and_is_named(run, content):
    write_evaluation(run, LEVELS)
    (run / "evaluate.csv").write_bytes(content)
    ranking = rank_best(run).ranking
    assert ranking.to_dict()["by"] == "avr_loss"
    assert str(run / "evaluate.csv") in ranking.notes[0]


def test_the_final_and_the_last_step_s_file_are_one_candidate_with_two_names(run):
    output = run.parent.parent
    os.link(output / "spyke.safetensors", output / "spyke-step00000120.safetensors")
    write_evaluation(run, LEVELS | {"spyke.safetensors": (120, 0.8)})
    assert list(ranked(run)) == [120, 40, 20, 60]
    rows = rank_best(run, by="avr_loss").to_dict()["ranking"]
    last = next(row for row in rows if row["step"] == 120)
    assert (last["file"], last["also"]) == ("spyke.safetensors", ["spyke-step00000120.safetensors"])


def test_the_rows_on_the_disk_say_what_they_were_measured_on(run):
    write_evaluation(run, LEVELS)
    with (run / "evaluate.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert columns[-2:] == ["checkpoint_id", "picture_id"]
