"""The odds behind a ranking, held against simulated trainings whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from spyke_kohya.rank.ties import Noise, chi2_tail
from spyke_kohya.rank.windows import trailing_bounds, window_cov, window_means

STEPS = [*range(200, 2000, 200), 1840]


def simulated_averages(count: int, steps: list[int], window: int, seed: int) -> np.ndarray:
    """avr_loss (count, k) of trainings whose loss never changes: skewed, with a CV of 1.24, as SD1.5 losses are."""
    shape = 1 / 1.24**2
    losses = np.random.default_rng(seed).gamma(shape, 1 / shape, (count, steps[-1]))
    bounds = trailing_bounds(steps, window)
    return np.array([window_means(one, 0, bounds) for one in losses])


def test_a_true_minimiser_is_kept_in_nine_flat_trainings_of_ten():
    steps = sorted(STEPS)
    noise = Noise(window_cov(steps, 460))
    averages = simulated_averages(1500, steps, 460, seed=1)
    kept = np.array([noise.tied_p(one, 1.24) > 0.10 for one in averages])
    assert kept.mean() == pytest.approx(0.90, abs=0.03), (
        f"kept {kept.mean():.3f} of {kept.size} true minimisers; by checkpoint {kept.mean(axis=0).round(2)}"
    )


def test_a_flat_training_looks_flat():
    steps = list(range(600, 2000, 200))
    noise = Noise(window_cov(steps, 460))
    p = np.array([noise.flat_p(one, 1.24) for one in simulated_averages(1500, steps, 460, seed=2)])
    assert np.mean(p < 0.1) == pytest.approx(0.1, abs=0.03), (
        f"p < 0.1 in {np.mean(p < 0.1):.3f} of {len(p)} flat trainings"
    )


def test_a_rise_by_chance_is_reported_as_rarely_as_its_p_says():
    steps = list(range(600, 2000, 200))
    noise = Noise(window_cov(steps, 460))
    rises = [noise.largest_rise(one, 1.24) for one in simulated_averages(1500, steps, 460, seed=3)]
    often = np.mean([rise is not None and rise[2] < 0.05 for rise in rises])
    assert often == pytest.approx(0.05, abs=0.02), f"a rise was reported in {often:.3f} of {len(rises)} flat trainings"


def test_a_checkpoint_far_above_the_noise_is_not_tied():
    noise = Noise(window_cov([1000, 2000], 460))
    assert noise.tied_p(np.array([0.05, 0.10]), 0.098).tolist() == [pytest.approx(1, abs=0.01), 0]


def test_windows_that_cover_the_same_losses_are_no_rivals():
    noise = Noise(np.ones((3, 3)))
    assert noise.tied_p(np.array([1.0, 1.0, 1.0]), 1.0).tolist() == [1, 1, 1]
    assert noise.largest_rise(np.array([1.0, 1.0, 1.0]), 1.0) is None


@pytest.mark.parametrize(
    ("value", "degrees", "tail"),
    [(3.841458821, 1, 0.05), (5.991464547, 2, 0.05), (7.814727903, 3, 0.05), (124.3421134, 100, 0.05), (0, 5, 1)],
)
def test_the_chi_squared_tail_is_that_of_the_tables(value, degrees, tail):
    assert chi2_tail(value, degrees) == pytest.approx(tail, abs=1e-8)
