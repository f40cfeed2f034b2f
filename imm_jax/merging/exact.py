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
    with np.errstate(invalid="ignore", over="ignore"):
        hi = value.astype(dtype)
        return Double(hi, np.nan_to_num(value - hi).astype(dtype))


def _opaque(x: Any) -> Any:
    """``x``, hidden if it is a literal: XLA would simplify ``(y + x) - x`` to ``y``."""
    return x if isinstance(x, jax.Array) else jax.lax.optimization_barrier(jnp.asarray(x))


def two_sum(a: Array, b: Array) -> Double:
    """``a + b`` exactly, as the rounded sum and what rounding lost."""
    a, b = _opaque(a), _opaque(b)
    s = a + b
    t = s - a
    return Double(s, (a - (s - t)) + (b - t))


def quick_two_sum(a: Array, b: Array) -> Double:
    """As :func:`two_sum`, where ``a`` is known to be at least as large as ``b``."""
    s = a + b
    return Double(s, b - (s - a))


def to_bits(x: Array) -> Array:
    """The bits of floats as unsigned integers of the same size."""
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))


def from_bits(bits: Array, dtype: Any) -> Array:
    """The floats of ``dtype`` that have these bits."""
    return jax.lax.bitcast_convert_type(bits, dtype)


def leading_bits(x: Array, count: int) -> Array:
    """float32 with all but the first ``count`` bits of its 24 set to 0."""
    mask = np.uint32(2**32 - 2 ** (24 - count))
    return from_bits(to_bits(x) & mask, x.dtype)


def _halves(x: Array) -> tuple[Array, Array]:
    """Splits float32 into two parts of at most 12 bits each, whose products float32 holds."""
    high = leading_bits(x, 12)
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


def subtract(a: Double, b: Double) -> Double:
    """``a - b``."""
    return add(a, Double(-b.hi, -b.lo))


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


def pick(condition: Array, a: Array, b: Array) -> Array:
    """``where(condition, a, b)`` of the bits; XLA on CPU would round a bfloat16 once more."""
    return from_bits(jnp.where(condition, to_bits(a), to_bits(b)), a.dtype)


def subtract_leaf(tuned: Array, base: Array) -> Double:
    """``tuned - base`` exactly. Where both are equal it is 0, infinities included."""
    difference, lost = two_sum(tuned, -base)
    hi = with_gradient_of(difference, jnp.where(tuned == base, 0, difference))
    return Double(hi, jnp.where(jnp.isfinite(difference), lost, 0))


def same_sign(x: Array, y: Array) -> Array:
    """uint32 1 where two float32 numbers have the same sign bit, else 0."""
    return ~(to_bits(x) ^ to_bits(y)) >> np.uint32(31)


def round_to(x: Double, dtype: Any) -> Array:
    """Rounds ``hi + lo`` once to ``dtype``, ties to even. ``hi`` must be their float32 sum."""
    if jnp.finfo(dtype).bits >= 32 or x.hi.dtype == jnp.float64:
        return x.hi.astype(dtype)
    if dtype == jnp.bfloat16:
        return _to_bfloat16(x)
    # Rounding to odd keeps in hi's last bit that something lies beyond it, so the cast sees it.
    bits = to_bits(x.hi)
    odd = (bits - np.uint32(1) + same_sign(x.lo, x.hi)) | np.uint32(1)
    return jnp.where(jnp.abs(x.lo) > 0, from_bits(odd, x.hi.dtype), x.hi).astype(dtype)


def _to_bfloat16(x: Double) -> Array:
    """Rounds ``hi + lo`` to bfloat16 in integers, which is fast to compile.

    The branch that XLA makes of a cast to bfloat16 on CPU can keep LLVM's loop vectorizer busy for
    minutes behind long chains of arithmetic (jax 0.12.0).
    """
    bits = to_bits(x.hi)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    up = bits + np.uint32(0x7FFF) + jnp.where(x.lo == 0, even, same_sign(x.lo, x.hi))
    high = jnp.where(jnp.isnan(x.hi), bits | np.uint32(0x00400000), up) >> np.uint32(16)
    return from_bits(high.astype(jnp.uint16), jnp.bfloat16)


def _without_noise(lo: Array, size: Array) -> Array:
    """Rounds ``lo`` to a multiple of about ``NOISE * size``, so that a tie is seen as a tie."""
    if size.dtype == jnp.float64:
        return lo
    grid = leading_bits(size, 1) * np.float32(1.5 * NOISE * 2**23)
    return (lo + grid) - grid


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def weighted_sum(base: Array, deltas: tuple, weights: tuple, dtype: Any) -> Array:
    """``base + sum_i weights[i] * deltas[i]``, computed to about 46 bits and rounded once.

    Differentiable, as if it were rounded nowhere.

    Args:
      base: the tensor to add to, float32 (or float64).
      deltas: a Double for each model, shaped as ``base``.
      weights: a Double for each model, broadcasting to ``base``.
      dtype: the result's dtype.

    Its derivative is written down, so that a backward pass keeps deltas and weights alone, and none
    of the steps of the arithmetic.
    """
    hi, lo, plain, size = base, jnp.zeros_like(base), base, jnp.abs(base)
    for delta, weight in zip(deltas, weights, strict=True):
        part = multiply(delta, weight)
        hi, lost = two_sum(hi, part.hi)
        lo = lo + (lost + part.lo)
        plain, size = plain + delta.hi * weight.hi, size + jnp.abs(part.hi)
    total = quick_two_sum(hi, _without_noise(lo, size))
    # The error terms of an infinity are NaN; the plain sum has the right one of both.
    total = total._replace(hi=jnp.where(jnp.isfinite(total.hi), total.hi, plain))
    return round_to(total, dtype)


@weighted_sum.defjvp
def _weighted_sum_jvp(dtype, primals, tangents):
    _, deltas, weights = primals
    slope, delta_slopes, weight_slopes = tangents
    for delta, weight, d, w in zip(deltas, weights, delta_slopes, weight_slopes, strict=True):
        slope = slope + (d.hi + d.lo) * weight.hi + delta.hi * (w.hi + w.lo)
    return weighted_sum(*primals, dtype), slope.astype(dtype)
