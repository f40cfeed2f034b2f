"""Transforms that set deltas to 0: at random, by magnitude, or by both."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging import exact
from imm_jax.merging.exact import Double, to_double
from imm_jax.merging.kth import order_bits
from imm_jax.merging.protocol import (
    TaskVectors,
    Tensor,
    Transform,
    elementwise,
    fan_in_axis,
    for_models,
    require_share,
    transform,
)
from imm_jax.merging.random_bits import bernoulli
from imm_jax.merging.statistics import Largest, Ranks


@transform
def drop_and_rescale(rate: float | tuple[float, ...] = 0.2, rescale: bool = True) -> Transform:
    """DARE: drops each element with probability ``rate``, divides the others by ``1 - rate``.

    ``delta' = m * delta / (1 - rate)`` with ``m ~ Bernoulli(1 - rate)``, so ``E[delta'] = delta``
    (Yu et al. 2024, "Language Models are Super Mario", arXiv 2311.03099, section 3.2). What is
    dropped depends only on the key, the parameter's path, the layer, and the numbers of the model
    and of the transform in its chain.

    Args:
      rate: the share to drop, in [0, 1); a tuple gives each model its own.
      rescale: False keeps the others as they are.
    """
    require_share(rate, "rate", below_one=True)

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        rates = for_models(rate, len(vectors.deltas), "rate")
        deltas = []
        for i, (delta, p) in enumerate(zip(vectors.deltas, rates, strict=True)):
            key = jax.random.fold_in(tensor.key, i)
            keep = bernoulli(key, 1 - p, tensor.base.shape, tensor.start)
            delta = (
                exact.multiply(delta, to_double(1 / (1 - p), delta.hi.dtype)) if rescale else delta
            )
            deltas.append(exact.select(keep, delta, exact.zeros_like(delta)))
        return vectors.with_deltas(deltas)

    return elementwise(apply, random=True)


def magnitudes(vectors: TaskVectors, tensor: Tensor) -> list[Array]:
    """The size of every model's deltas."""
    return [jnp.abs(d.hi) for d in vectors.deltas]


def kept_count(density: float, size: int) -> int:
    """How many of ``size`` elements a density keeps: the floor, at least 1 (mergekit's rule)."""
    return max(1, int(density * size)) if density > 0 and size else 0


@transform
def trim(
    density: float | tuple[float, ...] = 0.2, scope: Literal["tensor", "model"] = "tensor"
) -> Transform:
    """Keeps the ``density`` share of the deltas with the largest magnitude, sets the rest to 0.

    TIES step 1 (Yadav et al. 2023, arXiv 2306.01708). ``floor(density * size)`` elements are kept,
    at least one, and with the last of them all that tie with it. The k-th magnitude is exact.

    Args:
      density: the share to keep, in [0, 1]; a tuple gives each model its own.
      scope: ``"tensor"``: that share of each tensor (mergekit); ``"model"``: of each whole model
        (the paper's reference code).
    """
    require_share(density, "density")
    _require_scope(scope)

    def ranks(size: int, models: int) -> list[list[int]]:
        return [[kept_count(d, size)] for d in for_models(density, models, "density")]

    def apply(vectors: TaskVectors, tensor: Tensor, thresholds: Array) -> TaskVectors:
        return vectors.with_deltas(
            exact.select(order_bits(jnp.abs(d.hi)) >= limit[0], d, exact.zeros_like(d))
            for d, limit in zip(vectors.deltas, thresholds, strict=True)
        )

    return elementwise(apply, Largest(magnitudes, ranks), scope)


def _require_scope(scope: str) -> None:
    if scope not in ("tensor", "model"):
        raise InputError(f"scope is {scope!r}; expected 'tensor' or 'model'")


