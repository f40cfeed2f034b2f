"""Methods that take over some elements of a model and leave others: SCE and Arcee Fusion."""

import functools
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging import exact
from imm_jax.merging.kth import order_bits
from imm_jax.merging.protocol import (
    Chain,
    TaskVectors,
    Tensor,
    Transform,
    chain,
    elementwise,
    fan_in_axis,
    require_share,
    shareable,
    transform,
)
from imm_jax.merging.reductions import unjoined
from imm_jax.merging.statistics import Largest, Totals
from imm_jax.merging.transforms import mean_of_agreeing

TINY = 1e-8


@transform
def select_by_variance(select_topk: float) -> Transform:
    """Keeps the share of elements, of those that vary, with the largest variance over the models.

    SCE's first step. Of ``n`` that vary, ``floor(select_topk n)`` are kept, and what ties with the
    last of them.
    """
    require_share(select_topk, "select_topk")

    def spread(vectors: TaskVectors, tensor: Tensor) -> list[Array]:
        """The sum of squared distances from the mean."""
        deltas = [d.hi for d in vectors.deltas]
        mean = functools.reduce(operator.add, deltas) * (1 / len(deltas))
        # Each time it is computed, it must have the same bits.
        return [
            functools.reduce(
                operator.add, [unjoined(jnp.square(d - unjoined(mean))) for d in deltas]
            )
        ]

    def ranks(varying: Sequence[Any], models: int) -> list[list[Any]]:
        return [[_share_of(n, select_topk)] for n in varying]

    def apply(vectors: TaskVectors, tensor: Tensor, limit: Array) -> TaskVectors:
        keep = order_bits(spread(vectors, tensor)[0]) >= limit[0, 0]
        return vectors.with_deltas(
            exact.select(keep, d, exact.zeros_like(d)) for d in vectors.deltas
        )

    return elementwise(apply, Largest(spread, ranks, of_positive=True))


def _share_of(count: Any, share: float) -> Any:
    if isinstance(count, int):  # in float32, as traced counts are and as mergekit's
        return int(np.float32(count) * np.float32(share))
    return jnp.floor(count.astype(jnp.float32) * share).astype(jnp.uint32)


@transform
def weigh_by_energy() -> Transform:
    """SCE's second and third step: the energy-weighted mean of what agrees with the sum's sign."""

    def energies(vectors: TaskVectors, tensor: Tensor) -> list[Array]:
        return [jnp.square(d.hi) for d in vectors.deltas]

    def apply(vectors: TaskVectors, tensor: Tensor, sums: Sequence[Array]) -> TaskVectors:
        deltas = [d.hi for d in vectors.deltas]
        sign = jnp.where(sum(deltas) >= 0, 1.0, -1.0)
        agree = [jnp.sign(d) == sign for d in deltas]
        top = functools.reduce(jnp.maximum, sums)
        shares = [e / jnp.where(top > 0, top, 1) for e in sums]
        return mean_of_agreeing(vectors.with_weights(shares), agree)

    return elementwise(apply, Totals(energies, lambda sums, size: sums))


def sce(select_topk: float = 1.0) -> Chain:
    """SCE: select by variance, calculate weights from energy, erase the minority's sign.

    Keeps the ``select_topk`` share of elements (of those that vary) with the largest variance over
    the models, weighs model i by ``sum(delta_i^2) / sum_j sum(delta_j^2)``, and takes the weighted
    mean of the deltas whose sign is that of the sum (Wan et al. 2024, FuseChat, arXiv 2408.07990,
    section 3.3). Given weights are not used.
    """
    every = isinstance(select_topk, numbers.Real) and select_topk == 1
    return chain(None if every else select_by_variance(select_topk), weigh_by_energy())


def _divergence(base: Array, delta: Array, axis: int | None) -> Array:
    """``KL(p || q)`` of a row's softmax after and before, each with 1e-8 added as in mergekit.

    With ``x = log(p/q)`` it is ``sum q (x e^x - e^x + 1)``, whose terms are all >= 0. The terms of
    ``sum p x`` have both signs, and for deltas of 1e-4 float32 leaves nothing of their sum.
    """
    along = {"axis": axis, "keepdims": axis is not None}
    p, q = (jax.nn.softmax(x, axis) for x in (base + delta, base))
    after, before = (jax.nn.logsumexp(x, **along) for x in (base + delta, base))
    x = delta - (after - before)
    grown = jnp.where(jnp.abs(x) < 0.5, q * jnp.expm1(x), p - q)
    # p sums to 1, up to the rounding of both logarithms, which is taken out.
    grown -= jnp.log1p(jnp.sum(grown, **along)) * (q + grown)
    q += TINY
    x = jnp.log1p(jnp.maximum(grown / q, -1 + 2.0**-23))
    series = q * jnp.square(x) * (1 / 2 + x * (1 / 3 + x * (1 / 8 + x / 30)))
    return jnp.sum(jnp.where(jnp.abs(x) < 0.05, series, (q + grown) * x - grown), **along)


@transform
def arcee_fusion() -> Transform:
    """Arcee Fusion: takes over the elements of the tuned model that stand out.

    Importance is ``|delta| * KL(softmax(tuned row) || softmax(base row))``; elements at or above
    ``median + 1.5 (q3 - q1)`` of a tensor's importances are taken from the tuned model, the others
    from the base (mergekit's arcee_fusion; quartiles are exact here, at sorted position
    ``floor(q (n - 1))``).
    """

    def importance(vectors: TaskVectors, tensor: Tensor) -> list[Array]:
        if len(vectors.deltas) != 1:
            raise InputError(f"arcee_fusion merges 1 tuned model, got {len(vectors.deltas)}")
        delta, base = vectors.deltas[0].hi, tensor.base
        axis = fan_in_axis(tensor.path) if base.ndim > 1 else -1 if base.ndim else None
        return [jnp.abs(delta) * jnp.maximum(_divergence(base, delta, axis), 0)]

    def ranks(size: int, models: int) -> list[list[int]]:
        return [[size - int(share * (size - 1)) for share in (0.25, 0.5, 0.75)]]

    def apply(vectors: TaskVectors, tensor: Tensor, quartiles: Array) -> TaskVectors:
        q1, median, q3 = jax.lax.bitcast_convert_type(quartiles[0], jnp.float32)
        keep = importance(vectors, tensor)[0] >= median + 1.5 * (q3 - q1)
        delta = vectors.deltas[0]
        return vectors.with_deltas([exact.select(keep, delta, exact.zeros_like(delta))])

    return shareable(apply, Largest(importance, ranks), reach="row")
