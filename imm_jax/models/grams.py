"""Gram matrices of what the kernels of a Flax Linen model read, for :func:`merging.regmean`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging.regmean import gram

PyTree = Any
COLLECTION, NAME = "intermediates", "gram"


def kernel_grams(
    model: nn.Module, params: PyTree, *inputs: Any, mask: Array | None = None
) -> tuple[PyTree, Array]:
    """``X^T X`` of the inputs of every ``nn.Dense`` that ``model.apply`` calls on ``inputs``.

    To collect over batches::

        sums = lambda params, batch: kernel_grams(model, params, batch["tokens"])
        grams = merging.collect_grams(sums, params, batches)

    Args:
      model: any Linen module. A scan over layers must let ``"intermediates"`` through, as
        :class:`imm_jax.models.decoder.Decoder` does.
      params: its parameters, layers stacked.
      *inputs: the model's, such as tokens ``[B, T]``.
      mask: bool, the leading axes of the activations (``[B, T]``): the rows that count; None: all.

    Returns:
      A float32 tree with ``[in, in]`` (``[L, in, in]`` in scanned layers) at the path of each
      kernel, and the number of rows. A tied head is an embedding, so it has none.
    """
    rows = []

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.Dense) and context.method_name == "__call__":
            x = args[0]
            rows.append(x.size // x.shape[-1])
            module.sow(COLLECTION, NAME, gram(x, mask), reduce_fn=jnp.add, init_fn=lambda: 0.0)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        _, state = model.apply({"params": params}, *inputs, mutable=[COLLECTION])
    grams: dict = {}
    for path, value in jax.tree_util.tree_flatten_with_path(state.get(COLLECTION, {}))[0]:
        *folders, name = (key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        if name == NAME:
            node = grams
            for folder in folders:
                node = node.setdefault(folder, {})
            node["kernel"] = value
    if not grams:
        raise InputError(
            f"{type(model).__name__} shows no inputs of an nn.Dense; expected one, and scans with "
            f"{COLLECTION!r} in variable_axes"
        )
    count = jnp.float32(rows[0]) if mask is None else jnp.sum(mask, dtype=jnp.float32)
    return grams, count
