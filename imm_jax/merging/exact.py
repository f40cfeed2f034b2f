"""Sums and products of float32 numbers whose rounding errors are kept, so a merge rounds once.

A value is a :class:`Double`: the unevaluated sum of two float32 arrays, about 48 bits. A compiler
may turn ``a * b + c`` into one instruction that rounds once instead of twice; every product that
counts is therefore one that float32 holds exactly, so that either way the bits are the same. This
is also what makes a merge of stacked layers bit-equal to the merge of the same layers one by one.

Source: Dekker 1971, "A floating-point technique for extending the available precision"; Knuth,
TAOCP 2, 4.2.2 (two-sum); Boldo and Melquiond 2008 (rounding to odd before a second rounding).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NOISE = 2.0**-46  # what is below this share of the largest summand is rounding noise of Double


class Double(NamedTuple):
    """The sum ``hi + lo``. ``hi`` alone is its float32 value; a float64 ``hi`` has ``lo`` 0."""

    hi: Any
    lo: Any


def compute_dtype(dtype: Any) -> Any:
    """The dtype to compute in for leaves of ``dtype``: float32, or float64 for float64."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def to_double(value: Any, dtype: Any = jnp.float32) -> Double:
    """Splits a number into a :class:`Double`; Python and NumPy numbers keep their 53 bits."""
    if isinstance(value, Double):
        return value
    if isinstance(value, jax.Array):
        hi = value.astype(dtype)
        return Double(hi, jnp.zeros_like(hi))
    value = np.asarray(value, np.float64)
    hi = value.astype(dtype)
    with np.errstate(invalid="ignore"):
        return Double(hi, np.nan_to_num(value - hi).astype(dtype))


def two_sum(a: Array, b: Array) -> Double:
    """``a + b`` exactly, as the rounded sum and what rounding lost."""
    s = a + b
    t = s - a
    return Double(s, (a - (s - t)) + (b - t))


def quick_two_sum(a: Array, b: Array) -> Double:
    """As :func:`two_sum`, where ``a`` is known to be at least as large as ``b``."""
    s = a + b
    return Double(s, b - (s - a))


