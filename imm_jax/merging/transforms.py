"""Transforms of task vectors: scale, normalise, elect, clip, cast, mask. See also sparsify.py."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging import exact
from imm_jax.merging.exact import to_double
from imm_jax.merging.layout import flatten, require_distinct
from imm_jax.merging.protocol import (
    Chain,
    TaskVectors,
    Tensor,
    Transform,
    as_double,
    chain,
    elementwise,
    map_deltas,
    require_flags,
    transform,
)
from imm_jax.merging.statistics import Totals


@transform
def scale(factor: float) -> Transform:
    """Multiplies every delta by ``factor`` (mergekit's ``lambda``)."""

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        if isinstance(factor, (int, float)) and factor == 1:
            return vectors
        return vectors.with_deltas(
            exact.multiply(d, to_double(factor, d.hi.dtype)) for d in vectors.deltas
        )

    return elementwise(apply)


@transform
def normalize_weights() -> Transform:
    """Divides the models' weights by their sum, unless they cancel to 1e-8 of their size."""

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        total = functools.reduce(exact.add, vectors.weights)
        one = to_double(1.0, tensor.base.dtype)
        size = sum(jnp.abs(w.hi) for w in vectors.weights)
        total = exact.select(jnp.abs(total.hi) <= 1e-8 * size, one, total)
        return vectors.with_weights(exact.divide(w, total) for w in vectors.weights)

    return elementwise(apply)


@transform
def elect_sign(
    method: Literal["sum", "count"] = "sum",
    normalize: bool = True,
    zeros: Literal["positive", "majority"] = "positive",
) -> Transform:
    """TIES steps 2 and 3: elects a sign for each element, then merges the models that agree.

    The sign is that of ``sum_i w_i delta_i`` (``"sum"``) or of ``sum_i sign(w_i delta_i)``
    (``"count"``); models of the other sign, and zeros, are left out (Yadav et al. 2023, arXiv
    2306.01708, section 3).

    Args:
      method: how the sign is elected.
      normalize: divide by the sum of the weights of the models that agree, which gives their
        mean (as in the paper); False gives their weighted sum.
      zeros: the sign where the election ties: ``"positive"`` (mergekit), or that of the majority
        of all elections in the whole model (the paper's reference code).
    """
    for name, value, known in (
        ("method", method, ("sum", "count")),
        ("zeros", zeros, ("positive", "majority")),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r}; expected one of {', '.join(known)}")

    require_flags(normalize=normalize)

    def votes(vectors: TaskVectors) -> Array:
        parts = [d.hi * w.hi for d, w in zip(vectors.deltas, vectors.weights, strict=True)]
        return sum(parts if method == "sum" else [jnp.sign(p) for p in parts])

    def sides(vectors: TaskVectors, tensor: Tensor) -> tuple[Array, Array]:
        return votes(vectors) > 0, votes(vectors) < 0

    def majority_of(counts: tuple[Array, Array], size: int) -> Array:
        return jnp.where(counts[0] >= counts[1], 1.0, -1.0)

    def apply(vectors: TaskVectors, tensor: Tensor, majority: Array | None) -> TaskVectors:
        if len(vectors.deltas) == 1:  # elected by itself, it is its own mean
            (weight,) = vectors.weights
            whole = jnp.where(weight.hi == 0, 0, jnp.ones_like(weight.hi))
            return vectors.with_weights([whole]) if normalize else vectors
        won = jnp.sign(votes(vectors))
        won = jnp.where(won == 0, 1.0 if majority is None else majority, won)
        agree = [
            jnp.sign(d.hi * w.hi) == won
            for d, w in zip(vectors.deltas, vectors.weights, strict=True)
        ]
        return mean_of_agreeing(vectors, agree, normalize)

    if zeros == "majority":
        return elementwise(apply, Totals(sides, majority_of), "model")
    return elementwise(apply)


def mean_of_agreeing(
    vectors: TaskVectors, agree: Sequence[Array], normalize: bool = True
) -> TaskVectors:
    """The weighted mean of each element over the models that ``agree``; 0 where none does.

    With normalize=False the weighted sum, and so where their weights cancel, as in mergekit.
    """
    zero = exact.zeros_like(vectors.deltas[0])
    chosen, share = zero, 0.0
    for a, d, w in zip(agree, vectors.deltas, vectors.weights, strict=True):
        chosen = exact.add(chosen, exact.select(a, exact.multiply(d, w), zero))
        share = share + jnp.where(a, w.hi, 0)
    if normalize:
        # A division whose result is chosen: else XLA keeps intermediates of the leaf's size.
        mean = chosen.hi / jnp.where(share == 0, 1, share)
        chosen = as_double(jnp.where(share == 0, chosen.hi, mean))
    return TaskVectors((chosen,), (to_double(1.0, zero.hi.dtype),))


@transform
def clip(limit: float) -> Transform:
    """Limits every delta to ``[-limit, limit]``."""
    if isinstance(limit, (int, float)) and not limit >= 0:
        raise InputError(f"limit is {limit}; expected a number >= 0")

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        return vectors.with_deltas(
            exact.select(
                jnp.abs(d.hi) > limit, to_double(jnp.clip(d.hi, -limit, limit), d.hi.dtype), d
            )
            for d in vectors.deltas
        )

    return elementwise(apply)


@transform
def cast(dtype: Any) -> Transform:
    """Rounds every delta to ``dtype`` and back, as storing it in that dtype would."""
    try:
        info = jnp.finfo(dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"dtype is {dtype!r:.60}; expected one of floating numbers") from error
    rounded = lambda d, tensor: jax.lax.reduce_precision(d, info.nexp, info.nmant)
    return map_deltas(rounded, same_everywhere=True, reach="element")


def masked(inner: Transform | Chain, mask: Any) -> Chain:
    """Applies ``inner`` where ``mask`` says so and leaves other deltas as they are.

    Args:
      inner: a transform or chain. What it measures over the whole model leaves masked parameters
        out.
      mask: as in optax, a tree of booleans that is a prefix of the parameters, with None where
        they have None; or a function of the path without a layer's number
        (``"layers/attn/q/kernel"``) that returns a bool.
    """
    if callable(mask):
        return tuple(_masked_one(item, mask) for item in chain(inner))
    paths, values, _ = flatten(mask)
    given = [(path, value) for path, value in zip(paths, values, strict=True) if value is not None]
    for path, value in given:
        if not isinstance(value, (bool, np.bool_)):
            raise InputError(f"mask {path or '(whole)'} is {value!r:.40}; expected True or False")
    require_distinct([path for path, _ in given], below=True)
    table = tuple((path, bool(value)) for path, value in given)
    return tuple(_masked_one(item, table) for item in chain(inner))


@functools.lru_cache(maxsize=512)
def _masked_one(inner: Transform, mask: Callable[[str], bool] | tuple) -> Transform:
    def allowed(tensor: Tensor) -> bool:
        if callable(mask):
            return bool(mask(tensor.path))
        for prefix, value in mask:
            if prefix in ("", tensor.leaf_path) or tensor.leaf_path.startswith(prefix + "/"):
                return value
        raise InputError(f"mask has no value for {tensor.leaf_path}")

    def apply(vectors: TaskVectors, tensor: Tensor, statistic: Any) -> TaskVectors:
        return inner.apply(vectors, tensor, statistic) if allowed(tensor) else vectors

    return inner._replace(
        apply=apply,
        includes=allowed,
        same_everywhere=False,
        by_leaf_path=not callable(mask),
        name=f"masked({inner.name})",
    )
