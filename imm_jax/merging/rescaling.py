"""What is left of a task vector after a drop, made as large in sum as all of it was."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from imm_jax.merging import exact
from imm_jax.merging.exact import Double, to_double
from imm_jax.merging.protocol import Chain, TaskVectors, Tensor, Transform, chain, elementwise
from imm_jax.merging.sparsify import magnitudes
from imm_jax.merging.statistics import Totals

TINY = 1e-7  # a smaller sum is not scaled, as in mergekit


def rescaled(drop: Transform | Chain) -> Chain:
    """Drops, then multiplies what is left so that its L1 norm is what it was before.

    ``delta'' = delta' sum |delta| / sum |delta'|`` for each model, in each tensor; where the drop
    measures the whole model, over that. So what remains stands for all, as an unbiased drop's does
    on average (mergekit 0.1.5's ``rescale``).

    Args:
      drop: one transform of deltas, such as :func:`~imm_jax.merging.trim`.
    """
    (item,) = chain(drop)
    made = _rescaled.__wrapped__ if item.once else _rescaled
    return made(item)


@functools.lru_cache(maxsize=512)
def _rescaled(item: Transform) -> Chain:
    def dropped(vectors: TaskVectors, tensor: Tensor, statistic: Any) -> TaskVectors:
        """The deltas as they were come along behind, to be measured with what is left of them."""
        left = item.apply(vectors, tensor, statistic)
        return TaskVectors((*left.deltas, *vectors.deltas), (*left.weights, *vectors.weights))

    def apply(vectors: TaskVectors, tensor: Tensor, sums: Sequence[Array]) -> TaskVectors:
        half = len(vectors.deltas) // 2
        left, dtype = vectors.deltas[:half], tensor.base.dtype
        factors = (_factor(*pair, dtype) for pair in zip(sums[half:], sums[:half], strict=True))
        scaled = tuple(exact.multiply(d, f) for d, f in zip(left, factors, strict=True))
        return TaskVectors(scaled, vectors.weights[:half])

    both = elementwise(apply, Totals(magnitudes, lambda sums, size: sums), item.scope)
    name = f"rescaled({item.name})"
    return (
        item._replace(apply=dropped, name=name),
        both._replace(name=name, includes=item.includes, by_leaf_path=item.by_leaf_path),
    )


def _factor(before: Array, after: Array, dtype: Any) -> Double:
    small = (before < TINY) | (after < TINY)
    before, after = (jnp.where(small, 1, x).astype(dtype) for x in (before, after))
    return exact.divide(to_double(before, dtype), to_double(after, dtype))