def _halves(x: Array) -> tuple[Array, Array]:
    """Splits float32 into two parts of at most 12 bits each, whose products float32 holds."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & np.uint32(0xFFFFF000)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high, x - high


def two_product(a: Array, b: Array) -> Double:
    """``a * b`` to about 48 bits (float64: rounded as usual)."""
    if jnp.result_type(a, b) == jnp.float64:
        product = a * b
        return Double(product, jnp.zeros_like(product))
    (ah, al), (bh, bl) = _halves(jnp.asarray(a)), _halves(jnp.asarray(b))
    s, e1 = quick_two_sum(ah * bh, ah * bl)
    s, e2 = quick_two_sum(s, al * bh)
    return Double(s, (e1 + e2) + al * bl)


def add(a: Double, b: Double) -> Double:
    """``a + b``."""
    s, e = two_sum(a.hi, b.hi)
    return two_sum(s, e + (a.lo + b.lo))


def multiply(a: Double, b: Double) -> Double:
    """``a * b``."""
    p, e = two_product(a.hi, b.hi)
    return Double(p, e + (a.hi * b.lo + a.lo * b.hi))


def divide(a: Double, b: Double) -> Double:
    """``a / b``."""
    q = a.hi / b.hi
    product = two_product(q, b.hi)
    rest = (a.hi - product.hi) - product.lo + (a.lo - q * b.lo)
    return quick_two_sum(q, rest / b.hi)


def select(condition: Array, a: Double, b: Double) -> Double:
    """Elementwise ``a if condition else b``."""
    return Double(jnp.where(condition, a.hi, b.hi), jnp.where(condition, a.lo, b.lo))


def zeros_like(x: Double) -> Double:
    """0 in the shape of ``x``."""
    return Double(jnp.zeros_like(x.hi), jnp.zeros_like(x.lo))


@jax.custom_jvp
def with_gradient_of(smooth: Array, value: Array) -> Array:
    """Returns ``value``, differentiated as if it were ``smooth`` (same shape and dtype)."""
    return value


@with_gradient_of.defjvp
def _with_gradient_of_jvp(primals, tangents):
    return with_gradient_of(*primals), tangents[0]


def subtract_leaf(tuned: Array, base: Array) -> Double:
    """``tuned - base`` exactly. Where both are equal it is 0, infinities included."""
    difference, lost = two_sum(tuned, -base)
    zero = (tuned == base) | ~jnp.isfinite(difference)
    hi = with_gradient_of(difference, jnp.where(tuned == base, 0, difference))
    return Double(hi, jnp.where(zero, 0, lost))


def round_to(x: Double, dtype: Any) -> Array:
    """Rounds ``hi + lo`` once to ``dtype``, ties to even; differentiable."""
    x = quick_two_sum(x.hi, x.lo)
    plain = x.hi.astype(dtype)
    if jnp.finfo(dtype).bits >= 32 or x.hi.dtype == jnp.float64:
        return plain
    # Rounding to odd keeps in hi's last bit that something lies beyond it, so the cast sees it.
    bits = jax.lax.bitcast_convert_type(x.hi, jnp.uint32)
    shorter = ((x.lo < 0) != (x.hi < 0)).astype(jnp.uint32)
    odd = jax.lax.bitcast_convert_type((bits - shorter) | np.uint32(1), jnp.float32)
    value = jnp.where(x.lo == 0, x.hi, odd)
    rounded = _to_bfloat16(value) if dtype == jnp.bfloat16 else value.astype(dtype)
    return with_gradient_of(plain, rounded)


def _to_bfloat16(x: Array) -> Array:
    """float32 as bfloat16, ties to even, in integers: equal to ``astype`` but fast to compile.

    The branch that XLA makes of a cast to bfloat16 on CPU can keep LLVM's loop vectorizer busy for
    minutes behind long chains of arithmetic (jax 0.12.0).
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    up = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    quiet = bits | np.uint32(0x00400000)
    high = jnp.where(jnp.isnan(x), quiet, up) >> np.uint32(16)
    return jax.lax.bitcast_convert_type(high.astype(jnp.uint16), jnp.bfloat16)


def _without_noise(lo: Array, size: Array) -> Array:
    """Rounds ``lo`` to a multiple of about ``NOISE * size``, so that a tie is seen as a tie."""
    if size.dtype == jnp.float64:
        return lo
    exponent = jax.lax.bitcast_convert_type(size, jnp.uint32) & np.uint32(0x7F800000)
    grid = jax.lax.bitcast_convert_type(exponent, jnp.float32) * np.float32(1.5 * NOISE * 2**23)
    return (lo + grid) - grid


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def weighted_sum(base: Array, deltas: tuple, weights: tuple, dtype: Any) -> Array:
    """``base + sum_i weights[i] * deltas[i]``, computed to about 46 bits and rounded once.

    Args:
      base: the tensor to add to, float32 (or float64).
      deltas: a Double for each model, shaped as ``base``.
      weights: a Double for each model, broadcasting to ``base``.
      dtype: the result's dtype.

    Its derivative is written down, so that a backward pass keeps deltas and weights alone, and none
    of the steps of the arithmetic.
    """
    total, plain, size = Double(base, jnp.zeros_like(base)), base, jnp.abs(base)
    for delta, weight in zip(deltas, weights, strict=True):
        total = add(total, multiply(delta, weight))
        part = delta.hi * weight.hi
        plain, size = plain + part, size + jnp.abs(part)
    total = Double(total.hi, _without_noise(total.lo, size))
    # The error terms of an infinity are NaN; the plain sum has the right one of both.
    finite = jnp.isfinite(total.hi + total.lo)
    return round_to(select(finite, total, Double(plain, jnp.zeros_like(plain))), dtype)


@weighted_sum.defjvp
def _weighted_sum_jvp(dtype, primals, tangents):
    _, deltas, weights = primals
    slope, delta_slopes, weight_slopes = tangents
    for delta, weight, d, w in zip(deltas, weights, delta_slopes, weight_slopes, strict=True):
        slope = slope + (d.hi + d.lo) * weight.hi + delta.hi * (w.hi + w.lo)
    return weighted_sum(*primals, dtype), slope.astype(dtype)
