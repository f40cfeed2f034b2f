"""Reinforced Agent Merging: what one model alone changed is kept whole, what several did, averaged.

Models trained by reinforcement change few elements, each its own; a plain mean would dilute them.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging import exact
from imm_jax.merging.exact import Double, to_double
from imm_jax.merging.protocol import (
    TaskVectors,
    Tensor,
    Transform,
    as_double,
    elementwise,
    transform,
)
from imm_jax.merging.statistics import Totals


@transform
def ram(epsilon: float = 1e-5) -> Transform:
    """RAM: each element is the mean of the deltas of the models that changed it.

    ``base + sum_i m_i delta_i / max(1, sum_i m_i)`` with ``m_i = |delta_i| > epsilon``, so what one
    model alone changed is taken from it bit for bit (Yuan et al. 2026, "Behavior Knowledge Merge in
    Reinforced Agentic Models", arXiv 2601.13572; mergekit's ram). Given weights are not used.

    Args:
      epsilon: deltas up to this size count as unchanged, and are dropped.
    """
    _require_not_negative(epsilon=epsilon)

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        return _mean_of_changes(vectors, epsilon)

    return elementwise(apply)


@transform
def ramplus_tl(r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5) -> Transform:
    """RAM+, tensor-local: as :func:`ram`, but what one model alone changed is amplified.

    Where only model i changed an element, its delta is multiplied by
    ``lambda_i = 1 + r min(shared_i / unique_i, alpha)``; ``shared_i`` and ``unique_i`` count the
    tensor's elements that model i changed with others and alone. So the more of a model's changes
    averaging weakens, the more the others are raised (Yuan et al. 2026, arXiv 2601.13572;
    mergekit's ramplus_tl). Given weights are not used.

    Args:
      r: how much of the ratio is added.
      alpha: the largest ratio that counts.
      epsilon: deltas up to this size count as unchanged, and are dropped.
    """
    _require_not_negative(r=r, alpha=alpha, epsilon=epsilon)

    def ratios_of(sums: tuple[list[Array], list[Array]], size: int) -> Array:
        shared, unique = (jnp.stack(counts).astype(jnp.float32) for counts in sums)
        return jnp.minimum(shared / jnp.maximum(unique, 1), alpha)

    measure = Totals(lambda vectors, tensor: _overlaps(vectors, epsilon), ratios_of)

    def apply(vectors: TaskVectors, tensor: Tensor, ratios: Array) -> TaskVectors:
        dtype = tensor.base.dtype
        one, share = to_double(1.0, dtype), to_double(r, dtype)
        factors = [exact.add(one, exact.multiply(share, to_double(x, dtype))) for x in ratios]
        return _mean_of_changes(vectors, epsilon, factors)

    return elementwise(apply, measure)


def _require_not_negative(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise InputError(f"{name} is {value}; expected a number >= 0")


def _changed(vectors: TaskVectors, epsilon: float) -> tuple[list[Array], Array]:
    """Which elements each model changed, and how many models changed each element."""
    changed = [jnp.abs(d.hi) > epsilon for d in vectors.deltas]
    return changed, sum(c.astype(vectors.deltas[0].hi.dtype) for c in changed)


def _overlaps(vectors: TaskVectors, epsilon: float) -> tuple[list[Array], list[Array]]:
    """For each model, which elements it changed together with others, and which alone."""
    changed, count = _changed(vectors, epsilon)
    return [c & (count > 1) for c in changed], [c & (count == 1) for c in changed]


def _mean_of_changes(
    vectors: TaskVectors, epsilon: float, factors: Sequence[Double] | None = None
) -> TaskVectors:
    """The mean of the changed deltas; what one model alone changed is times its factor."""
    changed, count = _changed(vectors, epsilon)
    total = exact.zeros_like(vectors.deltas[0])
    for i, (c, delta) in enumerate(zip(changed, vectors.deltas, strict=True)):
        if factors is not None:
            delta = exact.select(count == 1, exact.multiply(delta, factors[i]), delta)
        total = exact.add(total, exact.select(c, delta, exact.zeros_like(delta)))
    # A sum of one is left undivided: it keeps all its bits.
    merged = exact.select(count > 1, as_double(total.hi / jnp.maximum(count, 1)), total)
    return TaskVectors((merged,), (to_double(1.0, total.hi.dtype),))
