"""Losses out of what the real engine left behind: its console, its event files, and their CSV export agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spyke_kohya.errors import NothingToRank, UsageError
from spyke_kohya.rank.logs import curve_from_events, read_losses
from spyke_kohya.rank.losses import read_losses_csv

TRANSCRIPTS = Path(__file__).parent / "data" / "transcripts"
WITH_BOTH = sorted(path.stem for path in TRANSCRIPTS.glob("*.tfevents"))


@pytest.mark.parametrize("name", WITH_BOTH)
def test_the_console_shows_the_losses_of_the_events_to_three_digits(name):
    console = read_losses(TRANSCRIPTS / f"{name}.raw")
    events = curve_from_events([TRANSCRIPTS / f"{name}.tfevents"])
    assert console.steps.tolist() == events.steps.tolist()
    if console.micro_batches_per_step == 1:
        assert console.avr_loss == pytest.approx(events.avr_loss, rel=6e-3), f"{len(console.steps)} steps compared"


@pytest.mark.parametrize("name", WITH_BOTH)
def test_the_exported_csv_holds_the_losses_of_the_events(name):
    exported = TRANSCRIPTS / f"{name}.losses.csv"
    if not exported.is_file():
        pytest.skip("not exported")
    csv, events = read_losses_csv(exported), curve_from_events([TRANSCRIPTS / f"{name}.tfevents"])
    assert csv.steps.tolist() == events.steps.tolist()
    assert csv.avr_loss == pytest.approx(events.avr_loss)
    assert csv.loss == pytest.approx(events.loss)
    assert csv.micro_batches_per_step == events.micro_batches_per_step


def test_the_console_tells_the_window_of_the_run_of_record():
    curve = read_losses(TRANSCRIPTS / "seed_reg.raw")
    assert (curve.window, curve.batch_size, curve.micro_batches_per_step) == (460, 1, 1)
    assert curve.last_step == 12


def test_a_console_under_accumulation_tells_its_micro_batches():
    curve = read_losses(TRANSCRIPTS / "grad_accum_reg.raw")
    assert (curve.window, curve.micro_batches_per_step) == (12, 2)


def test_a_console_shows_where_training_diverged():
    curve = read_losses(TRANSCRIPTS / "nan.raw")
    assert curve.diverged_step == 2
    assert np.isfinite(curve.before_divergence().avr_loss).all()


def test_a_console_without_a_step_has_nothing_to_rank():
    with pytest.raises(NothingToRank, match="no training step"):
        read_losses(TRANSCRIPTS / "no_images.raw")


def test_two_trainings_on_one_console_are_not_mixed(tmp_path):
    both = (TRANSCRIPTS / "two_epochs.raw").read_bytes() * 2
    (tmp_path / "console.log").write_bytes(both)
    with pytest.raises(NothingToRank, match="more than one training"):
        read_losses(tmp_path / "console.log")


def test_a_missing_log_is_a_slip_of_the_command(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_losses(tmp_path / "console.log")
