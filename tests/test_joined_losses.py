"""Losses of a run that was resumed: one history, with the avr_loss of a run that was not interrupted."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from spyke_kohya.engine.scalars import StepLoss, losses_from_events
from spyke_kohya.record.rundir import RunDirectory
from spyke_kohya.run.lossfile import history, joined

TRANSCRIPTS = Path(__file__).parent / "data" / "transcripts"
PLANS = {
    "two_epochs": SimpleNamespace(batches_per_epoch=8, steps_per_epoch=8, gradient_accumulation_steps=1),
    "grad_accum_reg": SimpleNamespace(batches_per_epoch=12, steps_per_epoch=6, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("name", PLANS)
def test_any_cut_at_an_epoch_s_end_gives_the_uninterrupted_averages(name):
    plan = PLANS[name]
    whole = losses_from_events([TRANSCRIPTS / f"{name}.tfevents"])
    assert len(whole) % plan.steps_per_epoch == 0
    for cut in range(plan.steps_per_epoch, len(whole), plan.steps_per_epoch):
        own = [replace(loss, avr_loss=-1.0) for loss in whole[cut:]]
        again = joined(whole[:cut], own, plan)
        assert [loss.step for loss in again] == [loss.step for loss in whole]
        assert [loss.avr_loss for loss in again] == pytest.approx([loss.avr_loss for loss in whole], rel=1e-6)


def test_a_last_step_of_fewer_batches_weighs_less():
    """8 batches an epoch, 3 to a step: the third step has 2."""
    plan = SimpleNamespace(batches_per_epoch=8, steps_per_epoch=3, gradient_accumulation_steps=3)
    micro = [float(batch) for batch in range(1, 17)]
    steps = [micro[0:3], micro[3:6], micro[6:8], micro[8:11], micro[11:14], micro[14:16]]
    losses = [StepLoss(n, sum(part) / len(part), 0.0, {}, len(part)) for n, part in enumerate(steps, start=1)]
    ends = [11, 14, 16]
    assert [one.avr_loss for one in joined(losses[:3], losses[3:], plan)[3:]] == pytest.approx(
        [sum(micro[end - 8 : end]) / 8 for end in ends]
    )


def run_in(folder: Path, name: str, resumed_from: dict | None = None, *, events: bool = True) -> RunDirectory:
    run = RunDirectory(folder / name)
    run.path.mkdir(parents=True)
    run.record.write_text(json.dumps({"resumed_from": resumed_from}))
    if events:
        run.tensorboard.mkdir()
        shutil.copy(TRANSCRIPTS / "two_epochs.tfevents", run.tensorboard / "events.out.tfevents.0.fake")
    return run


def test_a_history_goes_back_through_every_run(tmp_path):
    run_in(tmp_path, "1")
    run_in(tmp_path, "2", {"run": "1", "step": 8})
    third = run_in(tmp_path, "3", {"run": "2", "step": 16})
    losses = history(third)
    assert [loss.step for loss in losses] == list(range(1, 33))
    assert [loss.loss for loss in losses[8:16]] == [loss.loss for loss in losses[:8]]
    assert [loss.step for loss in history(third, 20)] == list(range(1, 21))


def test_without_event_files_the_table_counts(tmp_path):
    run = run_in(tmp_path, "1", events=False)
    assert history(run) == []
    run.losses.write_text("step,loss,avr_loss,lr_unet\n1,0.5,0.5,0.1\n2,0.25,0.375,\n")
    assert [(loss.step, loss.loss, loss.lr) for loss in history(run)] == [(1, 0.5, {"unet": 0.1}), (2, 0.25, {})]
    run.losses.write_text("step,loss\n1,x\n")
    assert history(run) == []


def test_a_record_that_can_not_be_read_says_nothing_of_an_earlier_run(tmp_path):
    run = run_in(tmp_path, "1", {"run": "0", "step": 8})
    run.record.write_text(json.dumps({})[:-1])
    assert [loss.step for loss in history(run)][:1] == [1]


def test_the_transcripts_are_what_they_are_taken_for():
    with (TRANSCRIPTS / "grad_accum_reg.losses.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == 24
