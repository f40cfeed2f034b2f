"""Methods on the sphere: they look at lengths of whole tensors and angles between them.

All of these return a combination of the tensors whose coefficients depend on inner products alone.
So they measure the inner products of the base and the task vectors (their Gram matrix) in one
pass, do their geometry on vectors of coefficients, and add up in a second pass. A tensor ``x`` is
written as coefficients ``[1 + N]`` of (base, delta_1, ..., delta_N); ``<x, y> = x G y``.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging.protocol import (
    TaskVectors,
    Tensor,
    Transform,
    as_double,
    elementwise,
    fan_in_axis,
    require_flags,
    shareable,
    transform,
)
from imm_jax.merging.statistics import Totals

TINY = 1e-8


def _products(vectors: TaskVectors, tensor: Tensor) -> list[Array]:
    """The elements of the Gram matrix's upper triangle, row by row, before they are summed."""
    basis = [tensor.base, *[d.hi for d in vectors.deltas]]
    return [a * b for i, a in enumerate(basis) for b in basis[i:]]


def _gram(sums: Sequence[Array], size: int | None = None) -> Array:
    """The symmetric matrix ``[..., 1 + N, 1 + N]`` of its upper triangle's elements."""
    count = int((2 * len(sums)) ** 0.5)
    place, index = {}, 0
    for i in range(count):
        for j in range(i, count):
            place[i, j] = place[j, i] = index
            index += 1
    rows = [jnp.stack([sums[place[i, j]] for j in range(count)], -1) for i in range(count)]
    return jnp.stack(rows, -2)


GRAM = Totals(_products, _gram)


def _row_gram(vectors: TaskVectors, tensor: Tensor, axis: int) -> Array:
    """The Gram matrix of each row along ``axis``, ``[..., 1, ..., 1 + N, 1 + N]``."""
    return _gram([jnp.sum(x, axis, keepdims=True) for x in _products(vectors, tensor)])


def _dot(gram: Array, u: Array, v: Array) -> Array:
    return jnp.sum(u[..., :, None] * gram * v[..., None, :], (-2, -1))


def _norm(gram: Array, u: Array) -> Array:
    """The length of ``u``; its gradient at 0 is 0."""
    square = _dot(gram, u, u)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _unit(gram: Array, u: Array) -> Array:
    length = _norm(gram, u)[..., None]
    return u / jnp.where(length > 0, length, 1)


def _models(gram: Array, about_base: bool) -> list[Array]:
    """The coefficients of each tuned model's tensor, or of its task vector if ``about_base``."""
    count = gram.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(count, dtype=gram.dtype), gram.shape)
    return [eye[..., i, :] + (0 if about_base else eye[..., 0, :]) for i in range(1, count)]


def _combine(
    vectors: TaskVectors, tensor: Tensor, coefficients: Array, excess: Array
) -> TaskVectors:
    """``excess * base + sum_i coefficients[i] * delta_i`` as task vectors."""
    coefficients, excess = jax.lax.optimization_barrier((coefficients, excess))
    shares = [coefficients[..., i] for i in range(1, coefficients.shape[-1])]
    dtype = tensor.base.dtype
    weights = [as_double(jnp.asarray(c, dtype)) for c in (*shares, excess)]
    return TaskVectors((*vectors.deltas, as_double(tensor.base)), tuple(weights))


def _require_models(vectors: TaskVectors, count: int, name: str) -> None:
    if len(vectors.deltas) != count:
        raise InputError(f"{name} merges {count} tuned model(s), got {len(vectors.deltas)}")


def _arc(gram: Array, a: Array, b: Array, t: Array, straight: Any) -> tuple[Array, Array]:
    """The point at ``t`` on the arc from ``a`` to ``b`` (on a line where ``straight``).

    Beside its coefficients, by how much those of ``a`` and ``b`` sum to more than 1, free of
    cancellation.
    """
    lengths = _norm(gram, a) * _norm(gram, b)
    cosine = jnp.clip(_dot(gram, a, b) / jnp.where(lengths > 0, lengths, 1), -1, 1)
    line = straight(cosine)
    angle = jnp.arccos(jnp.where(line, 0, cosine))
    sine = jnp.sin(angle)
    excess = 2 * jnp.sin(t * angle / 2) * jnp.sin((1 - t) * angle / 2) / jnp.cos(angle / 2)
    first = jnp.where(line, 1 - t, jnp.sin((1 - t) * angle) / sine)
    second = jnp.where(line, t, jnp.sin(t * angle) / sine)
    return first[..., None] * a + second[..., None] * b, jnp.where(line, 0, excess)


