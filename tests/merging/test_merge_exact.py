"""The arithmetic that keeps its rounding errors, against exact rationals and float64."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax import merging
from imm_jax.merging import exact

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
floats = st.floats(2.0**-20, 2.0**20, width=32) | st.floats(-(2.0**20), -(2.0**-20), width=32)


def pair(dtype, spread, seed=0, size=(250, 400)):
    """A base and a tuned tensor ``spread`` away from it."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=size).astype(dtype)
    return base, (base.astype(np.float64) + spread * rng.normal(size=size)).astype(dtype)


def merged(base, tuned, **kwargs):
    return np.asarray(merging.merge_params({"w": base}, {"w": tuned}, **kwargs)["w"])


@settings(max_examples=200, deadline=None)
@given(floats, floats)
def test_sum_and_product_lose_nothing(a, b):
    x, y = np.float32(a), np.float32(b)
    s = jax.jit(exact.two_sum)(x, y)
    assert Fraction(float(s.hi)) + Fraction(float(s.lo)) == Fraction(a) + Fraction(b)
    p = jax.jit(exact.two_product)(x, y)
    error = Fraction(float(p.hi)) + Fraction(float(p.lo)) - Fraction(a) * Fraction(b)
    assert abs(error) <= abs(Fraction(a) * Fraction(b)) * Fraction(1, 2**46)


@settings(max_examples=100, deadline=None)
@given(floats, floats, floats)
def test_division_has_twice_the_digits(a, b, c):
    x = exact.two_sum(jnp.float32(a), jnp.float32(c * 2.0**-24))
    value = Fraction(float(x.hi)) + Fraction(float(x.lo))
    q = jax.jit(exact.divide)(x, exact.to_double(jnp.float32(b)))
    error = Fraction(float(q.hi)) + Fraction(float(q.lo)) - value / Fraction(b)
    assert abs(error) <= abs(value / Fraction(b)) * Fraction(1, 2**42)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_half_way_is_the_rounded_mean(dtype, spread):
    base, tuned = pair(dtype, spread)
    mean = ((base.astype(np.float64) + tuned.astype(np.float64)) / 2).astype(dtype)
    assert np.count_nonzero(merged(base, tuned, weight=0.5) != mean) == 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("weight", [0.3, 0.25, 1 / 3, -1.3, 2.0])
def test_interpolation_is_correctly_rounded(dtype, weight):
    base, tuned = pair(dtype, 1e-3, seed=1)
    wide = base.astype(np.float64)
    expected = (wide + weight * (tuned.astype(np.float64) - wide)).astype(dtype)
    assert np.count_nonzero(merged(base, tuned, weight=weight) != expected) == 0


def test_plain_float32_would_not_be_correctly_rounded():
    base, tuned = pair(ml_dtypes.bfloat16, 1e-2)
    wide = base.astype(np.float64)
    expected = (wide + 0.3 * (tuned.astype(np.float64) - wide)).astype(base.dtype)
    difference = tuned.astype(np.float32) - base.astype(np.float32)
    plain = (base.astype(np.float32) + np.float32(0.3) * difference).astype(base.dtype)
    assert np.count_nonzero(plain != expected) > 0
    assert np.count_nonzero(merged(base, tuned, weight=0.3) != expected) == 0


def test_task_arithmetic_in_bfloat16_rounds_once():
    rng = np.random.default_rng(5)
    base, first = pair(ml_dtypes.bfloat16, 1e-2)
    models = [first, pair(ml_dtypes.bfloat16, 1e-2, seed=3)[1]]
    models[1] = (base.astype(np.float64) + 0.02 * rng.normal(size=base.shape)).astype(base.dtype)
    weights = [0.6, -0.2]
    wide = base.astype(np.float64)
    parts = [w * (m.astype(np.float64) - wide) for w, m in zip(weights, models)]
    expected = (wide + sum(parts)).astype(base.dtype)
    out = merging.merge_params(base, models, weight=weights, transform=merging.task_arithmetic())
    assert np.count_nonzero(np.asarray(out) != expected) == 0


