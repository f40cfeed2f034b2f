"""Whether two figures of the layers rise and fall together."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 9999


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation of ``count`` pairs.

    Attributes:
      rho: -1 to 1; NaN where one side is constant.
      p_value: of the two-sided permutation test.
      low, high: the 95 % bootstrap interval of rho (percentiles).
      count: how many pairs; with few, an interval from -1 to 1 says that nothing is known.
    """

    rho: float
    p_value: float
    low: float
    high: float
    count: int


def rank_correlation(x: Sequence[float], y: Sequence[float], seed: int = 0) -> RankCorrelation:
    """Spearman's rho (Spearman, 1904) with a permutation p-value and a bootstrap interval.

    All permutations of up to 7 pairs, of more than that 9,999 drawn ones, the one seen counted
    among them; 9,999 bootstrap samples of the pairs, those left with one distinct value on a side
    put aside. Both take the pairs as exchangeable. Neighbouring layers of a network are alike, so
    the p-value is too small and the interval too narrow by as much as that holds.

    Args:
      x, y: as many numbers, at least 3.
      seed: of the permutations and samples.

    Raises:
      ValueError: fewer than 3 pairs, or as many numbers on neither side.
    """
    from scipy.stats import rankdata

    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3:
        raise ValueError(f"rank_correlation: shapes {x.shape} and {y.shape}, expected 3 pairs")
    ranks, count = (rankdata(x), rankdata(y)), len(x)
    rho = float(_pearson(*ranks))
    if not math.isfinite(rho):
        return RankCorrelation(math.nan, math.nan, math.nan, math.nan, count)
    rng = np.random.default_rng(seed)
    few = math.factorial(count) <= RESAMPLES
    orders = list(itertools.permutations(range(count))) if few else _orders(rng, count)
    permuted = _pearson(ranks[0], ranks[1][np.asarray(orders)])
    # Rounding must not part a permutation from the order that it equals.
    extreme = int(np.sum(np.abs(permuted) >= abs(rho) - 1e-12))
    p_value = extreme / len(orders) if few else (extreme + 1) / (len(orders) + 1)
    chosen = rng.integers(0, count, (RESAMPLES, count))
    drawn = _pearson(rankdata(x[chosen], axis=1), rankdata(y[chosen], axis=1))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return RankCorrelation(rho, p_value, float(low), float(high), count)


def _orders(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.permuted(np.tile(np.arange(count), (RESAMPLES, 1)), axis=1)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Along the last axis; NaN where one side is constant."""
    x, y = (z - z.mean(axis=-1, keepdims=True) for z in (x, y))
    size = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((x * y).sum(axis=-1) / size, -1.0, 1.0)
