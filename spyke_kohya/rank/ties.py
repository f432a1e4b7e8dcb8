"""Which of several correlated averages may truly be the lowest, and whether they differ at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spyke_kohya.rank.windows import FloatArray

DRAWS = 20_000
FEWEST_DRAWS = 2_000
WORK = 50_000_000  # draws x pairs beyond which fewer draws are taken: about half a second
SEED = 0


@dataclass(frozen=True, eq=False)
class Noise:
    """What chance does to k averages with covariance ``cov`` (k, k), in units of the variance of one loss.

    The draws depend on ``cov`` alone, so one Noise serves every curve and every assumed size of the noise.
    """

    # With averages y, covariance C, standard deviation s of one loss, and z drawn from N(0, C):
    #   SE_ij = sqrt(C_ii + C_jj - 2 C_ij)                 ``pair_se``: of a difference, over s
    #   T_i   = max over j of (y_i - y_j) / (s SE_ij)      how far i is above its best rival
    #   p_i   = P(max over j of (z_i - z_j) / SE_ij >= T_i)  counted in the sorted ``worst_by_chance``
    # A rise is the same with only earlier j, and its p counts the largest of all pairs (``rises_by_chance``).

    cov: FloatArray
    seed: int = SEED

    @cached_property
    def pair_se(self) -> FloatArray:
        """Standard error (k, k) of each difference; 0 where two averages cover the same losses."""
        variance = np.diag(self.cov)
        squared = variance[:, None] + variance[None] - 2 * self.cov
        return np.asarray(np.sqrt(np.where(squared > 1e-9 * variance.max(), squared, 0.0)), dtype=np.float64)

    @cached_property
    def draws(self) -> FloatArray:
        """Draws (n, k) of the averages under no difference, standard normal times the root of ``cov``."""
        k = len(self.cov)
        count = int(np.clip(WORK // k**2, FEWEST_DRAWS, DRAWS))
        jitter = 1e-9 * self.cov.max() * np.eye(k)
        standard = np.random.default_rng(self.seed).standard_normal((count, k))
        return np.asarray(standard @ np.linalg.cholesky(self.cov + jitter).T, dtype=np.float64)

    @cached_property
    def worst_by_chance(self) -> FloatArray:
        """For each average, sorted (k, n): how far chance alone puts it above its best rival, in SEs."""
        return np.sort([self._above_rivals(self.draws, i) for i in range(len(self.cov))], axis=1)

    @cached_property
    def rises_by_chance(self) -> FloatArray:
        """The largest rise of a later average over an earlier one, in SEs, sorted (n,)."""
        return np.sort(np.max([self._above_earlier(self.draws, i) for i in range(1, len(self.cov))], axis=0))

    def _above_rivals(self, values: FloatArray, i: int) -> FloatArray:
        rivals = np.flatnonzero(self.pair_se[i] > 0)
        return self._most_above(values, i, rivals)

    def _above_earlier(self, values: FloatArray, i: int) -> FloatArray:
        return self._most_above(values, i, np.flatnonzero(self.pair_se[i, :i] > 0))

    def _most_above(self, values: FloatArray, i: int, others: NDArray[np.int64]) -> FloatArray:
        above = (values[:, [i]] - values[:, others]) / self.pair_se[i, others]
        return np.asarray(above.max(axis=1, initial=-np.inf), dtype=np.float64)

    def tied_p(self, averages: FloatArray, sigma: float) -> FloatArray:
        """P (k,) that chance alone puts each average this far above its best rival ("comparisons with the best", Hsu).

        ``sigma`` is the standard deviation of one loss. Keeping p > a keeps each true minimiser with probability 1 - a.
        """
        if len(averages) < 2:
            return np.ones(len(averages))
        scaled = (averages / sigma)[None]
        above = [self._above_rivals(scaled, i)[0] for i in range(len(averages))]
        chance = self.worst_by_chance
        below = [np.searchsorted(row, value, side="left") for row, value in zip(chance, above, strict=True)]
        return np.asarray(1.0 - np.array(below) / chance.shape[1], dtype=np.float64)

    def flat_p(self, averages: FloatArray, sigma: float) -> float | None:
        """P that a truly flat loss gives averages that differ this much (chi-squared of the GLS residual)."""
        k = len(averages)
        if k < 2:
            return None
        inverse = np.linalg.pinv(self.cov, hermitian=True)
        level = inverse.sum(axis=0) @ averages / inverse.sum()
        residual = (averages - level) / sigma
        return chi2_tail(float(residual @ inverse @ residual), k - 1)

    def largest_rise(self, averages: FloatArray, sigma: float) -> tuple[int, int, float] | None:
        """(earlier, later, p) of the largest rise in SEs; p counts that it is the largest of all pairs."""
        scaled = averages / sigma
        rises = [
            ((scaled[j] - scaled[i]) / self.pair_se[i, j], i, j)
            for j in range(1, len(scaled))
            for i in range(j)
            if self.pair_se[i, j] > 0
        ]
        if not rises:
            return None
        size, i, j = max(rises)
        chance = self.rises_by_chance
        return i, j, float(1.0 - np.searchsorted(chance, size, side="left") / len(chance))


def chi2_tail(value: float, degrees: int) -> float:
    """P(chi-squared with ``degrees`` >= 1 degrees of freedom exceeds ``value``), by the finite series."""
    half = max(value, 0.0) / 2
    if half == 0:
        return 1.0
    odd = degrees % 2
    total = math.erfc(math.sqrt(half)) if odd else 0.0
    for term in range(degrees // 2):
        power = term + 0.5 * odd
        total += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
    return min(total, 1.0)
