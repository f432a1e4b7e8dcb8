"""Ranking a directory: which losses and which files are taken, and what is said when some are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from spyke_kohya.errors import NothingToRank, UsageError
from spyke_kohya.rank.directory import rank_directory

RECORD = Path(__file__).parent / "data" / "curves" / "seed_spyke_plasma_v1.csv"
STEPS = (1000, 1200, 1400, 1600, 1800, 1840)
LOSSES = dict(zip(STEPS, (0.0786, 0.0738, 0.0717, 0.0805, 0.0856, 0.0855), strict=True))


def save(path: Path, **metadata) -> None:
    weights = {"lora_unet_a.lora_down.weight": np.zeros((1, 4), dtype=np.float32)}
    save_file(weights, path, metadata={key: str(value) for key, value in metadata.items()} or None)


def save_record(directory: Path, name: str = "spyke", **metadata) -> None:
    for step in STEPS:
        save(directory / f"{name}-step{step:08d}.safetensors", ss_steps=step, **metadata)
    save(directory / f"{name}.safetensors", ss_steps=STEPS[-1], **metadata)


def make_run(output_dir: Path, name: str, losses: str, record: dict | None = None) -> Path:
    run = output_dir / "runs" / name
    run.mkdir(parents=True)
    (run / "losses.csv").write_text(losses)
    if record is not None:
        (run / "run.json").write_text(json.dumps(record))
    return run


def table(losses: dict[int, float]) -> str:
    return "step,loss,avr_loss,lr_unet\n" + "".join(f"{step},,{loss},1e-4\n" for step, loss in losses.items())


RECORD_JSON = {"output_name": "spyke", "plan": {"batches_per_epoch": 460}, "settings": {"train_batch_size": 1}}


def test_the_run_of_record_is_ranked_by_its_files(tmp_path):
    save_record(tmp_path)
    shape = rank_directory(tmp_path, losses=RECORD).to_dict()
    assert [(trial["step"], trial["role"], trial["file"]) for trial in shape["test_order"][:3]] == [
        (1400, "candidate", "spyke-step00001400.safetensors"),
        (1200, "fallback", "spyke-step00001200.safetensors"),
        (1840, "baseline", "spyke.safetensors"),
    ]
    last = next(row for row in shape["ranking"] if row["step"] == 1840)
    assert (last["file"], last["also"]) == ("spyke.safetensors", ["spyke-step00001840.safetensors"])
    assert shape["directory"] == str(tmp_path)


def test_the_run_of_record_is_ranked_without_any_file(tmp_path):
    shape = rank_directory(tmp_path, losses=RECORD).to_dict()
    assert (shape["minimum_step"], shape["tied_steps"]) == (1400, [1000, 1200, 1400])
    assert {row["file"] for row in shape["ranking"]} == {None}


def test_an_output_directory_is_ranked_by_its_newest_run_with_losses(tmp_path):
    save_record(tmp_path)
    make_run(tmp_path, "20260219-000000-spyke", table(dict.fromkeys(STEPS, 0.1)), RECORD_JSON)
    wanted = make_run(tmp_path, "20260220-000000-spyke", table(LOSSES), RECORD_JSON)
    make_run(tmp_path, "20260221-000000-spyke", "step,loss,avr_loss,lr_unet\n", RECORD_JSON)
    result = rank_directory(tmp_path)
    assert result.run_dir == wanted
    assert result.title == "20260220-000000-spyke"
    assert (result.ranking.minimum.step, result.ranking.window) == (1400, 460)


def test_a_run_directory_ranks_the_checkpoints_of_its_own_training(tmp_path):
    save_record(tmp_path)
    save(tmp_path / "another.safetensors", ss_steps=9)
    run = make_run(tmp_path, "20260220-000000-spyke", table(LOSSES), RECORD_JSON)
    result = rank_directory(run)
    assert result.directory == tmp_path
    assert [row.step for row in result.ranking.by_step] == list(STEPS)


def test_the_name_chooses_among_runs_and_checkpoints(tmp_path):
    save_record(tmp_path)
    save(tmp_path / "another-step00000009.safetensors", ss_steps=9)
    make_run(tmp_path, "20260220-000000-spyke", table(LOSSES), RECORD_JSON)
    make_run(tmp_path, "20260221-000000-another", table({9: 0.1}), {"output_name": "another"})
    assert rank_directory(tmp_path, name="spyke").ranking.minimum.step == 1400
    assert rank_directory(tmp_path, name="another").ranking.minimum.step == 9
    with pytest.raises(UsageError, match="no checkpoint named spike here; there is another, spyke"):
        rank_directory(tmp_path, name="spike", losses=RECORD)


def test_the_window_is_taken_from_the_best_source_there_is(tmp_path):
    save_record(tmp_path, ss_num_batches_per_epoch=300)
    bare = tmp_path / "bare.csv"
    bare.write_text(table(LOSSES))
    assert rank_directory(tmp_path, losses=bare).ranking.window == 300
    assert rank_directory(tmp_path, losses=RECORD).ranking.window == 460
    assert rank_directory(tmp_path, losses=RECORD, window=500).ranking.window == 500
    make_run(tmp_path, "20260220-000000-spyke", table(LOSSES), RECORD_JSON)
    assert rank_directory(tmp_path).ranking.window == 460


def test_an_unreadable_checkpoint_is_named_and_the_others_are_ranked(tmp_path):
    save_record(tmp_path)
    (tmp_path / "spyke-step00001400.safetensors").write_bytes(b"cut short")
    ranking = rank_directory(tmp_path, losses=RECORD).ranking
    assert ranking.minimum.step == 1200
    assert [file.name for file, _ in ranking.unreadable] == ["spyke-step00001400.safetensors"]
    assert ranking.notes[0].startswith("Not ranked: spyke-step00001400.safetensors, not a readable safetensors file")


def test_a_directory_of_unreadable_checkpoints_is_not_ranked_by_its_losses_alone(tmp_path):
    (tmp_path / "spyke.safetensors").write_bytes(b"")
    with pytest.raises(NothingToRank, match="none of the checkpoints here can be used: spyke"):
        rank_directory(tmp_path, losses=RECORD)


def test_a_directory_without_losses_says_how_to_give_some(tmp_path):
    save_record(tmp_path)
    with pytest.raises(NothingToRank, match="no losses on record here") as refused:
        rank_directory(tmp_path)
    assert "--losses FILE" in refused.value.remedy


def test_a_run_without_losses_is_not_ranked_by_another_s(tmp_path):
    make_run(tmp_path, "20260219-000000-spyke", table(LOSSES), RECORD_JSON)
    empty = make_run(tmp_path, "20260220-000000-spyke", "step,loss,avr_loss\n", RECORD_JSON)
    with pytest.raises(NothingToRank, match="no losses on record here"):
        rank_directory(empty)


def test_losses_of_every_step_need_to_know_where_the_checkpoints_were(tmp_path):
    dense = tmp_path / "dense.csv"
    dense.write_text("step,avr_loss\n" + "".join(f"{step},0.08\n" for step in range(1, 1841)))
    with pytest.raises(NothingToRank, match="no checkpoint here") as refused:
        rank_directory(tmp_path, losses=dense)
    assert "--every N" in refused.value.remedy
    steps = [row.step for row in rank_directory(tmp_path, losses=dense, every=400).ranking.by_step]
    assert steps == [400, 800, 1200, 1600, 1840]


def test_losses_of_another_training_do_not_rank_these_checkpoints(tmp_path):
    save(tmp_path / "spyke-step00000007.safetensors", ss_steps=7)
    with pytest.raises(NothingToRank, match="step 7: no avr_loss is recorded at this step"):
        rank_directory(tmp_path, losses=RECORD)


def test_a_checkpoint_without_metadata_is_placed_by_what_is_known_of_the_training(tmp_path):
    for name in ("spyke-000002", "spyke"):
        save(tmp_path / f"{name}.safetensors")
    losses = tmp_path / "losses.csv"
    losses.write_text("# 460 batches/epoch\n" + table({920: 0.08, 1840: 0.07}))
    rows = rank_directory(tmp_path, losses=losses).ranking.by_step
    assert [(row.step, row.candidate.file.name) for row in rows] == [
        (920, "spyke-000002.safetensors"),
        (1840, "spyke.safetensors"),
    ]


def test_a_directory_that_is_none_is_a_slip_of_the_command(tmp_path):
    with pytest.raises(UsageError, match="no such file or directory"):
        rank_directory(tmp_path / "nowhere")


def test_a_run_record_that_is_cut_short_is_refused(tmp_path):
    run = make_run(tmp_path, "20260220-000000-spyke", table(LOSSES))
    (run / "run.json").write_text('{"output_name": ')
    with pytest.raises(NothingToRank, match="this run's record can't be read"):
        rank_directory(run)


def test_a_training_may_be_moved_with_its_runs(tmp_path):
    (tmp_path / "a").mkdir()
    save_record(tmp_path / "a")
    make_run(tmp_path / "a", "20260220-000000-spyke", table(LOSSES), RECORD_JSON)
    shutil.move(tmp_path / "a", tmp_path / "b c")
    assert rank_directory(tmp_path / "b c").ranking.minimum.step == 1400


CONSOLE = Path(__file__).parent / "data" / "transcripts" / "two_epochs.raw"
EVENTS = Path(__file__).parent / "data" / "transcripts" / "two_epochs.tfevents"


def test_a_saved_console_is_a_source_and_tells_which_steps_were_saved(tmp_path):
    shutil.copy(CONSOLE, tmp_path / "console.log")
    ranking = rank_directory(tmp_path / "console.log").ranking
    assert ranking.window is not None
    assert len(ranking.rows) > 1
    assert all(row.candidate.file is None for row in ranking.rows)


def test_a_tensorboard_folder_is_a_source(tmp_path):
    folder = tmp_path / "logs" / "network_train"
    folder.mkdir(parents=True)
    shutil.copy(EVENTS, folder / "events.out.tfevents.1")
    for source in (tmp_path / "logs", folder):
        assert rank_directory(source, every=4).ranking.sigma_source in ("assumed", "per-step losses")
    assert rank_directory(tmp_path / "logs", every=4, by="loss").ranking.regime == "centred"


def test_a_run_without_its_table_is_ranked_by_its_event_files_or_else_its_console(tmp_path):
    run = make_run(tmp_path, "20260220-000000-r", "step,loss\n", {"output_name": "r"})
    (run / "losses.csv").unlink()
    shutil.copy(CONSOLE, run / "console.log")
    assert rank_directory(tmp_path / "runs" / run.name, every=4).curve.loss is None
    (run / "tensorboard").mkdir()
    shutil.copy(EVENTS, run / "tensorboard" / "events.out.tfevents.1")
    assert rank_directory(tmp_path / "runs" / run.name, every=4).curve.loss is not None


def test_a_ranking_by_the_loss_around_each_step_needs_every_single_loss(tmp_path):
    save_record(tmp_path)
    with pytest.raises(NothingToRank, match="every single step is not on record"):
        rank_directory(tmp_path, losses=RECORD, by="loss")
