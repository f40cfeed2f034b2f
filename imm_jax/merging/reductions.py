"""Sums over whole tensors that need no temporary of the tensor's size.

XLA on CPU writes out what it reduces over more than 32 elements at once, and only then reduces
it, in tiles. So reduce over at most 32 first, which fuses with what computes the elements.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from imm_jax.merging.exact import with_gradient_of

FEW = 32


def _in_two_steps(reduce: Callable, x: Array) -> Array:
    """``reduce(x, axis)`` over a factor of one axis, then over everything else."""
    factors = [
        (d, axis) for axis, size in enumerate(x.shape) for d in range(1, FEW + 1) if size % d == 0
    ]
    if not factors:
        return x
    part, axis = max(factors)
    shape = (*x.shape[:axis], x.shape[axis] // part, part, *x.shape[axis + 1 :])
    # The barrier keeps both steps apart, which XLA would join.
    return reduce(jax.lax.optimization_barrier(reduce(x.reshape(shape), axis + 1)), None)


def count_true(mask: Array) -> Array:
    """How many elements are True, as uint32."""
    return _in_two_steps(
        lambda x, axis: jnp.sum(x, axis, dtype=jnp.uint32), mask.astype(jnp.uint32)
    )


def total(x: Array, in_order: bool = False) -> Array:
    """The sum of all elements of a floating tensor.

    Compilers may reorder sums, and join a product with the sum it goes into, in one program and not
    in another; then the same layer would have two sums. ``in_order`` keeps them from both: clipping
    to the largest finite number changes nothing but cannot be moved across a sum. It is for arrays
    on one device, since partial sums of several cannot be joined this way.
    """
    if not in_order:
        return _in_two_steps(jnp.sum, x)
    most = jnp.finfo(x.dtype).max
    within = lambda y: jax.lax.clamp(-most, y, most)

    def reduce(y: Array, axis: int | None) -> Array:
        axes = range(y.ndim) if axis is None else (axis,)
        return jax.lax.reduce(y, jnp.zeros((), y.dtype), lambda a, b: within(a + b), axes)

    value = _in_two_steps(reduce, within(jax.lax.stop_gradient(x)))
    return with_gradient_of(_in_two_steps(jnp.sum, x), value)


def largest(x: Array) -> Array:
    """The largest of non-negative elements, 0 where there are none."""
    return _in_two_steps(lambda x, axis: jnp.max(x, axis, initial=0), x)


def norm(x: Array, axis: int | None = None) -> Array:
    """The 2-norm, scaled so that squares neither overflow nor vanish; its gradient at 0 is 0.

    Along an axis, which is kept with length 1, or of all elements.
    """
    sizes = jax.lax.stop_gradient(jnp.abs(x))
    top = largest(sizes) if axis is None else jnp.max(sizes, axis, keepdims=True, initial=0)
    top = jnp.where(top > 0, top, 1)
    squares = total_along(jnp.square(x * (1 / top)), axis)
    return jnp.where(squares > 0, top * jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def total_along(x: Array, axis: int | None) -> Array:
    """The sum along an axis, kept with length 1, or of all elements."""
    return total(x) if axis is None else jnp.sum(x, axis, keepdims=True)
