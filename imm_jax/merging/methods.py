"""Merge methods as chains of transforms, with mergekit's names and parameters.

All but :func:`fisher` are used as ``merge_params(base, models, weight=..., transform=ties(0.2))``,
or by name through :func:`imm_jax.merging.merge_models`.
"""

import functools
from typing import Any

from imm_jax.merging import exact, sparsify, transforms
from imm_jax.merging.exact import to_double
from imm_jax.merging.protocol import (
    Chain,
    TaskVectors,
    Tensor,
    Transform,
    chain,
    elementwise,
    require_flags,
    require_share,
    transform,
)
from imm_jax.merging.rescaling import rescaled

Shares = sparsify.Share | tuple[sparsify.Share, ...]


@transform
def weighted_models() -> Transform:
    """``sum_i w_i x_i`` of the models themselves, whatever the weights sum to."""

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        minus_one = to_double(-1.0, tensor.base.dtype)
        surplus = functools.reduce(exact.add, vectors.weights, minus_one)
        base = to_double(tensor.base, tensor.base.dtype)
        return TaskVectors((*vectors.deltas, base), (*vectors.weights, surplus))

    return elementwise(apply)


def linear(normalize: bool = True) -> Chain:
    """Weighted mean of models: ``sum_i w_i x_i / sum_i w_i`` (Wortsman et al. 2022, 2203.05482).

    With normalize=False not divided by the sum of the weights.
    """
    require_flags(normalize=normalize)
    return chain(transforms.normalize_weights() if normalize else weighted_models())


def task_arithmetic(normalize: bool = False, lambda_: float = 1.0) -> Chain:
    """``base + lambda sum_i w_i delta_i`` (Ilharco et al. 2023, arXiv 2212.04089)."""
    require_flags(normalize=normalize)
    return chain(transforms.normalize_weights() if normalize else None, transforms.scale(lambda_))


def _drop(drop: Transform | Chain, rescale: bool) -> Transform | Chain:
    return rescaled(drop) if rescale else drop


def ties(
    density: Shares = 0.2,
    normalize: bool = True,
    lambda_: float = 1.0,
    scope: str = "tensor",
    rescale: bool = False,
) -> Chain:
    """TIES: trim, elect signs, merge what agrees (Yadav et al. 2023, arXiv 2306.01708).

    ``scope="tensor"`` trims each tensor, as mergekit does; ``"model"`` trims over the whole model
    and gives elections that tie the majority's sign, as the paper's reference code does. With
    ``rescale`` what is left of a model is made as large in sum as all of it was (mergekit's).
    """
    zeros = "majority" if scope == "model" else "positive"
    return chain(
        _drop(sparsify.trim(density, scope), rescale),
        transforms.elect_sign(normalize=normalize, zeros=zeros),
        transforms.scale(lambda_),
    )


def dare_linear(
    density: Shares = 0.8, rescale: bool = True, normalize: bool = False, lambda_: float = 1.0
) -> Chain:
    """DARE, then task arithmetic (Yu et al. 2024, arXiv 2311.03099). Drops ``1 - density``.

    ``density`` is in [0, 1]; 0 drops everything, as in all methods that have one and in recipes.
    """
    return chain(
        sparsify.drop_and_rescale(_dropped(density), rescale),
        task_arithmetic(normalize, lambda_),
    )


def dare_ties(
    density: Shares = 0.8, rescale: bool = True, normalize: bool = False, lambda_: float = 1.0
) -> Chain:
    """DARE, then sign election (Yu et al. 2024, arXiv 2311.03099). Drops ``1 - density``.

    ``density`` is in [0, 1]; 0 drops everything, as in all methods that have one and in recipes.
    """
    return chain(
        sparsify.drop_and_rescale(_dropped(density), rescale),
        transforms.elect_sign(normalize=normalize),
        transforms.scale(lambda_),
    )


def _dropped(density: Shares) -> Shares:
    if isinstance(density, (tuple, list)):
        return tuple(_dropped(d) for d in density)
    require_share(density, "density")
    return 1 - density


def della(
    density: Shares = 0.5,
    epsilon: Shares = 0.15,
    rescale: bool = True,
    normalize: bool = True,
    lambda_: float = 1.0,
) -> Chain:
    """DELLA: drop by magnitude rank, then sign election (Deep et al. 2024, arXiv 2406.11617)."""
    return chain(
        sparsify.drop_by_magnitude(density, epsilon, rescale),
        transforms.elect_sign(normalize=normalize),
        transforms.scale(lambda_),
    )


def della_linear(
    density: Shares = 0.5,
    epsilon: Shares = 0.15,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Chain:
    """DELLA's drop by magnitude rank, then task arithmetic (arXiv 2406.11617)."""
    drop = sparsify.drop_by_magnitude(density, epsilon, rescale)
    return chain(drop, task_arithmetic(normalize, lambda_))


def breadcrumbs(
    density: Shares = 0.9,
    gamma: Shares = 0.01,
    normalize: bool = False,
    lambda_: float = 1.0,
    rescale: bool = False,
) -> Chain:
    """Drop the largest and smallest deltas, then task arithmetic (arXiv 2312.06795)."""
    drop = _drop(sparsify.drop_outliers(density, gamma), rescale)
    return chain(drop, task_arithmetic(normalize, lambda_))


def breadcrumbs_ties(
    density: Shares = 0.9,
    gamma: Shares = 0.01,
    normalize: bool = False,
    lambda_: float = 1.0,
    rescale: bool = False,
) -> Chain:
    """Drop the largest and smallest deltas, then sign election (arXiv 2312.06795)."""
    return chain(
        _drop(sparsify.drop_outliers(density, gamma), rescale),
        transforms.elect_sign(normalize=normalize),
        transforms.scale(lambda_),
    )


def passthrough() -> Chain:
    """One model times the weight, which mergekit calls ``scale``."""
    return chain(weighted_models())


def wise_ft() -> Chain:
    """WiSE-FT: ``(1 - alpha) base + alpha tuned`` (Wortsman et al. 2022, arXiv 2109.01903)."""
    return chain()


def expo() -> Chain:
    """ExPO: past the tuned model, ``tuned + alpha (tuned - base)`` (Zheng et al. 2024, 2404.16792).

    The weight is ``1 + alpha``.
    """
    return chain()


def nearswap(t: float = 0.001) -> Chain:
    """NearSwap: ``base + min(1, t/|delta|) delta``, which moves no element further than t."""
    return chain(transforms.clip(t))


@transform
def fisher() -> Transform:
    """Fisher-weighted mean ``sum_i F_i x_i / sum_i F_i``, elementwise (arXiv 2111.09832, eq. 4).

    Matena and Raffel 2022. The weights are the Fisher trees; where all of them are 0, the mean.
    """

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        total = functools.reduce(exact.add, vectors.weights)
        share = to_double(1 / len(vectors.weights), tensor.base.dtype)
        empty = total.hi == 0
        safe = exact.select(empty, to_double(1.0, tensor.base.dtype), total)
        weights = [exact.divide(w, safe) for w in vectors.weights]
        return vectors.with_weights(exact.select(empty, share, w) for w in weights)

    return elementwise(apply)
