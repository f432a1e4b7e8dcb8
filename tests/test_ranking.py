"""The ranking itself, the run of record first: what is said about it, and what must never be said."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyke_kohya.errors import NothingToRank, UsageError
from spyke_kohya.rank.losses import LossCurve, curve_of, read_losses_csv
from spyke_kohya.rank.ranking import Values, noise_of, rank
from spyke_kohya.rank.result import Candidate, Rise, TrainingRanking
from spyke_kohya.rank.ties import Noise

CURVES = Path(__file__).parent / "data" / "curves"
CANNOT = "training loss cannot show generalisation"


def sparse(steps, averages, window=460, **known) -> LossCurve:
    return replace(curve_of(np.array(steps), list(averages), None, window=window), **known)


def ranked(curve: LossCurve) -> TrainingRanking:
    return rank(curve, [Candidate(int(step)) for step in curve.steps])


def per_step(losses: np.ndarray, window: int) -> LossCurve:
    """A whole training's losses with the avr_loss that sd-scripts shows for them."""
    sums = np.concatenate(([0.0], np.cumsum(losses)))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    averages = (sums[ends] - sums[starts]) / (ends - starts)
    return LossCurve(ends, averages, losses, window)


def noisy(level, seed: int = 0) -> np.ndarray:
    """Skewed independent losses with a CV of 1.24 around each of ``level``."""
    shape = 1 / 1.24**2
    return np.random.default_rng(seed).gamma(shape, 1 / shape, len(level)) * level


@pytest.fixture(scope="module")
def record() -> TrainingRanking:
    return ranked(read_losses_csv(CURVES / "seed_spyke_plasma_v1.csv"))


def test_the_run_of_record_has_its_minimum_at_1400_among_three_that_are_tied(record):
    assert record.minimum.step == 1400
    assert record.tied_steps == (1000, 1200, 1400)
    assert record.onset_step == 1600
    assert (record.window, record.regime) == (460, "rolling")


def test_the_run_of_record_has_the_odds_that_were_published(record):
    odds = {row.step: row.tied_p for row in record.rows}
    published = {1000: 0.30, 1200: 0.64, 1400: 0.94, 1600: 0.07, 1800: 0.04, 1840: 0.05}
    assert odds == {step: pytest.approx(p, abs=0.01) for step, p in published.items()}
    assert record.flat_p == pytest.approx(0.33, abs=0.005)
    assert record.sigma == pytest.approx(0.098, abs=0.0005)
    assert record.minimum.standard_error == pytest.approx(0.0046, abs=0.00005)


def test_the_run_of_record_is_tried_in_the_order_its_author_chose(record):
    order = [(trial.candidate.step, trial.role) for trial in record.test_order]
    assert order == [(1400, "candidate"), (1200, "fallback"), (1840, "baseline"), (1000, "early")]


def test_the_run_of_record_has_weak_evidence_and_no_winner(record):
    assert record.confidence == "weak"
    assert "weak evidence, no demonstrated winner" in record.verdict
    assert record.verdict.endswith(f"{CANNOT}.")


def test_the_assumed_noise_is_said_and_varied(record):
    assert record.assumed_cv == 1.24
    assert record.sensitivity[1.0] == (1000, 1200, 1400)
    assert record.sensitivity[1.4] == (1000, 1200, 1400, 1600)
    assert any("The noise is assumed" in note for note in record.notes)


def test_the_json_has_the_promised_shape(record):
    shape = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    promised = "window regime ranking minimum_step tied_steps onset_step verdict test_order"
    assert set(promised.split()) <= set(shape)
    assert set(shape["ranking"][0]) >= {"rank", "step", "file", "avr_loss", "standard_error", "tied"}
    assert shape["test_order"][0] == {"step": 1400, "file": None, "role": "candidate"}
    assert [row["rank"] for row in shape["ranking"]] == [1, 2, 3, 4, 5, 6]


def test_without_a_window_the_save_spacing_stands_in_and_the_verdict_says_so(record):
    unknown = ranked(replace(read_losses_csv(CURVES / "seed_spyke_plasma_v1.csv"), window=None))
    assert (unknown.window, unknown.assumed_window, unknown.regime) == (None, 200, "unknown")
    assert unknown.verdict.startswith("With the window of avr_loss unknown (200 batches assumed)")
    assert set(unknown.tied_steps) >= set(record.tied_steps)


