"""Judging held-out losses: what is said of a known truth, and what must never be said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spyke_kohya.errors import NothingToRank
from spyke_kohya.rank.heldout import Context, auc_below, judge_heldout
from spyke_kohya.rank.heldout_file import Evaluation, Measured
from spyke_kohya.rank.losses import LossCurve
from spyke_kohya.rank.paired import PairedRows
from spyke_kohya.rank.ranking import rank
from spyke_kohya.rank.result import Candidate, HeldoutRanking
from spyke_kohya.report.chart import heldout_figure
from spyke_kohya.report.drawings import write_heldout_png
from spyke_kohya.report.ranking_text import ranking_table

STEPS = tuple(range(200, 2001, 200))
U = 1 - 0.05 + 0.05 * ((np.array(STEPS) - 1000) / 1000) ** 2
CELLS = 4


def measured(truth, pictures=8, spread=0.01, groups=None, seed=0, again=0.0) -> Measured:
    """Losses whose ratio to the base is ``truth`` (checkpoints,) give or take what is each picture's own."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.5, 1.5, (pictures, 1)) * np.array([0.7, 0.2, 0.07, 0.004])[None]
    own = np.cumsum(rng.standard_normal((len(truth), pictures)) * spread, axis=0)
    ratios = np.asarray(truth)[:, None] + own
    losses = ratios[:, :, None] * base[None]
    return Measured(losses, base, base * (1 + again), tuple(groups or range(pictures)))


def evaluation(heldout=None, trained=None, steps=STEPS, **more) -> Evaluation:
    candidates = tuple(Candidate(step, Path(f"spyke-step{step:08d}.safetensors")) for step in steps)
    return Evaluation(candidates, heldout, trained, (125, 375, 625, 875), **more)


def judged(*args, **kwargs) -> HeldoutRanking:
    return judge_heldout(evaluation(*args, **kwargs))


def test_a_clear_u_has_its_minimum_found_and_named():
    ranking = judged(measured(U, 16, spread=0.0005))
    assert ranking.minimum.step == 1000
    assert 1000 in ranking.tied_steps
    assert {200, 1800, 2000}.isdisjoint(ranking.tied_steps)
    assert "step 1000 has the lowest loss on 16 pictures" in ranking.verdict.lower()


def test_a_winner_is_said_only_where_nothing_is_tied_with_it():
    ranking = judged(measured([0.99, 0.9, 0.98], 16, spread=0.001), steps=(200, 400, 600))
    assert ranking.has_winner
    assert "predicts unseen pictures best" in ranking.verdict
    assert ranking.to_dict()["confidence"] == "demonstrated"
    tied = judged(measured([0.95, 0.95, 0.99], 8, spread=0.01), steps=(200, 400, 600))
    assert not tied.has_winner
    assert "no demonstrated winner" in tied.verdict


def test_a_base_that_is_tied_with_the_best_is_no_demonstrated_winner():
    ranking = judged(measured([1.0, 0.999, 1.3], 8, spread=0.02, seed=1), steps=(200, 400, 600))
    assert ranking.base_tied
    assert "base model without a LoRA is tied" in ranking.verdict
    assert "no demonstrated winner" in ranking.verdict


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_below_four_pictures_there_is_a_curve_and_no_set(pictures):
    ranking = judged(measured(U, pictures, spread=0.0001))
    assert not ranking.has_set
    assert ranking.minimum.tied_p is None
    assert ranking.onset_step is None
    assert "fewer than 4 different pictures" in ranking.verdict
    assert "no demonstrated winner" in ranking.verdict


def test_from_four_pictures_on_there_is_a_set():
    assert judged(measured(U, 4)).has_set


