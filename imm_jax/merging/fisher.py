"""The diagonal Fisher information of a model, for :func:`imm_jax.merging.methods.fisher`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging.layout import is_merged
from imm_jax.tree import path_str

PyTree = Any


def diagonal_fisher(
    loss: Callable[[PyTree, PyTree], Array], params: PyTree, examples: PyTree
) -> PyTree:
    """The mean over examples of the squared gradient of their loss.

    ``F = 1/N sum_n (d loss(params, example_n) / d params)^2`` with ``loss`` the negative
    log-likelihood; labels sampled from the model give its Fisher information, labels of a data set
    the empirical Fisher (Matena and Raffel 2022, arXiv 2111.09832, eq. 3).

    Args:
      loss: ``loss(params, example) -> scalar`` for one example.
      params: a pytree of floating arrays.
      examples: a pytree whose arrays have the examples as first axis, ``[N, ...]``.

    Returns:
      A float32 tree like ``params``. One gradient is in memory at a time.

    Raises:
      InputError: a leaf is no array of floating numbers, or there are no examples.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_merged(leaf):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise InputError(f"{path_str(path)} is {kind}; expected floating numbers to derive by")
    count = jax.tree.leaves(examples)[0].shape[0]
    if not count:
        raise InputError("there are no examples; expected at least one")

    def add(total: PyTree, example: PyTree) -> tuple[PyTree, None]:
        grads = jax.grad(loss)(params, example)
        return jax.tree.map(
            lambda f, g: f + jnp.square(g.astype(jnp.float32)) / count, total, grads
        ), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return jax.lax.scan(add, zeros, examples)[0]
