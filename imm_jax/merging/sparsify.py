"""Transforms that set deltas to 0: at random, by magnitude, or by both."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
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
    known,
    require_flags,
    require_share,
    transform,
)
from imm_jax.merging.random_bits import bernoulli
from imm_jax.merging.statistics import Largest, Ranks

Share = float | Array


@transform
def drop_and_rescale(rate: Share | tuple[Share, ...] = 0.2, rescale: bool = True) -> Transform:
    """DARE: drops each element with probability ``rate``, divides the others by ``1 - rate``.

    ``delta' = m * delta / (1 - rate)`` with ``m ~ Bernoulli(1 - rate)``, so ``E[delta'] = delta``
    (Yu et al. 2024, "Language Models are Super Mario", arXiv 2311.03099, section 3.2). What is
    dropped depends only on the key, the parameter's path, the layer, and the numbers of the model
    and of the transform in its chain.

    Args:
      rate: the share to drop, in [0, 1]; a tuple gives each model its own. It may be traced. 1
        drops everything, so that the base is left.
      rescale: False keeps the others as they are.
    """
    require_share(rate, "rate")
    require_flags(rescale=rescale)

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        rates = for_models(rate, len(vectors.deltas), "rate")
        deltas = []
        for i, (delta, p) in enumerate(zip(vectors.deltas, rates, strict=True)):
            key = jax.random.fold_in(tensor.key, i)
            keep = bernoulli(key, 1 - p, tensor.base.shape, tensor.start)
            if rescale:
                delta = exact.multiply(delta, to_double(_inverse(1 - p), delta.hi.dtype))
            deltas.append(exact.select(keep, delta, exact.zeros_like(delta)))
        return vectors.with_deltas(deltas)

    return elementwise(apply, random=True)


def _inverse(kept: Share) -> Any:
    """``1 / kept``; of 0, where no element is left to be multiplied, 1: inf spoils gradients."""
    if isinstance(kept, Array):
        return 1 / jnp.where(kept > 0, kept, 1)
    return 1 / kept if kept > 0 else 1.0


def magnitudes(vectors: TaskVectors, tensor: Tensor) -> list[Array]:
    """The size of every model's deltas."""
    return [jnp.abs(d.hi) for d in vectors.deltas]


def share_of(size: int, share: Share) -> Any:
    """``floor(share * size)``: an int, or uint32 where the share is an array, which may be traced.

    An array in float32 stands for every number that rounds to it. So a product which is a whole
    number up to that rounding counts as it: 0.9 of 1200 are 1080, also in float32.
    """
    if isinstance(share, numbers.Real):
        return int(share * size)
    if size >= 2**32:
        raise InputError(f"a share of {size} elements must be a number, as an array it is uint32")
    wide = exact.compute_dtype(share.dtype)
    product = exact.multiply(to_double(jnp.asarray(share), wide), to_double(float(size), wide))
    whole = jnp.floor(product.hi)
    rest = (product.hi - whole) + product.lo
    if wide == jnp.float32:
        rest = rest + jnp.minimum(product.hi * 2.0**-24, 0.5)
    count = whole.astype(jnp.uint32) + jnp.floor(rest).astype(jnp.int32).astype(jnp.uint32)
    return jnp.minimum(count, np.uint32(size))


def kept_count(density: Share, size: int) -> Any:
    """How many of ``size`` elements a density keeps: the floor, at least 1 (mergekit's rule)."""
    count = share_of(size, density) if size else 0
    if isinstance(count, int):
        return max(1, count) if size and density > 0 else 0
    return jnp.where(density > 0, jnp.maximum(count, 1), 0)


