"""Intervals, pass@k and McNemar's test against SciPy and counting."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb
from scipy.stats import binomtest, bootstrap, ttest_1samp

from imm_jax.statistics import (
    ladder,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    pass_at_k,
    ratio_bootstrap,
    seed_interval,
    wilson_interval,
)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_scipys(counts):
    right, count = counts
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(right / count, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= right / count <= high <= 1
    wider = wilson_interval(right / count, count, confidence=0.99)
    assert wider[0] <= low and wider[1] >= high


def test_mean_interval():
    rows = np.array([[0.5, 0.3, 0.6], [0.25, 0.2, 0.45], [0.0, 0.0, 0.1]])
    mean, low, high = mean_interval([tuple(row) for row in rows])
    assert mean == pytest.approx(0.25)
    assert low == pytest.approx(0.25 - np.linalg.norm(rows[:, 0] - rows[:, 1]) / 3)
    assert high == pytest.approx(0.25 + np.linalg.norm(rows[:, 2] - rows[:, 0]) / 3)
    assert mean_interval([(0.5, 0.3, 0.6)]) == pytest.approx((0.5, 0.3, 0.6))


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_pass_at_k_counts_the_draws_that_hold_a_right_sample(samples):
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        right = [i < correct for i in range(samples)]
        draws = [any(draw) for draw in itertools.combinations(right, k)]
        assert pass_at_k(samples, correct, k) == pytest.approx(np.mean(draws), abs=1e-12)


@given(st.data())
def test_pass_at_k_is_the_papers_formula(data):
    n = data.draw(st.integers(1, 300))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    expected = 1 - comb(n - c, k, exact=True) / comb(n, k, exact=True)
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-10)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_a_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_by_hand_and_far_out():
    assert mcnemar(0, 5) == 2 / 32 and mcnemar(1, 4) == 2 * (1 + 5) / 32
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1.0
    # Far beyond what a float holds on the way.
    assert 0 < mcnemar(900, 1100) < mcnemar(950, 1050) < 0.05
    assert mcnemar(900, 1100) == pytest.approx(binomtest(900, 2000).pvalue, rel=1e-6)


@pytest.mark.parametrize(
    ("samples", "expected"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])]
)
def test_ladder(samples, expected):
    assert ladder(samples) == expected
    assert all(math.log2(k).is_integer() for k in ladder(samples)[:-1])


def test_seed_interval_is_the_t_tests():
    values = [0.41, 0.47, 0.44, 0.52, 0.39]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = seed_interval(values)
    assert found == pytest.approx((np.mean(values), expected.low, expected.high))
    with pytest.raises(ValueError, match="1 values, expected at least 2"):
        seed_interval([0.4])


def test_paired_bootstrap_is_scipys():
    """One seed, one task: the percentile interval of the mean of the questions' differences."""
    rng = np.random.default_rng(1)
    one = rng.integers(-1, 2, (1, 60)).astype(float)
    settings = {"n_resamples": 40_000, "method": "percentile", "random_state": 2}
    expected = bootstrap((one[0],), np.mean, **settings).confidence_interval
    mean, low, high = paired_bootstrap([one], draws=40_000)
    assert mean == one.mean()
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_paired_bootstrap_draws_questions_in_tasks_and_seeds_together():
    """Against the variance of a mean: questions, tasks of equal weight, then seeds alone."""
    rng = np.random.default_rng(3)
    tasks = [rng.normal(0.2, 1, (1, 80)), rng.normal(0, 2, (1, 300))]
    mean, low, high = paired_bootstrap(tasks)
    error = np.sqrt(sum(task.var() / task.shape[1] for task in tasks)) / 2
    assert mean == pytest.approx(np.mean([task.mean() for task in tasks]))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    # Questions that are all alike: what is left is the spread of the seeds, the same in each task.
    seeds = rng.normal(0, 1, (40, 1))
    _, low, high = paired_bootstrap([np.repeat(seeds, 7, 1), np.repeat(seeds, 9, 1)])
    assert (high - low) / 2 == pytest.approx(1.96 * seeds.std() / 40**0.5, rel=0.1)
    assert paired_bootstrap([np.zeros((2, 5))]) == (0, 0, 0)


def test_an_end_at_zero_is_zero():
    """Not the 3e-18 that sums of floats leave of it, which would count as a clear difference."""
    rng = np.random.default_rng(0)
    scores = rng.choice([-1.0, 0.0, 1.0], p=[0.12, 0.72, 0.16], size=(5, 64))
    assert paired_bootstrap([scores], draws=2000)[1] == 0.0


def test_ratio_bootstrap_draws_both_figures_of_a_question_together():
    rng = np.random.default_rng(3)
    bottoms = rng.integers(0, 5, 40) / 4
    tops = np.round(bottoms * rng.random(40), 2)
    mean_ratio = lambda top, bottom, axis: top.mean(axis=axis) / bottom.mean(axis=axis)
    expected = bootstrap(
        (tops, bottoms), mean_ratio, paired=True, n_resamples=20_000, method="percentile",
        random_state=1, vectorized=True,
    ).confidence_interval  # fmt: skip
    assert ratio_bootstrap(tops, bottoms) == pytest.approx(tuple(expected), abs=0.01)
    assert ratio_bootstrap(tops, bottoms) == ratio_bootstrap(tops, bottoms)
    apart = ratio_bootstrap(tops, rng.permutation(bottoms))
    assert apart[1] - apart[0] > expected.high - expected.low


def test_a_ratio_to_nothing_is_zero():
    assert ratio_bootstrap(np.zeros(4), np.zeros(4)) == (0, 0)
    assert ratio_bootstrap(np.array([0.0, 0.5]), np.array([0.0, 0.5])) == (0, 1)
