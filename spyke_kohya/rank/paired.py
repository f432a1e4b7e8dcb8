"""Which of several checkpoints, measured on the same few pictures, may truly have the lowest mean loss.

The same noise for every checkpoint makes the comparison paired; what is left is the chance of which pictures were held
out. Values in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spyke_kohya.rank.windows import FloatArray

DRAWS = 10_000
FEWEST_DRAWS = 2_000
WORK = 5_000_000  # draws x rows x competitors beyond which fewer draws are taken
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
        n = len(self.rows)
        relative = self.rows - self.rows.mean(axis=1, keepdims=True)  # differences stay, and keep their digits
        observed = _above(relative.mean(axis=0)[None], np.cov(relative, rowvar=False)[None], n)[0]
        beaten = _above(*self._draws(relative), n) >= observed
        return np.asarray(np.where(np.isinf(observed), 1.0, beaten.mean(axis=0)), dtype=np.float64)

    def _draws(self, relative: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means (m, k) and covariances (m, k, k) of samples drawn with no true difference."""
        n, k = relative.shape
        values, vectors = np.linalg.eigh(np.cov(relative, rowvar=False))
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        draws = int(np.clip(WORK // (n * k), FEWEST_DRAWS, DRAWS))
        drawn = np.random.default_rng(self.seed).standard_normal((draws, n, k)) @ root.T
        means = drawn.mean(axis=1)
        centred = drawn - means[:, None]
        return means, centred.transpose(0, 2, 1) @ centred / (n - 1)


def _above(means: FloatArray, covariances: FloatArray, n: int) -> FloatArray:
    """For each sample (m, k), by how many standard errors each mean is above its best rival.

    Minus infinity where it differs from no rival: those are the same competitor.
    """
    variances = np.diagonal(covariances, axis1=1, axis2=2)
    squared = (variances[:, :, None] + variances[:, None] - 2 * covariances) / n
    differ = squared > 1e-12 * squared.max(axis=(1, 2), keepdims=True)
    errors = np.sqrt(np.where(differ, squared, 1.0))
    above = (means[:, :, None] - means[:, None]) / errors
    return np.asarray(np.where(differ, above, -np.inf).max(axis=2), dtype=np.float64)