def two_apart(standard_errors: float, pictures: int = 8) -> HeldoutRanking:
    """The base, and two checkpoints far below it; the later is above the earlier by so many paired standard errors."""
    base = np.ones((pictures, 1))
    own = np.resize([0.001, -0.001], pictures)
    apart = own + standard_errors * own.std(ddof=1) / np.sqrt(pictures)
    losses = 0.5 + np.stack([np.zeros(pictures), apart])
    return judge_heldout(evaluation(Measured(losses[:, :, None], base, base, tuple(range(pictures))), steps=(200, 400)))


def test_a_checkpoint_is_tied_down_to_a_p_of_one_in_ten():
    kept, dropped = two_apart(1.36), two_apart(1.47)  # Student's one-sided p at 7 degrees of freedom: 0.108, 0.093
    assert (kept.rows[1].tied_p, dropped.rows[1].tied_p) == (
        pytest.approx(0.108, abs=0.006),
        pytest.approx(0.0925, abs=0.006),
    )
    assert (kept.tied_steps, dropped.tied_steps) == ((200, 400), (200,))


def test_fewer_than_eight_pictures_are_called_few():
    few, enough = (" ".join(judged(measured(U, pictures)).notes) for pictures in (7, 8))
    assert "7 different pictures are few: hold out 8" in few
    assert "are few" not in enough


def test_a_device_that_differs_by_a_thousandth_is_named():
    assert "does not repeat itself" not in " ".join(judged(measured(U, again=0.0009)).notes)
    assert "does not repeat itself" in " ".join(judged(measured(U, again=0.0011)).notes)


def test_copies_of_one_picture_count_once():
    eight_files_of_three = judged(measured(U, 8, groups=(0, 0, 0, 1, 1, 2, 2, 2)))
    assert (eight_files_of_three.pictures, eight_files_of_three.groups) == (8, 3)
    assert not eight_files_of_three.has_set


def test_trained_pictures_alone_are_a_memorisation_curve_without_a_winner():
    ranking = judged(None, measured(np.linspace(0.99, 0.7, len(STEPS)), 8, spread=0.0001))
    assert ranking.kind == "memorisation"
    assert ranking.test_order == ()
    assert "memorisation curve" in ranking.verdict
    assert "no demonstrated winner" in ranking.verdict


def test_the_order_of_trials_is_lowest_next_lowest_tied_final_then_the_rest():
    ranking = judged(measured(U, 8, spread=0.004, seed=3))
    roles = [(trial.role, trial.candidate.step) for trial in ranking.test_order]
    assert roles[0] == ("candidate", ranking.minimum.step)
    assert roles[1][0] == "fallback"
    assert roles[1][1] in ranking.tied_steps
    assert ("baseline", 2000) in roles
    assert {step for _, step in roles} - {2000} == set(ranking.tied_steps) - {2000}


def test_the_gap_and_the_auc_tell_learned_by_heart_from_learned():
    heart = judged(measured(U, 8, 0.0001), measured(np.linspace(0.9, 0.3, len(STEPS)), 8, 0.0001, seed=0))
    clean = judged(measured(U, 8, 0.0001), measured(U, 8, 0.0001))
    assert heart.rows[0].gap < -0.05
    assert heart.rows[0].auc > 0.9
    assert clean.rows[0].gap == pytest.approx(0, abs=1e-12)
    assert clean.rows[0].auc == pytest.approx(0.5)