def test_a_batch_of_four_and_min_snr_halve_and_lower_the_assumed_noise():
    curve = sparse([500, 1000], [0.1, 0.1])
    assert noise_of(curve, 0.1).value == pytest.approx(0.124)
    assert noise_of(replace(curve, batch_size=4), 0.1).value == pytest.approx(0.062)
    assert noise_of(replace(curve, min_snr_gamma=5.0), 0.1).value == pytest.approx(0.093)
    assert noise_of(replace(curve, min_snr_gamma=20.0), 0.1).value == pytest.approx(0.124)


def test_the_noise_is_estimated_from_per_step_losses_and_not_from_their_trend():
    level = np.linspace(5.0, 0.5, 3000)
    curve = per_step(level + np.random.default_rng(0).standard_normal(3000) * 0.1, 460)
    sigma = noise_of(curve, 1.0)
    assert (sigma.source, sigma.cv) == ("per-step losses", None)
    assert sigma.value == pytest.approx(0.1, rel=0.05)


def test_the_noise_of_a_micro_batch_is_larger_than_that_of_a_step_of_four():
    curve = replace(per_step(np.random.default_rng(0).standard_normal(3000), 460), micro_batches_per_step=4)
    assert noise_of(curve, 1.0).value == pytest.approx(2.0, rel=0.05)


def test_the_final_checkpoint_may_be_the_candidate_itself():
    ranking = ranked(sparse([600, 800, 1000], [0.09, 0.08, 0.07]))
    assert [(one.candidate.step, one.role) for one in ranking.test_order][:2] == [
        (1000, "candidate"),
        (800, "fallback"),
    ]
    assert "baseline" not in {one.role for one in ranking.test_order}
    assert any("The final checkpoint is the candidate itself" in note for note in ranking.notes)


def test_a_mean_that_never_rolls_ranks_nothing():
    ranking = ranked(sparse([500, 1000, 1500, 2000], [0.12, 0.10, 0.09, 0.08], window=4700))
    assert ranking.regime == "cumulative"
    assert ranking.confidence == "none"
    assert ranking.tied_steps == (500, 1000, 1500, 2000)
    assert "cumulative mean cannot rank checkpoints: no demonstrated winner" in ranking.verdict
    assert next((one.candidate.step, one.role) for one in ranking.test_order) == (2000, "candidate")
    assert ranking.onset_step is None


def test_the_means_between_checkpoints_can_be_had_from_cumulative_ones():
    ranking = ranked(sparse([500, 1000, 2000], [0.12, 0.10, 0.08], window=4700))
    assert [(block.after, block.to) for block in ranking.blocks] == [(0, 500), (500, 1000), (1000, 2000)]
    assert [block.mean_loss for block in ranking.blocks] == pytest.approx([0.12, 0.08, 0.06])


def test_a_first_epoch_among_later_ones_is_pointed_out():
    ranking = ranked(sparse([200, 400, 600, 800], [0.09, 0.08, 0.08, 0.08]))
    assert ranking.regime == "mixed"
    assert any(note.startswith("At steps 200 and 400 avr_loss is a mean over all steps") for note in ranking.notes)


def test_gradient_accumulation_fills_the_window_in_fewer_steps():
    ranking = ranked(sparse([230, 460], [0.09, 0.08], micro_batches_per_step=2))
    assert ranking.regime == "rolling"
    assert ranking.lag_steps == 115
    assert ranking.minimum.standard_error == pytest.approx(1.24 * 0.085 / np.sqrt(460))


def test_one_checkpoint_has_nothing_to_be_compared_with():
    ranking = ranked(sparse([1840], [0.0855]))
    assert ranking.verdict.startswith("Step 1840 is the only checkpoint to rank")
    assert (ranking.tied_steps, ranking.flat_p, ranking.confidence) == ((1840,), None, "none")
    assert [one.role for one in ranking.test_order] == ["candidate"]
    json.dumps(ranking.to_dict(), allow_nan=False)


def test_two_checkpoints_a_hair_apart_are_tied():
    ranking = ranked(sparse([1800, 1840], [0.0856, 0.0855]))
    assert ranking.tied_steps == (1800, 1840)
    assert "all 2 checkpoints are tied within the noise" in ranking.verdict


