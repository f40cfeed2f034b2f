"""Methods that work on the singular values and vectors of matrices of task vectors.

A matrix is a tensor of two axes (a layer of a stack is one tensor), so kernels ``[in, out]`` and
``[out, in]`` give the same result, and embeddings are matrices like others. To average those::

    chain(masked(tsv(), lambda path: not path.startswith("embed")), normalize_weights())

A singular value below ``eps sqrt(max(shape))`` of the largest is rounding noise: its vectors are
arbitrary, so they are left out. A singular value decomposition wants the whole tensor, in float32:
beside the models a merge holds about three times the largest matrix for TSV-M, twice for Iso-C.

JAX's derivative of a singular value decomposition divides by differences of singular values and by
singular values: 0 where a matrix lacks rank. Both methods have their own here, finite everywhere.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from imm_jax.errors import InputError
from imm_jax.merging import exact
from imm_jax.merging.exact import Double, to_double, with_gradient_of
from imm_jax.merging.protocol import (
    Chain,
    TaskVectors,
    Tensor,
    Transform,
    as_double,
    chain,
    transform,
)
from imm_jax.merging.transforms import scale


def tsv(lambda_: float = 1.0) -> Chain:
    """TSV-M: the leading singular components of all models, made orthogonal to one another.

    Of each task vector's matrix ``w_i delta_i = U_i S_i V_i^T`` the first ``k = floor(min(shape) /
    N)`` components are kept; beside one another they are ``U``, ``S`` and ``V``, and the result is
    ``base + lambda polar(U) S polar(V)^T``, where ``polar(A)`` is the orthogonal matrix nearest to
    A (Procrustes), ``P Q^T`` of ``A = P D Q^T`` (Gargiulo et al. 2025, "Task Singular Vectors",
    arXiv 2412.00081, TSV-Merge). Other tensors, and matrices too small for a component of each
    model, are ``base + lambda mean(w_i delta_i)``, as in the authors' code.

    Directions that several models share are merged, not doubled: N equal models give the first
    ``k`` components of their task vector once.

    The result for a matrix is linear in weights other than 0 that are one number a model, and has
    that derivative. A model of weight 0 is left out, with derivative 0: the others no longer make
    room for it, so the result jumps there, and weights that are fitted should stay above 0.

    Raises:
      InputError: where a matrix is differentiated with respect to anything else, that is weights
        that differ within it, or the models.
    """
    return chain(_components_apart(), scale(lambda_))


def iso_c(lambda_: float = 1.0) -> Chain:
    """Iso-C: the sum of the task vectors, with all singular values replaced by their mean.

    For a matrix ``sum_i w_i delta_i = U S V^T`` the result is ``base + lambda mean(S) U V^T``
    (Marczak et al. 2025, "No Task Left Behind", arXiv 2502.04959, Iso-C). Other tensors are
    ``base + lambda mean(w_i delta_i)``, as in the authors' code. The mean is over the singular
    values that are not rounding noise, which are all of them where the sum has full rank; where it
    has not (low-rank adapters), the authors' code scales arbitrary directions up as well.

    Differentiable in weights and models. Where a change would raise the rank of the sum the result
    jumps, and the derivative is that of the directions which the sum has.
    """
    return chain(_isotropic(), scale(lambda_))


@transform
def _components_apart() -> Transform:
    def merge(deltas: list[Double], weights: list[Double]) -> Array:
        keep = min(deltas[0].hi.shape) // len(deltas)
        parts = [_leading(keep, *pair) for pair in zip(deltas, weights, strict=True)]
        us, ss, vts = zip(*parts)
        left, right = _polar(jnp.concatenate(us, axis=1)), _polar(jnp.concatenate(vts, axis=0))
        return _product(left * jnp.concatenate(ss), right)

    return _for_matrices(merge, lambda shape, models: min(shape) >= models)


@transform
def _isotropic() -> Transform:
    def merge(deltas: list[Double], weights: list[Double]) -> Array:
        return _equalised(sum(map(_weighted, deltas, weights)))

    return _for_matrices(merge, lambda shape, models: min(shape) > 0)


def _for_matrices(
    merge: Callable[[list[Double], list[Double]], Array],
    fits: Callable[[tuple[int, ...], int], bool],
) -> Transform:
    """Merges the deltas and weights of matrices that fit, and averages those of other tensors."""

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        shape, models = tensor.base.shape, len(vectors.deltas)
        if len(shape) != 2 or not fits(shape, models):
            share = exact.divide(to_double(1.0, tensor.base.dtype), to_double(float(models)))
            return vectors.with_weights(exact.multiply(w, share) for w in vectors.weights)
        one = to_double(1.0, tensor.base.dtype)
        return TaskVectors((as_double(merge(*map(list, vectors))),), (one,))

    return Transform(apply, same_everywhere=True)


def _weighted(delta: Double, weight: Double) -> Array:
    """Their product rounded to float32, with the derivative of one that is rounded nowhere."""
    smooth = (delta.hi + delta.lo) * (weight.hi + weight.lo)
    return with_gradient_of(smooth, exact.multiply(delta, weight).hi)


def _leading(keep: int, delta: Double, weight: Double) -> tuple[Array, Array, Array]:
    """``u, s, vt`` of a weighted delta's first components, the weight's sign in ``s``.

    One number only scales ``s``: so models that are equal have equal vectors whatever they weigh,
    and the derivative is exact. A matrix that weighs nothing has no vectors.
    """
    number, matrix = to_double(1.0, delta.hi.dtype), delta
    if weight.hi.size == 1:
        number = jax.tree.map(jnp.ravel, weight)
    else:
        matrix = exact.multiply(delta, _fixed(weight))
    u, s, vt = _svd(_fixed(matrix.hi))
    parts = u[:, :keep], s[:keep] * (number.hi + number.lo), vt[:keep]
    return tuple(jnp.where(number.hi != 0, part, 0) for part in parts)


@jax.custom_jvp
def _fixed(x: Any) -> Any:
    """``x``, which is not to be differentiated."""
    return x


@_fixed.defjvp
def _fixed_jvp(*_):
    raise InputError(
        "tsv has a derivative in weights alone, and those one number a model and matrix"
    )


@jax.custom_jvp
def _equalised(x: Array) -> Array:
    """``x`` with all its singular values replaced by their mean."""
    u, s, vt = _svd(x)
    rank = jnp.sum(s > 0)
    return jnp.sum(s) / jnp.maximum(rank, 1) * _product(u, vt)


@_equalised.defjvp
def _equalised_jvp(primals, tangents):
    """The product's rule, for the mean and for the polar factor ``U V^T`` of the same rank.

    With ``C = U^T dX V`` the mean changes by ``mean(diag C)``, and the polar factor by ``U K V^T``,
    ``K_ij = (C_ij - C_ji) / (s_i + s_j)``, and by what of ``dX V S^-1`` and ``S^-1 U^T dX`` is
    beyond the directions of U and V.
    """
    (x,), (d,) = primals, tangents
    u, s, vt = _svd(x)
    mean = jnp.sum(s) / jnp.maximum(jnp.sum(s > 0), 1)
    dv, ud = _product(d, vt.T), _product(u.T, d)
    c = _product(u.T, dv)
    inside = (c - c.T) * _inverse(s[:, None] + s)
    left = _product(u, inside) + (dv - _product(u, c)) * _inverse(s)
    right = _inverse(s)[:, None] * (ud - _product(c, vt))
    slope = jnp.trace(c) / jnp.maximum(jnp.sum(s > 0), 1)
    turned = _product(left, vt) + _product(u, right)
    return _equalised(x), slope * _product(u, vt) + mean * turned


def _inverse(x: Array) -> Array:
    """``1 / x``, and 0 where ``x`` is 0."""
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


def _svd(x: Array) -> tuple[Array, Array, Array]:
    """The thin decomposition ``u, s, vt``, without the components that are rounding noise."""
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    noise = jnp.finfo(x.dtype).eps * max(x.shape) ** 0.5 * s[0]
    real = s > noise
    return jnp.where(real, u, 0), jnp.where(real, s, 0), jnp.where(real[:, None], vt, 0)


def _polar(x: Array) -> Array:
    """The orthogonal matrix nearest to ``x``; on the directions that ``x`` has."""
    u, _, vt = _svd(x)
    return _product(u, vt)


_product = functools.partial(jnp.matmul, precision=Precision.HIGHEST)
