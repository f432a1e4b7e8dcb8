"""Competitors measured on the same few pictures, against Student's table."""

from __future__ import annotations

import numpy as np
import pytest

from spyke_kohya.rank.paired import PairedRows


def two_competitors(pictures: int, t: float) -> PairedRows:
    """The second is above the first by ``t`` paired standard errors."""
    spread = np.resize([1.0, -1.0], pictures)
    error = spread.std(ddof=1) / np.sqrt(pictures)
    return PairedRows(np.stack([np.zeros(pictures), spread + t * error], axis=1))


@pytest.mark.parametrize(("pictures", "t"), [(4, 1.638), (6, 1.476), (8, 1.415), (16, 1.341)])
def test_the_p_of_a_tie_is_student_s(pictures, t):
    """t of a one-sided 10 % at ``pictures`` - 1 degrees of freedom."""
    assert two_competitors(pictures, t).tied_p()[1] == pytest.approx(0.10, abs=0.008)


def test_standard_errors_count_one_picture_less():
    rows = PairedRows(np.array([[0.0, 0.0], [0.0, 2.0]]))
    assert rows.standard_errors.tolist() == pytest.approx([0, 1])
    difference, error = rows.difference_from(0)
    assert (difference.tolist(), error.tolist()) == ([0, 1], pytest.approx([0, 1]))


def test_the_same_competitor_twice_is_tied():
    assert PairedRows(np.arange(8.0).repeat(2).reshape(8, 2)).tied_p().tolist() == [1, 1]