@transform
def trim(
    density: Share | tuple[Share, ...] = 0.2, scope: Literal["tensor", "model"] = "tensor"
) -> Transform:
    """Keeps the ``density`` share of the deltas with the largest magnitude, sets the rest to 0.

    TIES step 1 (Yadav et al. 2023, arXiv 2306.01708). ``floor(density * size)`` elements are kept,
    at least one, and with the last of them all that tie with it. The k-th magnitude is exact.

    Args:
      density: the share to keep, in [0, 1]; a tuple gives each model its own. It may be traced
        (see :func:`share_of`), so that ``vmap`` sweeps it.
      scope: ``"tensor"``: that share of each tensor (mergekit); ``"model"``: of each whole model
        (the paper's reference code).
    """
    require_share(density, "density")
    _require_scope(scope)

    def ranks(size: int, models: int) -> list[list[Any]]:
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
    density: Share | tuple[Share, ...] = 0.9, gamma: Share | tuple[Share, ...] = 0.01
) -> Transform:
    """Breadcrumbs: drops the largest ``gamma`` share of each tensor's deltas, and the smallest.

    Of ``n`` elements the ``floor(gamma n)`` largest are dropped, then so many of the smallest that
    ``floor(density n)`` remain; where density leaves no room, fewer large ones are dropped
    (Davari and Belilovsky 2023, "Model Breadcrumbs", arXiv 2312.06795; parameters as in mergekit).
    Elements that tie with the largest or the smallest one kept are kept. Both shares may be traced.
    """
    require_share(density, "density")
    require_share(gamma, "gamma")

    def ranks(size: int, models: int) -> list[list[Any]]:
        """The ranks, from 1 at the largest, between which elements are kept."""
        pairs = zip(
            for_models(density, models, "density"), for_models(gamma, models, "gamma"), strict=True
        )
        return [_between(share_of(size, d), share_of(size, g), size) for d, g in pairs]

    def apply(vectors: TaskVectors, tensor: Tensor, limits: Array) -> TaskVectors:
        deltas = []
        for delta, (highest, lowest) in zip(vectors.deltas, limits, strict=True):
            bits = order_bits(jnp.abs(delta.hi))
            keep = (bits <= highest) & (bits >= lowest)
            deltas.append(exact.select(keep, delta, exact.zeros_like(delta)))
        return vectors.with_deltas(deltas)

    return elementwise(apply, Largest(magnitudes, ranks))


def _between(kept: Any, above: Any, size: int) -> list[Any]:
    """The ranks of the largest and the smallest of ``kept`` elements below ``above`` others."""
    if isinstance(kept, int) and isinstance(above, int):
        above = min(above, size - kept)
        return [above + 1, above + kept] if kept else [0, 0]
    kept, above = jnp.uint32(kept), jnp.minimum(jnp.uint32(above), np.uint32(size) - kept)
    return [jnp.where(kept > 0, rank, 0) for rank in (above + 1, above + kept)]


@transform
def drop_by_magnitude(
    density: Share | tuple[Share, ...] = 0.5,
    epsilon: Share | tuple[Share, ...] = 0.15,
    rescale: bool = True,
    axis: int | Callable[[str], int] = fan_in_axis,
) -> Transform:
    """DELLA's MagPrune: drops small deltas more often than large ones, and rescales without bias.

    In each row the element of magnitude rank ``r`` (0 the smallest, ``n - 1`` the largest) is kept
    with probability ``q = density - epsilon + 2 epsilon r / (n - 1)`` and divided by ``q`` (Deep et
    al. 2024, arXiv 2406.11617, section 3.1; ``epsilon`` is mergekit's, half the paper's window). A
    row of one element is kept with probability ``density``.

    Args:
      density: the share kept on average, in [0, 1]; 1 keeps all, 0 nothing. It may be traced.
      epsilon: how far the probability moves to either side; ``density +- epsilon`` must lie in
        (0, 1).
      rescale: False keeps the others as they are.
      axis: along which elements are ranked, or a function of the path. Default: the axis a layer
        sums over, so that a row is the inputs of one output.
    """
    require_share(density, "density")
    require_flags(rescale=rescale)
    count = max(len(v) if isinstance(v, tuple) else 1 for v in (density, epsilon))
    pairs = zip(for_models(density, count, "density"), for_models(epsilon, count, "epsilon"))
    for d, e in ((known(d), known(e)) for d, e in pairs):
        if None not in (d, e) and 0 < d < 1 and not (d - e > 0 and d + e < 1):
            raise InputError(
                f"epsilon is {e} with density {d}; density +- epsilon must be in (0, 1)"
            )

    def one(delta: Double, share: Array, tensor: Tensor, model: int, d: Share, e: Share) -> Double:
        none = exact.zeros_like(delta)
        if isinstance(d, numbers.Real) and not 0 < d < 1:
            return delta if d >= 1 else none
        chance = _least_chance(d, e) + share * (2 * e)
        key = jax.random.fold_in(tensor.key, model)
        keep = bernoulli(key, chance, share.shape, tensor.start)
        value = Double(delta.hi / chance, jnp.zeros_like(delta.hi)) if rescale else delta
        value = exact.select(keep, value, none)
        if isinstance(d, numbers.Real):
            return value
        return exact.select(d >= 1, delta, exact.select(d <= 0, none, value))

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


def _least_chance(density: Share, epsilon: Share) -> Any:
    """``density - epsilon``, also of an array rounded once."""
    if isinstance(density, numbers.Real) and isinstance(epsilon, numbers.Real):
        return density - epsilon
    return exact.subtract(*(to_double(x) for x in (density, epsilon))).hi
