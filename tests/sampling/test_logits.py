"""Token choice against NumPy in float64, with a sort where the code has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax.sampling.logits import inverse_cdf, keep_top_k, keep_top_p, likeliest, sample_tokens


def softmax64(logits, temperature=1.0):
    scaled = np.float64(logits) / temperature
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("vocab", [1, 2, 255, 256, 257, 1000])
def test_inverse_cdf_is_where_the_cumulative_sum_passes(vocab):
    rng = np.random.default_rng(vocab)
    weights = rng.exponential(size=(64, vocab)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.3] = 0
    weights[:, rng.integers(vocab)] += 0.1
    uniform = rng.random(64).astype(np.float32)
    sums = np.cumsum(np.float64(weights), -1)
    goal = uniform * sums[:, -1]
    expected = (sums > goal[:, None]).argmax(-1)
    # Float32 sums may differ in their last digits: leave out draws that lie on a boundary.
    clear = np.abs(sums - goal[:, None]).min(-1) > 1e-5 * sums[:, -1]
    got = np.asarray(inverse_cdf(weights, uniform))
    assert clear.sum() > 40
    np.testing.assert_array_equal(got[clear], expected[clear])
    assert (np.take_along_axis(weights, got[:, None], -1) > 0).all()


@given(st.integers(1, 700), st.integers(0, 2**31 - 1), st.sampled_from([0.0, 1.0 - 2**-24]))
@settings(max_examples=30, deadline=None)
def test_inverse_cdf_never_returns_a_token_of_weight_zero(vocab, seed, uniform):
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random((1, vocab)) < 0.9, 0, rng.random((1, vocab)) ** 8)
    weights[0, rng.integers(vocab)] = 1e-3
    weights = np.float32(weights)
    token = int(inverse_cdf(weights, np.float32([uniform]))[0])
    assert 0 <= token < vocab and weights[0, token] > 0


def test_frequencies_are_the_softmax():
    logits = np.random.default_rng(0).normal(size=(1, 300)).astype(np.float32) * 2
    grid = ((np.arange(20_000) + 0.5) / 20_000).astype(np.float32)
    tokens = jax.vmap(lambda u: sample_tokens(logits, u[None], 0.7)[0])(grid)
    counts = np.bincount(np.asarray(tokens), minlength=300) / len(grid)
    np.testing.assert_allclose(counts, softmax64(logits[0], 0.7), atol=2e-4)


@pytest.mark.parametrize("k", [1, 5, 50])
def test_top_k_keeps_the_k_largest(k):
    weights = np.random.default_rng(k).random((8, 400)).astype(np.float32)
    kept = np.asarray(keep_top_k(weights, k)) > 0
    expected = weights >= np.sort(weights, -1)[:, -k][:, None]
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits = np.random.default_rng(3).normal(size=(16, 500)).astype(np.float32) * 3
    probs = softmax64(logits)
    order = np.argsort(-probs, -1)
    ranked = np.take_along_axis(probs, order, -1)
    before = np.cumsum(ranked, -1) - ranked
    expected = np.zeros_like(probs, bool)
    np.put_along_axis(expected, order, before < p, -1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    kept = np.asarray(keep_top_p(jnp.asarray(weights), p)) > 0
    np.testing.assert_array_equal(kept, expected)


def test_top_p_of_one_certain_token_keeps_it_alone():
    weights = jnp.array([[0.0, 1.0, 1e-9]])
    np.testing.assert_array_equal(keep_top_p(weights, 0.9) > 0, [[False, True, False]])


def test_min_p_leaves_out_the_unlikely():
    logits = np.log(np.float32([[0.5, 0.3, 0.15, 0.05]]))
    grid = (np.arange(1000, dtype=np.float32) + 0.5) / 1000
    tokens = jax.vmap(lambda u: sample_tokens(logits, u[None], 1.0, min_p=0.4)[0])(grid)
    assert set(np.asarray(tokens).tolist()) == {0, 1}


def test_greedy_takes_the_first_of_the_likeliest():
    logits = np.float32([[0.0, 3.0, 3.0, -1.0], [2.0, 1.0, 0.0, 2.0]])
    np.testing.assert_array_equal(sample_tokens(logits, np.float32([0.9, 0.9]), 0.0), [1, 0])


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 700])
def test_the_likeliest_is_the_first_of_equals_in_any_block(vocabulary):
    rows = np.random.default_rng(0).integers(-3, 3, (50, vocabulary)).astype(np.float32)
    rows[0] = -np.inf  # nothing but equals
    np.testing.assert_array_equal(likeliest(rows), rows.argmax(-1))


def test_temperature_may_be_traced():
    logits = np.random.default_rng(1).normal(size=(4, 300)).astype(np.float32)
    uniform = np.float32([0.1, 0.4, 0.6, 0.9])
    traced = jax.jit(sample_tokens)(logits, uniform, jnp.float32(0.5))
    np.testing.assert_array_equal(traced, sample_tokens(logits, uniform, 0.5))
    greedy = jax.jit(sample_tokens)(logits, uniform, jnp.float32(0))
    np.testing.assert_array_equal(greedy, logits.argmax(-1))