def significant(x, bits):
    """``x`` rounded once to so many significant bits; ml_dtypes rounds to float32 before."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)


def every_bfloat16_pair(gap):
    """All pairs of 8-bit significands, of all signs and with exponents up to ``gap`` apart."""
    significands = np.arange(128, 256, dtype=np.float64)
    scales = np.ldexp([[1.0], [-1.0]], np.arange(-gap, gap + 1))
    base, tuned = np.meshgrid(significands, np.outer(scales, significands))
    return base.ravel().astype(ml_dtypes.bfloat16), tuned.ravel().astype(ml_dtypes.bfloat16)


def assert_rounded_once(out, base, models, weights):
    """Equal to the exact sum rounded once, give or take 2^-45 of the summands before rounding.

    64-bit significands; a weight that no float holds makes ties and zeros that are none, of that
    size. Weights of few bits must do without.
    """
    base, out = base.astype(np.longdouble), out.astype(np.float64)
    parts = [np.longdouble(w) * (m.astype(np.longdouble) - base) for w, m in zip(weights, models)]
    value = base + sum(parts)
    short = all(w * 256 == round(w * 256) for w in weights)
    slack = 0 if short else (np.abs(base) + sum(map(np.abs, parts))) * 2.0**-45
    low, high = significant(value - slack, 8), significant(value + slack, 8)
    assert np.all((low <= out) & (out <= high))
    assert np.mean(low != high) < 0.1


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 0.5, 1e-3, -0.7, 1.5, 0.99, 0.123456789, -31.3])
def test_every_pair_of_bfloat16_is_rounded_once(weight):
    base, tuned = every_bfloat16_pair(gap=12)
    assert_rounded_once(merged(base, tuned, weight=weight), base, [tuned], [weight])


@pytest.mark.parametrize(
    "weights", [(0.5, 0.25), (1 / 3, 1 / 3), (0.1, 0.2), (-0.7, 1.5), (1e-3, 0.3), (0.1, 0.2, 0.3)]
)
@pytest.mark.parametrize("near", [True, False])
def test_several_bfloat16_models_are_rounded_once(weights, near):
    rng = np.random.default_rng(0)
    base, tuned = every_bfloat16_pair(gap=4)
    models = [rng.permutation(tuned) for _ in weights]
    if near:
        models[0] = (base * (1 + 0.02 * rng.normal(size=base.size))).astype(base.dtype)
    out = np.asarray(merging.merge_params(base, models, weight=list(weights)))
    assert_rounded_once(out, base, models, weights)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_what_cancels_is_zero(dtype):
    base = np.arange(1, 29).astype(dtype)
    for weight, factor in ((0.1, -9), (1 / 3, -2), (0.2, -4)):
        out = merged(base, (factor * base.astype(np.float64)).astype(dtype), weight=weight)
        assert not out.astype(np.float32).any()


def test_short_weights_round_bfloat16_once_over_all_exponents():
    rng = np.random.default_rng(0)
    significands = rng.choice([-1, 1], (2, 2**18)) * rng.integers(128, 256, (2, 2**18))
    exponents = rng.integers(-90, 110, significands.shape)
    base, tuned = np.ldexp(significands, exponents).astype(ml_dtypes.bfloat16)
    for weight in (0.5, 1.5, -0.25):
        a, b = (1 - weight) * base.astype(np.float64), weight * tuned.astype(np.float64)
        total = a + b
        lost = (a - (total - (total - a))) + (b - (total - a))  # decides what looks like a tie
        decides = (lost != 0) & (significant(total, 9) == total)
        total = np.where(decides, np.nextafter(total, np.copysign(np.inf, lost)), total)
        out = merged(base, tuned, weight=weight).astype(np.float64)
        np.testing.assert_array_equal(out, significant(total, 8))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_bits_do_not_depend_on_how_the_weight_comes(dtype):
    base, tuned = pair(dtype, 1.0, size=(3, 1000))
    expected = merged(base, tuned, weight=0.3)
    literal = jax.jit(lambda b, t: merging.merge_params(b, t, weight=0.3))(base, tuned)
    rows = [merged(b, t, weight=0.3) for b, t in zip(base, tuned)]
    for out in (literal, rows):
        np.testing.assert_array_equal(np.asarray(out), expected)


def test_gradient_of_a_bfloat16_merge():
    base, tuned = pair(ml_dtypes.bfloat16, 1.0, size=100)
    delta = tuned.astype(np.float64) - base.astype(np.float64)

    def total(w):
        return jnp.sum(merging.merge_params(base, tuned, weight=w).astype(jnp.float32))

    for weight in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(jax.grad(total)(weight), delta.sum(), rtol=1e-2)


def test_a_literal_summand_loses_nothing():
    x = np.random.default_rng(0).normal(size=100).astype(np.float32)
    s = jax.jit(lambda x: exact.add(exact.to_double(-1.0), exact.to_double(x)))(x)
    np.testing.assert_array_equal(np.float64(s.hi) + np.float64(s.lo), np.float64(x) - 1)


def test_rounds_to_even_only_at_true_ties():
    one, ulp = 1.0, 2.0**-7  # bfloat16's step above 1
    hi = jnp.array([one + ulp / 2, one + 1.5 * ulp, one + ulp / 2, one + 1.5 * ulp], jnp.float32)
    lo = jnp.array([0, 0, 1e-9, -1e-9], jnp.float32)
    out = exact.round_to(exact.Double(hi, lo), jnp.bfloat16)
    assert out.astype(jnp.float32).tolist() == [one, one + 2 * ulp, one + ulp, one + ulp]


def test_end_points_keep_every_bit():
    specials = np.array([0.0, -0.0, np.inf, -np.inf, 1e-30, -3.4e38, 1.5], np.float32)
    base, tuned = specials, specials[::-1].copy()
    for weight, expected in ((0.0, base), (1.0, tuned)):
        bits = merged(base, tuned, weight=weight).view(np.uint32)
        assert bits.tolist() == expected.view(np.uint32).tolist()
    traced = jax.jit(lambda w: merging.merge_params(base, tuned, weight=w))
    assert np.asarray(traced(1.0)).view(np.uint32).tolist() == tuned.view(np.uint32).tolist()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("weight", [0.5, 1.5])
def test_equal_infinities_stay_and_others_propagate(dtype, weight):
    base = np.array([np.inf, -np.inf, np.inf, 1.0, np.nan, 2.0], dtype)
    tuned = np.array([np.inf, -np.inf, -np.inf, np.inf, 1.0, np.nan], dtype)
    out = merged(base, tuned, weight=weight).astype(np.float32)
    assert out[:2].tolist() == [np.inf, -np.inf] and out[3] == np.inf
    assert np.isnan(out[[2, 4, 5]]).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_what_is_too_large_becomes_infinite(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    base, tuned = np.array([0.0, 0.0], dtype), np.array([largest, -largest], dtype)
    out = merged(base, tuned, weight=1.5).astype(np.float32)
    assert out.tolist() == [np.inf, -np.inf]


def test_subnormal_bfloat16_counts_as_zero():
    tiny = np.array([1, 0x8001, 0x7F], np.uint16).view(ml_dtypes.bfloat16)
    one = np.ones(3, ml_dtypes.bfloat16)
    assert merged(one, tiny, weight=0.5).astype(np.float32).tolist() == [0.5] * 3
    assert merged(tiny, one, weight=0.25).astype(np.float32).tolist() == [0.25] * 3


def test_float64_leaves_are_merged_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        base, tuned = rng.normal(size=(2, 50))
        out = merged(base, tuned, weight=0.3)
        assert out.dtype == np.float64
        np.testing.assert_allclose(out, base + 0.3 * (tuned - base), rtol=1e-15, atol=1e-15)


def test_rounding_to_bfloat16_is_the_cast():
    high = np.arange(2**16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (high[:, None] | low).view(np.float32)
    rounded = jax.jit(lambda x: exact.round_to(exact.to_double(x), jnp.bfloat16))(x)
    rounded = np.asarray(rounded).astype(np.float32)
    with np.errstate(invalid="ignore"):
        cast = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rounded, cast)
