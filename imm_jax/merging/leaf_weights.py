"""The weights of a tree's leaves, as numbers and arrays."""

import itertools
from collections.abc import Callable
from typing import Any

import jax

from imm_jax.errors import InputError
from imm_jax.merging import layout
from imm_jax.merging.layout import Leaf
from imm_jax.merging.weights import Weight, resolve

NO_SUM = 1e-7  # a sum below this share of its summands' size is the rounding of float32


def leaf_weights(
    params: Any, weight: Weight, models: int | None, stacked: Callable[[str], bool] | None
) -> tuple[list[Leaf], list[tuple]]:
    """The leaves of a tree that are merged, and for each the weight of every model.

    Args and errors are those of :func:`imm_jax.merging.weights.resolve`.
    """
    paths, values, treedef = layout.flatten(params)
    leaves, number = layout.describe(paths, values, stacked), itertools.count()
    indices = treedef.unflatten([next(number) if layout.is_merged(x) else None for x in values])
    return leaves, resolve(weight, indices, leaves, models)


def require_sum(
    params: Any, weight: Weight, models: int, stacked: Callable[[str], bool] | None
) -> None:
    """Raises InputError where a mean's weights sum to 0, as far as they are not traced."""
    for leaf, row in zip(*leaf_weights(params, weight, models, stacked), strict=True):
        if any(isinstance(w, jax.core.Tracer) for w in row):
            continue
        with jax.ensure_compile_time_eval():  # they are known inside a jit too
            cancel = abs(sum(row)) <= NO_SUM * sum(map(abs, row))
            if cancel.any():
                raise InputError(f"the weights of a linear merge sum to 0 in {leaf.leaf_path}")
