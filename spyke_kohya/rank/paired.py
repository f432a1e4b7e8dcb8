"""Which of several checkpoints, measured on the same few pictures, may truly have the lowest mean loss.

The same noise for every checkpoint makes the comparison paired; what is left is the chance of which pictures were held
out. Values in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spyke_kohya.rank.windows import FloatArray

DRAWS = 20_000
FEWEST_DRAWS = 1_000
WORK = 60_000_000  # draws x rows x pairs beyond which fewer draws are taken
SEED = 0


@dataclass(frozen=True, eq=False)
class PairedRows:
    """Losses (n, k): a row for each independent group of pictures, a column for each competitor."""

    rows: FloatArray
    seed: int = SEED

    @cached_property
    def means(self) -> FloatArray:
        return np.asarray(self.rows.mean(axis=0), dtype=np.float64)

    @cached_property
    def standard_errors(self) -> FloatArray:
        """Standard error (k,) of each mean."""
        return np.asarray(self.rows.std(axis=0, ddof=1) / np.sqrt(len(self.rows)), dtype=np.float64)

    def difference_from(self, best: int) -> tuple[FloatArray, FloatArray]:
        """Each mean minus that of ``best``, and the standard error of that paired difference; both (k,)."""
        differences = self.rows - self.rows[:, [best]]
        errors = differences.std(axis=0, ddof=1) / np.sqrt(len(self.rows))
        return np.asarray(differences.mean(axis=0)), np.asarray(errors)

    def tied_p(self) -> FloatArray:
        """P (k,) that chance alone puts each mean this far above its best rival ("comparisons with the best", Hsu).

        Chance is drawn as n Gaussian rows with the sample covariance, and each draw is divided by its own standard
        errors: with few rows those are uncertain too. Keeping p > a keeps a true minimiser with probability 1 - a or
        a little more.
        """
        n, k = self.rows.shape
        centred = self.rows - self.means
        draws = int(np.clip(WORK // (n * k * k), FEWEST_DRAWS, DRAWS))
        weights = np.random.default_rng(self.seed).standard_normal((draws, n, n)) / np.sqrt(n - 1)
        drawn = weights @ centred
        return np.array([self._chance_of(i, drawn) for i in range(k)])

    def _chance_of(self, i: int, drawn: FloatArray) -> float:
        others = [j for j in range(self.rows.shape[1]) if j != i and self._differ(i, j)]
        if not others:
            return 1.0
        observed = _above(self.rows[None], i, others)[0]
        return float((_above(drawn, i, others) >= observed).mean())

    def _differ(self, i: int, j: int) -> bool:
        spread = np.ptp(self.rows[:, i] - self.rows[:, j])
        return bool(spread > 1e-12 * np.abs(self.rows).max())


def _above(rows: FloatArray, i: int, others: list[int]) -> FloatArray:
    """For each draw (m, n, k), by how many standard errors column ``i`` is above the lowest of ``others``."""
    differences = rows[:, :, [i]] - rows[:, :, others]
    errors = differences.std(axis=1, ddof=1) / np.sqrt(rows.shape[1])
    return np.asarray((differences.mean(axis=1) / errors).max(axis=1), dtype=np.float64)
