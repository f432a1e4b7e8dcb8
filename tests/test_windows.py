"""Which losses avr_loss covers, held against sd-scripts' way of keeping them and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyke_kohya.rank.windows import (
    centred_bounds,
    micro_batches_at,
    overlap_cov,
    regime_of,
    trailing_bounds,
    window_cov,
    window_means,
)


def recorded_averages(losses: np.ndarray, batches_per_epoch: int) -> list[float]:
    """avr_loss after each batch, kept the way the engine keeps it: one slot a batch of the epoch."""
    slots: list[float] = []
    averages = []
    for i, loss in enumerate(losses):
        epoch, batch = divmod(i, batches_per_epoch)
        if epoch == 0:
            slots.append(loss)
        else:
            slots[batch] = loss
        averages.append(sum(slots) / len(slots))
    return averages


@given(st.integers(1, 12), st.lists(st.floats(0.001, 1), min_size=1, max_size=40))
def test_a_trailing_window_is_what_the_recorder_averages(window, losses):
    values = np.array(losses)
    ends = np.arange(1, len(values) + 1)
    means = window_means(values, 0, trailing_bounds(ends, window))
    assert means == pytest.approx(recorded_averages(values, window))


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 4))
def test_steps_are_counted_in_micro_batches_as_the_engine_steps(window, per_step, epochs):
    counted = []
    for batch in range(1, window * epochs + 1):
        in_epoch = (batch - 1) % window + 1
        if in_epoch % per_step == 0 or in_epoch == window:  # accelerate steps on the last batch of an epoch, too
            counted.append(batch)
    steps = np.arange(1, len(counted) + 1)
    assert micro_batches_at(steps, window, per_step).tolist() == counted


@pytest.mark.parametrize(
    ("steps", "window"), [([3, 5, 9], 20), ([40, 47, 60, 61], 20), ([5, 20, 33, 90], 20), ([1, 2, 3], 1)]
)
def test_the_covariance_is_that_of_many_simulated_trainings(steps, window):
    losses = np.random.default_rng(7).standard_normal((40_000, max(steps)))
    averages = np.array([losses[:, end - min(end, window) : end].mean(axis=1) for end in steps])
    expected = window_cov(steps, window)
    assert np.cov(averages) == pytest.approx(expected, abs=0.03 * expected.max())


def test_two_full_windows_differ_by_the_losses_they_do_not_share():
    cov = window_cov([1200, 1400], 460)
    assert np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]) == pytest.approx(np.sqrt(2 * 200) / 460)


def test_in_the_first_epoch_the_windows_are_nested():
    cov = window_cov([100, 400], 460)
    assert cov[0, 0] + cov[1, 1] - 2 * cov[0, 1] == pytest.approx(1 / 100 - 1 / 400)


def test_a_centred_window_is_cut_at_both_ends_of_the_losses():
    start, end = centred_bounds([2, 50, 100], 20, 0, 100)
    assert list(zip(start.tolist(), end.tolist(), strict=True)) == [(0, 12), (40, 60), (90, 100)]


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 50)), min_size=1, max_size=8))
def test_a_covariance_is_symmetric_and_never_negative(windows):
    start = np.array([one for one, _ in windows])
    cov = overlap_cov((start, start + np.array([length for _, length in windows])))
    assert (cov == cov.T).all()
    assert np.linalg.eigvalsh(cov).min() > -1e-9


@pytest.mark.parametrize(
    ("ends", "regime"),
    [([1000, 1840], "rolling"), ([460, 920], "rolling"), ([200, 400], "cumulative"), ([200, 600], "mixed")],
)
def test_the_regime_says_whether_the_window_ever_filled(ends, regime):
    assert regime_of(ends, 460) == regime