@transform
def drop_outliers(
    density: float | tuple[float, ...] = 0.9, gamma: float | tuple[float, ...] = 0.01
) -> Transform:
    """Breadcrumbs: drops the largest ``gamma`` share of each tensor's deltas, and the smallest.

    Of ``n`` elements the ``floor(gamma n)`` largest are dropped, then so many of the smallest that
    ``floor(density n)`` remain; where density leaves no room, fewer large ones are dropped
    (Davari and Belilovsky 2023, "Model Breadcrumbs", arXiv 2312.06795; parameters as in mergekit).
    Elements that tie with the largest or the smallest one kept are kept.
    """
    require_share(density, "density")
    require_share(gamma, "gamma")

    def ranks(size: int, models: int) -> list[list[int]]:
        """The ranks, from 1 at the largest, between which elements are kept."""
        between = []
        for d, g in zip(
            for_models(density, models, "density"), for_models(gamma, models, "gamma"), strict=True
        ):
            kept = size if d >= 1 else int(d * size)
            above = min(int(g * size), size - kept)
            between.append([above + 1, above + kept] if kept else [0, 0])
        return between

    def apply(vectors: TaskVectors, tensor: Tensor, limits: Array) -> TaskVectors:
        deltas = []
        for delta, (highest, lowest) in zip(vectors.deltas, limits, strict=True):
            bits = order_bits(jnp.abs(delta.hi))
            keep = (bits <= highest) & (bits >= lowest)
            deltas.append(exact.select(keep, delta, exact.zeros_like(delta)))
        return vectors.with_deltas(deltas)

    return elementwise(apply, Largest(magnitudes, ranks))


@transform
def drop_by_magnitude(
    density: float | tuple[float, ...] = 0.5,
    epsilon: float | tuple[float, ...] = 0.15,
    rescale: bool = True,
    axis: int | Callable[[str], int] = fan_in_axis,
) -> Transform:
    """DELLA's MagPrune: drops small deltas more often than large ones, and rescales without bias.

    In each row the element of magnitude rank ``r`` (0 the smallest, ``n - 1`` the largest) is kept
    with probability ``q = density - epsilon + 2 epsilon r / (n - 1)`` and divided by ``q`` (Deep et
    al. 2024, arXiv 2406.11617, section 3.1; ``epsilon`` is mergekit's, half the paper's window). A
    row of one element is kept with probability ``density``.

    Args:
      density: the share kept on average, in [0, 1]; 1 keeps all, 0 nothing.
      epsilon: how far the probability moves to either side; ``density +- epsilon`` must lie in
        (0, 1).
      rescale: False keeps the others as they are.
      axis: along which elements are ranked, or a function of the path. Default: the axis a layer
        sums over, so that a row is the inputs of one output.
    """
    require_share(density, "density")
    count = max(len(v) if isinstance(v, tuple) else 1 for v in (density, epsilon))
    pairs = zip(for_models(density, count, "density"), for_models(epsilon, count, "epsilon"))
    for d, e in pairs:
        if 0 < d < 1 and not (d - e > 0 and d + e < 1):
            raise InputError(
                f"epsilon is {e} with density {d}; density +- epsilon must be in (0, 1)"
            )

    def one(delta: Double, share: Array, tensor: Tensor, model: int, d: float, e: float) -> Double:
        if d >= 1:
            return delta
        if d <= 0:
            return exact.zeros_like(delta)
        chance = (d - e) + share * (2 * e)
        key = jax.random.fold_in(tensor.key, model)
        keep = bernoulli(key, chance, share.shape, tensor.start)
        value = Double(delta.hi / chance, jnp.zeros_like(delta.hi)) if rescale else delta
        return exact.select(keep, value, exact.zeros_like(delta))

    def apply(vectors: TaskVectors, tensor: Tensor, shares: Sequence[Array]) -> TaskVectors:
        models = len(vectors.deltas)
        densities = for_models(density, models, "density")
        epsilons = for_models(epsilon, models, "epsilon")
        return vectors.with_deltas(
            one(delta, share, tensor, i, densities[i], epsilons[i])
            for i, (delta, share) in enumerate(zip(vectors.deltas, shares, strict=True))
        )

    along = lambda tensor: axis(tensor.path) if callable(axis) else axis
    of_rows = axis is fan_in_axis
    reach = "row" if of_rows else "tensor"
    measure = Ranks(magnitudes, along)
    return Transform(apply, measure, reach=reach, random=True, same_everywhere=of_rows)