@transform
def slerp(dot_threshold: float = 0.9995) -> Transform:
    """Spherical interpolation from the base to one tuned model; the weight is mergekit's ``t``.

    ``x = sin((1-t) A)/sin A * base + sin(t A)/sin A * tuned``, A the angle between both tensors as
    vectors (Shoemake 1985). Where ``|cos A| > dot_threshold`` it interpolates linearly.
    """

    def apply(vectors: TaskVectors, tensor: Tensor, gram: Array) -> TaskVectors:
        _require_models(vectors, 1, "slerp")
        base, (tuned,) = jnp.array([1, 0], gram.dtype), _models(gram, False)
        straight = lambda cosine: jnp.abs(cosine) > dot_threshold
        point, excess = _arc(gram, base, tuned, vectors.weights[0].hi, straight)
        return _combine(vectors, tensor, point, excess)

    return elementwise(apply, GRAM)


@transform
def nuslerp(
    nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False, about_base: bool = True
) -> Transform:
    """Spherical interpolation between two tuned models, with ``t = w_1 / (w_0 + w_1)``.

    As :func:`slerp` between ``x_0`` and ``x_1`` (``t = 0.5`` where the weights sum to 0), linear
    where both are parallel (mergekit's NuSLERP).

    Args:
      nuslerp_flatten: treat a tensor as one vector; False: each row of inputs apart.
      nuslerp_row_wise: with nuslerp_flatten=False, take the other axis.
      about_base: interpolate the task vectors and add them to the base; False: the tensors.
    """
    require_flags(nuslerp_flatten=nuslerp_flatten, nuslerp_row_wise=nuslerp_row_wise)

    def apply(vectors: TaskVectors, tensor: Tensor, gram: Array | None) -> TaskVectors:
        _require_models(vectors, 2, "nuslerp")
        w0, w1 = (w.hi for w in vectors.weights)
        total = w0 + w1
        balanced = jnp.abs(total) < 1e-6
        t = jnp.where(balanced, 0.5, w1 / jnp.where(balanced, 1, total))
        if not nuslerp_flatten:
            gram = _row_gram(vectors, tensor, _axis(tensor, nuslerp_row_wise))
        # float32 cannot tell angles below about 1e-4 from 0
        parallel = lambda cosine: 1 - jnp.square(cosine) <= 1e-7
        point, excess = _arc(gram, *_models(gram, about_base), t, parallel)
        return _combine(vectors, tensor, point, jnp.zeros_like(excess) if about_base else excess)

    return _by_tensor_or_row(apply, nuslerp_flatten, nuslerp_row_wise)


def _by_tensor_or_row(apply: Any, flatten: bool, other_axis: bool = False) -> Transform:
    if flatten:
        return elementwise(apply, GRAM)
    return shareable(apply, reach="tensor" if other_axis else "row")


def _axis(tensor: Tensor, other: bool = False) -> int:
    if tensor.base.ndim < 2:
        return -1
    return -3 - fan_in_axis(tensor.path) if other else fan_in_axis(tensor.path)


@transform
def model_stock(filter_wise: bool = False) -> Transform:
    """Model Stock: goes as far towards the models' mean as the angle between them justifies.

    ``x = t * mean(x_i) + (1 - t) * base`` with ``t = N c / (1 + (N - 1) c)``, c the mean cosine of
    all pairs of task vectors (Jang et al. 2024, arXiv 2403.19522, eq. 7). The formula supposes
    c >= 0: negative cosines count as 0, which keeps t in [0, 1]. Weights are not used.

    Args:
      filter_wise: an angle for each row of inputs instead of each tensor.
    """
    require_flags(filter_wise=filter_wise)

    def apply(vectors: TaskVectors, tensor: Tensor, gram: Array | None) -> TaskVectors:
        count = len(vectors.deltas)
        if count < 2:
            raise InputError(f"model_stock needs at least 2 tuned models, got {count}")
        if filter_wise:
            gram = _row_gram(vectors, tensor, _axis(tensor))
        units = [_unit(gram, x) for x in _models(gram, True)]
        cosines = [_dot(gram, u, v) for i, u in enumerate(units) for v in units[i + 1 :]]
        cosine = jnp.clip(sum(jnp.clip(c, -1, 1) for c in cosines) / len(cosines), 0, 1)
        t = count * cosine / (1 + (count - 1) * cosine)
        point = jnp.stack([t / count] * (count + 1), -1)
        return _combine(vectors, tensor, point, jnp.zeros_like(t))

    return _by_tensor_or_row(apply, not filter_wise)


def _shares(vectors: TaskVectors, normalize: bool = True) -> list[Array]:
    weights = [w.hi for w in vectors.weights]
    total = sum(weights)
    total = jnp.where(jnp.abs(total) < TINY, 1, total) if normalize else 1
    return [w / total for w in weights]


def _weighted(shares: Sequence[Array], xs: Sequence[Array]) -> Array:
    return sum(w * x for w, x in zip(shares, xs, strict=True))


