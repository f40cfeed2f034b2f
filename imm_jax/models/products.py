"""Matrix products that round their factors, with their gradients written out.

Processors with bfloat16 products take them at about twice the rate of float32 ones, and XLA:CPU
gets there if sums are asked for in float32 and both factors lie row after row. Where nothing is
rounded the gradient is still the faster one there: of ``[B, T, K]`` JAX's own turns ``x`` round
against the grain, in one pass with whatever made it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "... K"], kernel: Float[Array, "K N"], dtype: Any
) -> Float[Array, "... N"]:
    """``x @ kernel``: factors rounded to ``dtype``, sums and result float32.

    The two products of its gradient (by reverse mode alone) are taken alike, and returned in the
    dtypes of ``x`` and ``kernel``.
    """
    return _rounded(x, kernel, dtype)


def _rounded(x, kernel, dtype):
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)


def _forward(x, kernel, dtype):
    # Each factor is kept for the other's gradient alone: one that is frozen has none.
    kept = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    like = jnp.zeros((0,), x.value.dtype), jnp.zeros((0,), kernel.value.dtype)
    # Not by product itself, in which a rematerialisation policy would not see the product.
    return _rounded(x.value, kernel.value, dtype), (*kept, like)


def _backward(dtype, residuals, cotangent):
    x, kernel, like = residuals
    d_x = None if kernel is None else _rounded(cotangent, kernel.T, dtype)
    rows = lambda a: a.reshape(-1, a.shape[-1])
    d_kernel = None if x is None else sum_of_outer(rows(x), rows(cotangent), dtype)
    return tuple(d if d is None else d.astype(z.dtype) for d, z in zip((d_x, d_kernel), like))


product.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.jit, static_argnames="dtype", inline=True)
def sum_of_outer(
    x: Float[Array, "... N K"], y: Float[Array, "... N M"], dtype: Any
) -> Float[Array, "... K M"]:
    """``x.T @ y`` of the last two axes: factors rounded to ``dtype``, sums and result float32."""
    x_KN = x.astype(dtype).swapaxes(-1, -2)
    if jax.default_backend() == "cpu" and jnp.dtype(dtype).itemsize < 4:
        # XLA would leave x as it lies, and read it against the grain at half the rate.
        x_KN = with_layout_constraint(x_KN, Layout(tuple(range(x_KN.ndim))))
    return jnp.matmul(x_KN, y.astype(dtype), preferred_element_type=jnp.float32)


def narrow_products(dtype: Any = None) -> Callable:
    """For ``nn.intercept_methods``: each ``nn.Dense`` takes its product in ``dtype``, unless that
    is wider than its own; where None, in that of its kernel if narrower. Sums are float32.
    """

    def call_narrow(call, args, kwargs, context: nn.module.InterceptorContext) -> Any:
        dense = context.module
        if not isinstance(dense, nn.Dense) or context.method_name != "__call__":
            return call(*args, **kwargs)
        kernel = dense.get_variable("params", "kernel")
        narrow = jnp.dtype(dtype or kernel.dtype)
        own = jnp.dtype(dense.dtype).itemsize
        if narrow.itemsize > own or (dtype is None and narrow.itemsize == own):
            return call(*args, **kwargs)
        y = product(args[0], kernel, narrow).astype(dense.dtype)
        return y + dense.get_variable("params", "bias") if dense.use_bias else y

    return call_narrow