def test_two_checkpoints_a_world_apart_are_not_but_that_is_weak_evidence_still():
    ranking = ranked(sparse([1000, 2000], [0.02, 0.2]))
    assert ranking.tied_steps == (1000,)
    assert "weak evidence, no demonstrated winner" in ranking.verdict


@pytest.mark.parametrize("word", [float("nan"), float("inf")])
def test_checkpoints_from_a_divergence_on_are_not_ranked(word):
    ranking = ranked(sparse([600, 800, 1000, 1200], [0.09, 0.08, word, 0.07]))
    assert [row.step for row in ranking.by_step] == [600, 800]
    assert ranking.verdict.startswith("Training diverged at step 1000 (loss is not a number); before that, step 800")
    assert [step for step, _ in ranking.not_ranked] == [1000, 1200]
    assert 1200 not in {one.candidate.step for one in ranking.test_order}
    json.dumps(ranking.to_dict(), allow_nan=False)


def test_the_weights_that_gave_the_first_nan_are_pointed_at():
    ranking = ranked(sparse([998, 999, 1000], [0.09, 0.08, float("nan")]))
    assert any(
        note.startswith("The weights of step 999 gave the first loss that is not a number") for note in ranking.notes
    )


def test_a_training_that_diverged_before_its_first_checkpoint_has_nothing_to_rank():
    with pytest.raises(NothingToRank, match="training had diverged"):
        ranked(sparse([600, 800], [float("nan"), float("nan")]))


def test_a_checkpoint_without_a_loss_at_its_step_is_left_out_and_named():
    curve = sparse([600, 800, 1000], [0.09, 0.08, 0.07])
    ranking = rank(curve, [Candidate(step) for step in (600, 700, 1000)])
    assert [row.step for row in ranking.by_step] == [600, 1000]
    assert any("step 700, no avr_loss is recorded at this step" in note for note in ranking.notes)


def test_a_missing_average_is_made_from_the_losses_it_is_an_average_of():
    curve = per_step(noisy(np.full(1840, 0.08)), 460)
    holed = replace(curve, avr_loss=np.where(curve.steps == 1400, np.nan, curve.avr_loss))
    wanted, got = (rank(one, [Candidate(1400)]).minimum.avr_loss for one in (curve, holed))
    assert got == pytest.approx(wanted)


def test_no_checkpoints_and_too_many_are_both_refused():
    curve = sparse([600], [0.09])
    with pytest.raises(NothingToRank, match="no checkpoint to rank"):
        rank(curve, [])
    with pytest.raises(UsageError, match="500 checkpoints to compare") as refused:
        rank(curve, [Candidate(step) for step in range(500)])
    assert "--every" in refused.value.remedy


def test_a_loss_that_rises_late_is_reported_as_a_possible_instability():
    level = np.where(np.arange(4600) < 3000, 0.08, 0.16)
    ranking = rank(per_step(noisy(level), 460), [Candidate(step) for step in range(600, 4601, 400)])
    assert ranking.rise is not None
    assert ranking.rise.from_step < 3000 < ranking.rise.to_step
    assert any("may have become unstable" in note for note in ranking.notes)


def test_a_flat_loss_is_not_reported_as_unstable():
    ranking = rank(per_step(noisy(np.full(4600, 0.08)), 460), [Candidate(step) for step in range(600, 4601, 400)])
    assert ranking.rise is None
    assert ranking.flat_p > 0.05
    assert "no demonstrated winner" in ranking.verdict


def test_the_centred_loss_sees_a_jump_where_it_happens():
    level = np.where(np.arange(2000) < 1000, 1.0, 3.0)
    rows = rank(per_step(level, 400), [Candidate(step) for step in (800, 1000, 1200)]).by_step
    assert [row.centred_loss for row in rows] == pytest.approx([1, 2, 3])
    assert [row.avr_loss for row in rows] == pytest.approx([1, 1, 2])


def two_apart(standard_errors: float) -> TrainingRanking:
    """Two checkpoints whose windows share nothing, the later above the earlier by so many standard errors."""
    error = 1.24 * np.sqrt(2 / 460) * standard_errors
    return ranked(sparse([1000, 2000], [0.08, 0.08 * (1 + error / 2) / (1 - error / 2)]))


