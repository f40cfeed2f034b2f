"""The weighted sum of bfloat16 tensors, rounded once, in few operations: memory is the limit.

An element has 8 bits. A coefficient is cut into pieces of 16 bits or fewer, and a piece times an
element is a number that float32 holds. With the coefficients ``1 - sum_i w_i`` of the base and
``w_i`` of the models, no element has to be subtracted or split as in :mod:`exact`.

Two sums are made. The first, in float32, says between which two bfloat16 numbers the result lies.
The second starts from minus the middle of these two: where the choice is a close one it is near 0,
so nothing of it is lost, and its sign chooses.
"""

import functools
import operator

import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.merging import exact
from imm_jax.merging.exact import Double, from_bits, to_bits


def weighted_sum(base: Array, tuned: tuple[Array, ...], weights: tuple[Double, ...]) -> Array:
    """``base + sum_i weights[i] * (tuned[i] - base)``, rounded once to bfloat16.

    With weights that no float holds, as 0.1 or 1/3, what is below about 2^-46 of the summands is
    taken for their rounding: a tie is a tie and 0 is 0. Differentiable, as if it were not rounded.

    Args:
      base: a bfloat16 tensor.
      tuned: bfloat16 tensors of the same shape.
      weights: a Double for each of them, broadcasting to their shape.
    """
    elements = [x.astype(jnp.float32) for x in (base, *tuned)]
    first = functools.reduce(exact.subtract, weights, exact.to_double(1.0))
    pieces = [_pieces(c) for c in (first, *weights)]
    high, middle, low = ([x * p[i] for x, p in zip(elements, pieces)] for i in range(3))
    total, errors = _exact_sum(high)
    rest, smaller_errors = _exact_sum(middle)
    small = _sum([*low, *smaller_errors, *errors])

    near = total + (rest + small)
    bits = to_bits(near)
    half = from_bits((bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000), near.dtype)
    beyond = ((total - half) + rest) + small

    noise = _noise(elements, weights, pieces)
    towards_zero = bits >> np.uint32(16)
    even = towards_zero & np.uint32(1)
    up = jnp.where(jnp.abs(beyond) <= noise, even, exact.same_sign(beyond, near))
    rounded = jnp.where(jnp.abs(near) <= noise, 0, towards_zero + up)
    # The pieces of an infinity are NaN. A plain sum that is infinite or NaN can be cut short.
    plain = elements[0]
    for x, w in zip(elements[1:], weights, strict=True):
        plain = plain + w.hi * exact.subtract_leaf(x, elements[0]).hi
    result = jnp.where(jnp.isfinite(near), rounded, to_bits(plain) >> np.uint32(16))
    result = from_bits(result.astype(jnp.uint16), jnp.bfloat16)
    return exact.with_gradient_of(plain.astype(jnp.bfloat16), result)


def _pieces(c: Double) -> tuple[Array, Array, Array]:
    """Parts of ``c`` of 16, 16 and up to 24 bits."""
    first = exact.leading_bits(c.hi, 16)
    rest = exact.quick_two_sum(c.hi - first, c.lo)
    second = exact.leading_bits(rest.hi, 16)
    return first, second, (rest.hi - second) + rest.lo


def _exact_sum(terms: list[Array]) -> tuple[Array, list[Array]]:
    """The rounded sum, and what each addition lost."""
    total, errors = terms[0], []
    for term in terms[1:]:
        total, error = exact.two_sum(total, term)
        errors.append(error)
    return total, errors


def _noise(elements: list[Array], weights: tuple[Double, ...], pieces: list[tuple]) -> Array:
    """How much of each sum is rounding of the weights: nothing if they are short, as 0.5 is."""
    sizes = [jnp.abs(w.hi) for w in weights]
    shares = [
        jnp.where(p[2] == 0, 0, size * np.float32(exact.NOISE))
        for p, size in zip(pieces, [_sum(sizes) + 1, *sizes])
    ]
    return _sum([share * jnp.abs(x) for x, share in zip(elements, shares)])


def _sum(terms: list[Array]) -> Array:
    """From left to right."""
    return functools.reduce(operator.add, terms)
