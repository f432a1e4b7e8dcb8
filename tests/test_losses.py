"""Losses out of CSV files, good and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spyke_kohya.errors import NothingToRank, UsageError
from spyke_kohya.rank.losses import read_losses_csv

CURVES = Path(__file__).parent / "data" / "curves"


@pytest.fixture
def csv(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "losses.csv"
        path.write_text(text)
        return path

    return write


def test_the_run_of_record_names_its_window_in_a_comment():
    curve = read_losses_csv(CURVES / "seed_spyke_plasma_v1.csv")
    assert curve.steps.tolist() == [1000, 1200, 1400, 1600, 1800, 1840]
    assert (curve.window, curve.average_at(1400), curve.average_at(1401)) == (460, 0.0717, None)
    assert curve.loss is None


@pytest.mark.parametrize("phrase", ["460 batches/epoch", "460 batches per epoch", "460 batches an epoch"])
def test_a_comment_may_name_the_window_in_several_ways(csv, phrase):
    assert read_losses_csv(csv(f"# so and so, {phrase}\nstep,avr_loss\n1,0.5\n")).window == 460


def test_a_run_directory_s_losses_may_have_more_columns_and_gaps(csv):
    curve = read_losses_csv(csv("step,loss,avr_loss,lr_unet\n1,0.5,0.5,1e-4\n2,,0.4,1e-4\n3,0.3,,1e-4\n"))
    assert curve.average_at(2) == 0.4
    assert curve.average_at(3) is None
    assert curve.loss.tolist()[::2] == [0.5, 0.3]
    assert np.isnan(curve.loss[1])
    assert curve.contiguous_losses() is None
    assert curve.diverged_step is None


def test_a_column_of_empty_losses_is_no_losses(csv):
    assert read_losses_csv(csv("step,loss,avr_loss\n200,,0.5\n400,,0.4\n")).loss is None


def test_a_column_may_name_its_own_window(csv):
    assert read_losses_csv(csv("step,loss,avr_loss_W460\n0,0.5,0.5\n1,0.3,0.4\n")).window == 460


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_a_number_marks_where_training_diverged(csv, word):
    curve = read_losses_csv(csv(f"step,loss,avr_loss\n1,0.5,0.5\n2,{word},0.5\n3,0.5,{word}\n"))
    assert curve.diverged_step == 2
    assert curve.before_divergence().steps.tolist() == [1]


def test_rows_of_a_tracker_are_gathered_into_optimizer_steps(csv):
    # 3 batches an epoch, 2 to a step: the engine steps after batches 2, 3 (the epoch ends), 5 and 6
    rows = ["0,1.0,1.0", "1,2.0,1.5", "2,3.0,2.0", "2,4.0,3.0", "3,5.0,4.0", "4,6.0,5.0"]
    curve = read_losses_csv(csv("step,loss_current,loss_average\n" + "\n".join(rows) + "\n"))
    assert curve.steps.tolist() == [1, 2, 3, 4]
    assert curve.avr_loss.tolist() == [1.5, 2.0, 4.0, 5.0]
    assert curve.loss.tolist() == [1.5, 3.0, 4.5, 6.0]
    assert curve.micro_batches_per_step == 2


def test_a_tracker_without_accumulation_is_read_as_it_stands(csv):
    curve = read_losses_csv(csv("step,loss_current,loss_average\n1,0.5,0.5\n2,0.3,0.4\n"))
    assert (curve.steps.tolist(), curve.loss.tolist(), curve.micro_batches_per_step) == ([1, 2], [0.5, 0.3], 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no rows"),
        ("# only a comment\n", "no rows"),
        ("step,avr_loss\n", "no rows"),
        ("epoch,quality\n1,2\n", "the columns are epoch, quality"),
        ("step,lr\n1,2\n", "the columns are step, lr"),
        ("step,avr_loss\n1,0.5\n2,low\n3,high\n", "line 3: avr_loss is 'low', not a number; line 4"),
        ("step,avr_loss\n1.5,0.5\n", "line 2: step is '1.5', not a whole number"),
        ("step,avr_loss\nnan,0.5\n", "line 2: step is 'nan', not a whole number"),
        ("step,avr_loss\n,0.5\n", "line 2: no step"),
        ("step,avr_loss\n-1,0.5\n", "line 2: step -1 is below 0"),
        ("# c\nstep,avr_loss\n1,0.5\n\n1,0.4\n", "line 5: step 1 after step 1"),
        ("step,avr_loss\n400,0.5\n200,0.4\n", "line 3: step 200 after step 400"),
        ("step,loss_current,loss_average\n4,0.5,1\n2,0.4,1\n", "line 3: step 2 after step 4"),
        ("step,avr_loss\n1,0.5\n2\n", "line 3: 1 cells, not 2"),
        ("step,avr_loss\n" + "x,1\n" * 9, "; and 4 more"),
    ],
)
def test_a_broken_file_is_refused_by_line(csv, text, told):
    path = csv(text)
    with pytest.raises(NothingToRank) as refused:
        read_losses_csv(path)
    assert told in refused.value.what
    assert refused.value.where == str(path)


def test_a_picture_is_not_a_csv_file(tmp_path):
    (tmp_path / "losses.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    with pytest.raises(NothingToRank, match="isn't text"):
        read_losses_csv(tmp_path / "losses.csv")


def test_a_missing_file_is_a_slip_of_the_command(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_losses_csv(tmp_path / "losses.csv")


@pytest.mark.parametrize("end", ["600,0.07", "600,0.0", "600,,0.07,1e-", "60"])
def test_a_last_line_that_was_being_written_is_left_out(tmp_path, end):
    path = tmp_path / "losses.csv"
    path.write_text("step,loss,avr_loss,lr_unet\n200,,0.09,1e-4\n400,,0.08,1e-4\n" + end)
    assert read_losses_csv(path).steps.tolist() == ([200, 400, 600] if end.count(",") == 3 else [200, 400])


def test_a_whole_last_line_without_its_line_end_counts(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("step,avr_loss\n200,0.09\n400,0.08")
    assert read_losses_csv(path).steps.tolist() == [200, 400]