def test_a_checkpoint_is_tied_down_to_a_p_of_one_in_ten():
    kept, dropped = two_apart(1.25), two_apart(1.31)
    assert (kept.rows[1].tied_p, dropped.rows[1].tied_p) == (
        pytest.approx(0.1056, abs=0.004),
        pytest.approx(0.0951, abs=0.004),
    )
    assert (kept.tied_steps, dropped.tied_steps) == ((1000, 2000), (1000,))


def test_the_noise_is_estimated_from_thirty_losses_on():
    losses = np.random.default_rng(0).standard_normal(30)
    assert noise_of(per_step(losses[:29], 460), 1.0).source == "assumed"
    assert noise_of(per_step(losses, 460), 1.0).source == "per-step losses"


def test_a_rise_is_reported_below_a_p_of_one_in_twenty():
    def rise(standard_errors):
        means = np.array([0.0, np.sqrt(2) * standard_errors])
        return Values(means, Noise(np.eye(2)), "centred").rise(np.array([200, 400]), 1.0)

    assert rise(1.60) is None  # p = 0.055
    assert rise(1.70) == Rise(200, 400, pytest.approx(0.0446, abs=0.003))


def test_four_hundred_checkpoints_are_the_most():
    curve = sparse(range(1, 402), [0.1] * 401, window=1)
    assert len(rank(curve, [Candidate(step) for step in range(1, 401)]).rows) == 400
    with pytest.raises(UsageError, match="401 checkpoints"):
        rank(curve, [Candidate(step) for step in range(1, 402)])


def test_the_loss_around_a_step_is_one_loss_at_the_least():
    curve = per_step(noisy(np.full(8, 0.08)), 1)
    rows = rank(curve, [Candidate(step) for step in range(1, 9)], by="loss").by_step
    assert [row.centred_loss for row in rows] == pytest.approx([*curve.loss[1:], curve.loss[-1]])


def test_losses_that_never_differ_are_tied_without_a_division_by_zero():
    ranking = rank(per_step(np.full(2000, 0.5), 400), [Candidate(step) for step in (800, 1200, 2000)])
    assert ranking.minimum.step in ranking.tied_steps
    json.dumps(ranking.to_dict(), allow_nan=False)


curves = st.lists(st.integers(100, 2000), min_size=1, max_size=12).map(lambda numbers: [n / 8192 for n in numbers])


@settings(max_examples=40, deadline=None)
@given(curves, st.sampled_from([None, 1, 150, 460, 5000]))
def test_rank_one_has_the_lowest_loss_and_the_json_is_json(averages, window):
    steps = [200 * (i + 1) for i in range(len(averages))]
    ranking = ranked(sparse(steps, averages, window))
    losses = [row.avr_loss for row in ranking.rows]
    assert losses == sorted(averages)
    assert ranking.minimum.tied
    shape = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert CANNOT in shape["verdict"]
    assert "no demonstrated winner" in shape["verdict"]
    trials = [trial["step"] for trial in shape["test_order"]]
    assert len(set(trials)) == len(trials)
    assert steps[-1] in trials


@settings(max_examples=40, deadline=None)
@given(curves, st.integers(-4, 4))
def test_the_unit_of_the_loss_does_not_matter(averages, power):
    steps = [200 * (i + 1) for i in range(len(averages))]
    one = ranked(sparse(steps, averages))
    other = ranked(sparse(steps, [loss * 2.0**power for loss in averages]))
    assert [row.step for row in one.rows] == [row.step for row in other.rows]
    assert (one.tied_steps, one.onset_step, one.sensitivity) == (other.tied_steps, other.onset_step, other.sensitivity)


def test_equal_losses_go_to_the_earlier_checkpoint():
    assert [row.step for row in ranked(sparse([600, 800, 1000], [0.08, 0.07, 0.07])).rows] == [800, 1000, 600]


def test_a_hundred_thousand_steps_are_ranked_in_a_moment():
    curve = per_step(noisy(np.full(100_000, 0.08)), 460)
    candidates = [Candidate(step) for step in range(2000, 100_001, 2000)]
    began = time.perf_counter()
    rank(curve, candidates)
    took_s = time.perf_counter() - began
    assert took_s < 5, f"100,000 steps and 50 checkpoints took {took_s:.2f} s"