def _combined(shares: Sequence[Array], points: Sequence[Array]) -> Array:
    """The weighted sum of coefficients ``[..., 1 + N]``, for each element of the weights."""
    return _weighted([w[..., None] for w in shares], points)


def _excess(point: Array, about_base: bool) -> Array:
    return point[..., 0] if about_base else point[..., 0] - 1


@transform
def multislerp(
    normalize_weights: bool = True, eps: float = TINY, about_base: bool = True
) -> Transform:
    """Interpolates several models on the sphere, in the tangent space at their weighted mean.

    ``u_i = x_i/|x_i|``, ``m = unit(sum w_i u_i)``, ``v = sum w_i (u_i - <u_i, m> m)``; the result
    is ``(cos|v| m + sin|v| v/|v|) * sum w_i |x_i|`` (mergekit's multislerp). Where the mean is 0
    (below ``eps``) it is ``sum w_i x_i``.

    Args:
      normalize_weights: divide the weights by their sum.
      eps: lengths below it count as 0.
      about_base: interpolate the task vectors and add them to the base; False: the tensors.
    """
    require_flags(normalize_weights=normalize_weights)

    def apply(vectors: TaskVectors, tensor: Tensor, gram: Array) -> TaskVectors:
        xs, shares = _models(gram, about_base), _shares(vectors, normalize_weights)
        units = [_unit(gram, x) for x in xs]
        mean = _combined(shares, units)
        flat = _norm(gram, mean)[..., None] < eps
        mean = _unit(gram, mean)
        sides = [u - _dot(gram, u, mean)[..., None] * mean for u in units]
        tangent = _combined(shares, sides)
        angle = _norm(gram, tangent)[..., None]
        ratio = jnp.where(angle > 0, jnp.sin(angle) / jnp.where(angle > 0, angle, 1), 1)
        size = _weighted(shares, [_norm(gram, x) for x in xs])[..., None]
        arc = (mean * jnp.cos(angle) + tangent * ratio) * size
        point = jnp.where(flat, _combined(shares, xs), arc)
        return _combine(vectors, tensor, point, _excess(point, about_base))

    return elementwise(apply, GRAM)


@transform
def karcher(max_iter: int = 10, tol: float = 1e-5, about_base: bool = False) -> Transform:
    """The Karcher mean on the sphere: the direction with the least summed squared angle.

    Iterates ``m <- exp_m(sum_i a_i log_m(u_i))`` from the weighted mean of the directions
    ``u_i = x_i/|x_i|`` until the step is below ``tol``; the norm is ``sum_i a_i |x_i|`` (Karcher
    1977; mergekit's karcher, where ``a_i = 1/N``). Tensors with a norm below ``tol`` have no
    direction and count for the norm only.
    """
    if not isinstance(max_iter, numbers.Integral) or max_iter < 0:
        raise InputError(f"max_iter is {max_iter!r:.60}; expected a whole number >= 0")

    def apply(vectors: TaskVectors, tensor: Tensor, gram: Array) -> TaskVectors:
        xs, shares = _models(gram, about_base), _shares(vectors)
        norms = [_norm(gram, x) for x in xs]
        units = [_unit(gram, x) for x in xs]
        valid = [jnp.where(n > tol, w, 0) for n, w in zip(norms, shares, strict=True)]
        whole = sum(valid)
        valid = [w / jnp.where(whole > 0, whole, 1) for w in valid]
        start = _combined(valid, units)
        fallback = units[0]
        for n, u in list(zip(norms, units, strict=True))[::-1]:
            fallback = jnp.where(n > tol, u, fallback)
        start = jnp.where(_norm(gram, start)[..., None] < tol, fallback, _unit(gram, start))

        def step(_, state):
            mean, done = state
            tangent = jnp.zeros_like(mean)
            for w, u in zip(valid, units, strict=True):
                cosine = jnp.clip(_dot(gram, mean, u), -1, 1)
                side = u - cosine[..., None] * mean
                # atan2 keeps the accuracy that arccos loses at small angles
                angle = jnp.arctan2(_norm(gram, side), cosine)
                share = jnp.where(angle < tol, 0, w * angle)
                tangent = tangent + share[..., None] * _unit(gram, side)
            length = _norm(gram, tangent)[..., None]
            done = done | (length < tol)
            moved = _unit(gram, jnp.cos(length) * mean + jnp.sin(length) * _unit(gram, tangent))
            return jnp.where(done, mean, moved), done

        still = jnp.zeros((*start.shape[:-1], 1), bool)
        mean, _ = jax.lax.fori_loop(0, max_iter, step, (start, still))
        size = _weighted(shares, norms)
        point = jnp.where(whole > 0, size, 0)[..., None] * mean
        return _combine(vectors, tensor, point, _excess(point, about_base))

    return elementwise(apply, GRAM)
