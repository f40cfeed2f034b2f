"""Methods that work on the singular values and vectors of matrices of task vectors.

A matrix is a tensor of two axes (a layer of a stack is one tensor), so kernels ``[in, out]`` and
``[out, in]`` give the same result, and embeddings are matrices like others. To average those::

    chain(masked(tsv(), lambda path: not path.startswith("embed")), normalize_weights())

A singular value below ``eps sqrt(max(shape))`` of the largest is rounding noise: its vectors are
arbitrary, so they are left out. A singular value decomposition wants the whole tensor, in float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from imm_jax.merging import exact
from imm_jax.merging.exact import to_double
from imm_jax.merging.protocol import (
    Chain,
    TaskVectors,
    Tensor,
    Transform,
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
    """
    return chain(_components_apart(), scale(lambda_))


def iso_c(lambda_: float = 1.0) -> Chain:
    """Iso-C: the sum of the task vectors, with all singular values replaced by their mean.

    For a matrix ``sum_i w_i delta_i = U S V^T`` the result is ``base + lambda mean(S) U V^T``
    (Marczak et al. 2025, "No Task Left Behind", arXiv 2502.04959, Iso-C). Other tensors are
    ``base + lambda mean(w_i delta_i)``, as in the authors' code. The mean is over the singular
    values that are not rounding noise, which are all of them where the sum has full rank; where it
    has not (low-rank adapters), the authors' code scales arbitrary directions up as well.
    """
    return chain(_isotropic(), scale(lambda_))


@transform
def _components_apart() -> Transform:
    def merge(deltas: list[Array]) -> Array:
        keep = min(deltas[0].shape) // len(deltas)
        us, ss, vts = zip(*[_svd(d) for d in deltas])
        left = _polar(jnp.concatenate([u[:, :keep] for u in us], axis=1))
        right = _polar(jnp.concatenate([vt[:keep] for vt in vts], axis=0))
        return _product(left * jnp.concatenate([s[:keep] for s in ss]), right)

    return _for_matrices(merge, lambda shape, models: min(shape) >= models)


@transform
def _isotropic() -> Transform:
    def merge(deltas: list[Array]) -> Array:
        u, s, vt = _svd(sum(deltas))
        rank = jnp.sum(s > 0)
        return jnp.sum(s) / jnp.maximum(rank, 1) * _product(u, vt)

    return _for_matrices(merge, lambda shape, models: min(shape) > 0)


def _for_matrices(
    merge: Callable[[list[Array]], Array], fits: Callable[[tuple[int, ...], int], bool]
) -> Transform:
    """Merges the weighted deltas of matrices that fit, and averages those of other tensors."""

    def apply(vectors: TaskVectors, tensor: Tensor, _: Any) -> TaskVectors:
        shape, models = tensor.base.shape, len(vectors.deltas)
        if len(shape) != 2 or not fits(shape, models):
            share = exact.divide(to_double(1.0, tensor.base.dtype), to_double(float(models)))
            return vectors.with_weights(exact.multiply(w, share) for w in vectors.weights)
        weighted = [
            exact.multiply(d, w).hi for d, w in zip(vectors.deltas, vectors.weights, strict=True)
        ]
        one = to_double(1.0, tensor.base.dtype)
        return TaskVectors((to_double(merge(weighted)),), (one,))

    return Transform(apply, same_everywhere=True)


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
