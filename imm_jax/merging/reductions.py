"""Sums over whole tensors that need no temporary of the tensor's size.

XLA on CPU writes out what it reduces over more than 32 elements at once, and only then reduces
it, in tiles. So reduce over at most 32 first, which fuses with what computes the elements.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

FEW = 32


def _in_two_steps(reduce: Callable, xs: Sequence[Array]) -> list[Array]:
    """``reduce(xs, axis)`` over a factor of one axis, then over everything else (axis None)."""
    shape = xs[0].shape
    factors = [
        (d, axis) for axis, size in enumerate(shape) for d in range(1, FEW + 1) if size % d == 0
    ]
    if not factors:
        return list(xs)
    part, axis = max(factors)
    cut = (*shape[:axis], shape[axis] // part, part, *shape[axis + 1 :])
    # The barrier keeps both steps apart, which XLA would join.
    some = reduce([x.reshape(cut) for x in xs], axis + 1)
    return reduce(jax.lax.optimization_barrier(some), None)


def _plain(xs: Sequence[Array], axis: int | None) -> list[Array]:
    return [jnp.sum(x, axis, dtype=x.dtype) for x in xs]


def count_true(mask: Array) -> Array:
    """How many elements are True, as uint32."""
    return _in_two_steps(_plain, [mask.astype(jnp.uint32)])[0]


def totals(xs: Sequence[Array], one_device: bool = False) -> list[Array]:
    """The sums of all elements of several tensors of one shape; booleans are counted, as uint32.

    Compilers may reorder sums in one program and not in another; then the same layer would have two
    sums. On ``one_device`` they are kept from that by :func:`unjoined`. One loop makes all sums
    there, so that what the tensors share is computed once and never kept. Partial sums of several
    devices cannot be added up this way.
    """
    xs = [x.astype(jnp.uint32) if x.dtype == bool else x for x in xs]
    return _in_two_steps(_in_order if one_device else _plain, xs)


def _in_order(xs: Sequence[Array], axis: int | None) -> list[Array]:
    xs = [unjoined(x) for x in xs]
    axes = range(xs[0].ndim) if axis is None else (axis,)
    add = lambda a, b: tuple(unjoined(x + y) for x, y in zip(a, b, strict=True))
    zeros = tuple(jnp.zeros((), x.dtype) for x in xs)
    return list(jax.lax.reduce(tuple(xs), zeros, add, axes))


def unjoined(x: Array) -> Array:
    """``x`` as it is, but no compiler joins what makes it with what uses it into other arithmetic.

    Such as a product and a sum into one instruction that rounds once, here and not there. Clipping
    to the largest finite number changes nothing and cannot be moved.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    most = jnp.finfo(x.dtype).max
    return jax.lax.clamp(-most, x, most)