def test_auc_counts_pairs_and_halves_ties():
    assert auc_below(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_the_noise_of_the_device_is_shown():
    noisy = judged(measured(U, again=0.02))
    assert noisy.noise_floor == pytest.approx(0.02)
    assert "does not repeat itself" in noisy.notes[0]
    assert judged(measured(U)).noise_floor == 0


def test_a_plain_mean_that_disagrees_with_the_timesteps_weighed_alike_says_so():
    found = measured([0.95, 0.96], 8, 0.0)
    losses = found.losses.copy()
    losses[1, :, 3] *= 0.5  # at the highest timestep, whose losses hardly count
    ranking = judged(Measured(losses, found.base, found.base_again, found.groups), steps=(200, 400))
    assert (ranking.minimum.step, ranking.best_by_timestep) == (200, 400)
    assert any("every timestep weighed alike the lowest is step 400" in note for note in ranking.notes)


def test_what_is_not_measured_whole_or_not_a_number_is_named():
    ranking = judged(measured(U), unfinished=("a.safetensors",), broken=("b.safetensors",))
    assert ranking.notes[:2] == (
        "Not ranked: a.safetensors, it is not measured whole yet.",
        "Not ranked: b.safetensors, its loss is not a number.",
    )
    with pytest.raises(NothingToRank, match="measured whole"):
        judge_heldout(evaluation(measured([]), steps=()))


def test_where_the_training_loss_falls_and_the_held_out_loss_turns_only_the_latter_says_where():
    """The shape of nearly all public trainings that logged both."""
    shape, steps = 1 / 1.24**2, np.arange(1, 2001)
    losses = np.random.default_rng(5).gamma(shape, 1 / shape, len(steps)) * 0.08 * (1 - 0.1 * steps / 2000)
    sums = np.concatenate(([0.0], np.cumsum(losses)))
    averages = (sums[steps] - sums[np.maximum(0, steps - 460)]) / np.minimum(steps, 460)
    by_training_loss = rank(LossCurve(steps, averages, losses, 460), [Candidate(step) for step in STEPS])
    assert "no demonstrated winner" in by_training_loss.verdict
    assert by_training_loss.confidence != "demonstrated"
    assert judged(measured(U, 16, spread=0.0005)).minimum.step == 1000


def test_the_json_keeps_the_shape_of_rank():
    context = Context({1000: 3.5}, {1000: 0.0717})
    shape = json.loads(json.dumps(judge_heldout(evaluation(measured(U)), context).to_dict(), allow_nan=False))
    keys = {"window", "regime", "ranking", "minimum_step", "tied_steps", "onset_step", "verdict", "test_order"}
    assert keys <= shape.keys()
    row = next(row for row in shape["ranking"] if row["step"] == 1000)
    assert {"rank", "step", "file", "avr_loss", "standard_error", "tied"} <= row.keys()
    assert (row["avr_loss"], row["weight_norm"]) == (0.0717, 3.5)
    assert {"step", "file", "role"} == shape["test_order"][0].keys()


def test_the_table_fits_and_the_picture_is_one(tmp_path):
    ranking = judged(measured(U), measured(U - 0.1))
    text = ranking_table(ranking, 100, "a run")
    assert max(map(len, text.splitlines())) <= 100
    assert "1000" in text
    write_heldout_png(tmp_path / "a.png", ranking, "a run")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_marks_the_lowest_and_the_tied_where_anything_is_ranked_at_all():
    ranked, memorised = (json.dumps(heldout_figure(judged(*sets))) for sets in ([measured(U)], [None, measured(U)]))
    assert "lowest (step 800)" in ranked
    assert "tied with the lowest" in ranked
    assert "lowest" not in memorised


@pytest.mark.parametrize("pictures", [4, 8, 16])
def test_a_true_minimiser_is_kept_in_nine_of_ten_evaluations(pictures):
    rng = np.random.default_rng(pictures)
    kept = []
    for _ in range(100):
        rows = np.cumsum(rng.standard_normal((pictures, 6)), axis=1)  # flat: every column is a true minimiser
        kept.append((PairedRows(rows - rows.mean(axis=1, keepdims=True)).tied_p() > 0.10).mean())
    assert 0.86 <= np.mean(kept) <= 0.94


def test_a_competitor_measured_twice_is_tied_with_itself():
    rows = np.random.default_rng(0).standard_normal((6, 3))
    p = PairedRows(np.hstack([rows, rows[:, :1]])).tied_p()
    assert p[0] == p[3]
    assert (PairedRows(np.ones((5, 3))).tied_p() == 1).all()
