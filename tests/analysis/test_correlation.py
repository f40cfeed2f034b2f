"""Rank correlation against scipy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imm_jax.analysis.correlation import rank_correlation


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=5))
def test_rho_and_the_exact_p_value(pairs):
    x, y = np.array(pairs, float).T
    found = rank_correlation(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found.rho) and math.isnan(found.p_value)
        return
    rho = lambda z: stats.spearmanr(x, z).statistic
    assert found.rho == pytest.approx(rho(y))
    exact = stats.permutation_test(
        (y,), rho, permutation_type="pairings", n_resamples=math.inf, alternative="two-sided"
    )
    # scipy doubles the smaller tail; the share of all that are as far from 0 is counted here.
    far = np.abs(exact.null_distribution) >= abs(found.rho) - 1e-9
    assert found.p_value == pytest.approx(far.mean())
    assert found.count == len(pairs)


def test_many_pairs():
    rng = np.random.default_rng(3)
    x = rng.standard_normal(30)
    y = x + rng.standard_normal(30)
    found, known = rank_correlation(x, y), stats.spearmanr(x, y)
    assert found.rho == pytest.approx(known.statistic)
    drawn = [rank_correlation(x, rng.permutation(y)).p_value for _ in range(8)]
    assert found.p_value <= 0.001 and known.pvalue < 0.001 and 0.15 < np.mean(drawn) < 0.85
    interval = stats.bootstrap(
        (x, y), lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False,
        n_resamples=500, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx(tuple(interval), abs=0.06)


def test_perfect_order_and_wrong_shapes():
    found = rank_correlation([1, 2, 3, 4], [10, 20, 30, 99])
    assert found.rho == 1.0 and found.p_value == pytest.approx(2 / 24) and found.high == 1.0
    for x, y in (([1, 2], [1, 2]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError, match="expected 3 pairs"):
            rank_correlation(x, y)
