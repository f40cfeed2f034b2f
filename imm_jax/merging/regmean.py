"""RegMean: linear layers merged so that their outputs stay those of each model on its own inputs.

Three steps: run each model over some of its inputs and collect the Gram matrices of what its
kernels read, then solve a least-squares problem for each kernel::

    grams = [collect_grams(sums, params, batches) for params, batches in ...]
    merged = regmean([math, code], grams)

``sums(params, batch)`` comes from the activations of any model through :func:`gram_sums`, or from a
Flax Linen model through :func:`imm_jax.models.grams.kernel_grams`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import Precision

from imm_jax import tree
from imm_jax.errors import InputError, nearest
from imm_jax.merging import exact, layout, methods
from imm_jax.merging.merge import merge_params
from imm_jax.merging.protocol import require_share

PyTree = Any


def gram(x: Array, mask: Array | None = None) -> Array:
    """``X^T X`` in float32 of activations ``[..., in]`` whose rows are the inputs of a kernel.

    Rows where ``mask`` (bool ``[...]``) is False, such as padding, are left out.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(exact.compute_dtype(x.dtype))
    if mask is not None:
        rows = jnp.where(mask.reshape(-1, 1), rows, 0)
    return jnp.matmul(rows.T, rows, precision=Precision.HIGHEST)


def gram_sums(inputs: PyTree, mask: Array | None = None) -> tuple[PyTree, Array]:
    """The Gram matrices of a batch, and over how many rows they are summed.

    Args:
      inputs: what each kernel reads, as a tree with activations ``[..., in]`` at the kernels'
        paths (``[L, ..., in]`` where layers are stacked) and None or nothing elsewhere.
      mask: bool ``[...]``, the rows that count; None: all.
    """
    grams = tree.per_tensor(lambda x: gram(x, mask), inputs)
    if mask is not None:
        return grams, jnp.sum(mask, dtype=jnp.float32)
    flat = jax.tree_util.tree_flatten_with_path(inputs)[0]
    if not flat:
        raise InputError("gram_sums got a tree without activations")
    path, x = flat[0]
    stacked = tree.is_stacked(tree.path_str(path))
    return grams, jnp.float32(np.prod(x.shape[stacked:-1]))


def collect_grams(
    sums: Callable[[PyTree, PyTree], tuple[PyTree, Array]], params: PyTree, batches: PyTree
) -> PyTree:
    """The Gram matrix ``X^T X / rows`` of each kernel of one model over batches.

    Divided by the number of rows, as in the authors' code, so that each model counts the same
    however many inputs it was given.

    Args:
      sums: ``sums(params, batch) -> (tree of X^T X, rows)``, see :func:`gram_sums`.
      params: the model.
      batches: a pytree whose arrays have the batches as first axis, ``[N, ...]``.

    Returns:
      A tree with ``[in, in]`` at the kernels' paths (``[L, in, in]`` where layers are stacked).
      One batch's activations are in memory at a time.
    """

    def add(total: PyTree, batch: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, sums(params, batch)), None

    first = jax.tree.map(lambda x: x[0], batches)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, params, first))
    grams, rows = jax.lax.scan(add, zeros, batches)[0]
    return jax.tree.map(lambda g: g / rows, grams)


def regmean(
    models: Sequence[PyTree],
    grams: Sequence[PyTree],
    *,
    alpha: float = 0.9,
    ridge: float = 1e-6,
    stacked: Callable[[str], bool] | None = None,
) -> PyTree:
    """Merges kernels by least squares on the models' own inputs, and averages everything else.

    ``W = (sum_i A_i)^-1 sum_i A_i W_i`` with ``A_i`` the Gram matrix ``X_i^T X_i`` of model i, its
    off-diagonals times ``alpha``: without that the minimiser of ``sum_i |X_i W - X_i W_i|^2`` (Jin
    et al. 2023, "Dataless Knowledge Fusion", arXiv 2212.09849, eq. 2 and section 4).

    Solved for the change from the models' mean M: ``W = M + (A + D)^-1 sum_i A_i (W_i - M)`` with
    ``A = sum_i A_i`` and D the ridge, ``ridge * diag(A)``; by a Cholesky decomposition in float32,
    scaled to a unit diagonal. So rounding and the ridge act on that change only, inputs a thousand
    times the others do no harm, and inputs that no model uses keep the mean.

    Args:
      models: trees of the same structure. Kernels are ``[in, out]``.
      grams: for each model a tree with a Gram matrix ``[in, in]`` (``[L, in, in]`` for a stack of
        layers) at the path of each kernel to solve for, see :func:`collect_grams`. What has none
        (None, or nothing there) is averaged.
      alpha: what off-diagonals are multiplied with, in [0, 1]. 1 is the exact minimiser but may
        have no solution in float32; 0 weighs each input by its mean square.
      ridge: what is added to the diagonal, as a share of it.
      stacked: as in :func:`imm_jax.merging.merge_params`.

    Returns:
      A tree like the first model.

    Raises:
      InputError: structures or shapes differ, a Gram matrix belongs to no kernel or is missing in
        some models, or a system has no solution in float32.
    """
    require_share(alpha, "alpha")
    if not ridge >= 0:
        raise InputError(f"ridge is {ridge}; expected a number >= 0")
    models = list(models)
    if len(grams) != len(models) or not models:
        raise InputError(
            f"regmean got {len(grams)} trees of Gram matrices for {len(models)} models"
        )
    trees, _ = layout.match(models[0], models)
    paths, leaves, treedef = layout.flatten(models[0])
    kernels = {leaf.leaf_path: leaf for leaf in layout.describe(paths, leaves, stacked)}
    found = [_by_path(g, kernels, i) for i, g in enumerate(grams)]
    solved = {
        path: _solve(kernels[path], i, trees, found, alpha, ridge)
        for i, path in enumerate(paths)
        if any(path in f for f in found)
    }
    rest = [treedef.unflatten(_without(solved, paths, leaves)) for leaves in trees]
    merged = merge_params(rest[0], rest, weight=1.0, transform=methods.linear(), stacked=stacked)
    values = zip(paths, layout.flatten(merged)[1], strict=True)
    return treedef.unflatten([solved.get(path, x) for path, x in values])


def _without(solved: dict[str, Array], paths: list[str], leaves: list) -> list:
    return [None if path in solved else x for path, x in zip(paths, leaves, strict=True)]


def _by_path(grams: PyTree, kernels: dict[str, layout.Leaf], number: int) -> dict[str, Array]:
    """The Gram matrices of a model by path, checked against the kernels."""
    paths, values, _ = layout.flatten(grams)
    found = {path: value for path, value in zip(paths, values, strict=True) if value is not None}
    for path, value in found.items():
        if path not in kernels:
            raise InputError(
                f"grams[{number}] has {path!r}, which is no parameter{nearest(path, kernels)}"
            )
        shape, layers = kernels[path].shape, int(kernels[path].stacked)
        wanted = (*shape[:layers], *(shape[layers : layers + 1] * 2))
        if len(shape) != 2 + layers or np.shape(value) != wanted:
            raise InputError(
                f"grams[{number}] {path} has shape {np.shape(value)}; the parameter has {shape}, "
                "expected a kernel [in, out] and its [in, in]"
            )
    return found


def _solve(
    leaf: layout.Leaf, index: int, trees: list, found: list[dict], alpha: float, ridge: float
) -> Array:
    for number, grams in enumerate(found):
        if leaf.leaf_path not in grams:
            raise InputError(f"grams[{number}] has no Gram matrix for {leaf.leaf_path}")
    kernels = tuple(trees[0][index] if t[index] is None else t[index] for t in trees)
    grams = tuple(grams[leaf.leaf_path] for grams in found)
    merged = _solve_leaf(leaf.stacked, alpha, ridge)(kernels, grams)
    if not isinstance(merged, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(merged))):
        raise InputError(
            f"regmean finds no solution for {leaf.leaf_path} in float32 with alpha={alpha}, "
            f"ridge={ridge}; expected finite kernels and Gram matrices, alpha < 1 or a larger ridge"
        )
    return merged


@functools.lru_cache(maxsize=64)
def _solve_leaf(stacked: bool, alpha: float, ridge: float) -> Callable:
    one = lambda xs: _merge_kernel(*xs, alpha, ridge)
    return jax.jit(lambda *xs: jax.lax.map(one, xs) if stacked else one(xs))


def _merge_kernel(
    kernels: tuple[Array, ...], grams: tuple[Array, ...], alpha: float, ridge: float
) -> Array:
    """One kernel ``[in, out]``; see :func:`regmean`."""
    dtype = exact.compute_dtype(kernels[0].dtype)
    wide = [k.astype(dtype) for k in kernels]
    diagonal = jnp.eye(wide[0].shape[0], dtype=bool)
    reduced = [jnp.where(diagonal, g, alpha * g).astype(dtype) for g in grams]
    mean = sum(wide) / len(wide)
    right = sum(
        jnp.matmul(a, w - mean, precision=Precision.HIGHEST)
        for a, w in zip(reduced, wide, strict=True)
    )
    whole = sum(reduced)
    size = jnp.diagonal(whole)
    unit = jnp.where(size > 0, 1 / jnp.sqrt(jnp.where(size > 0, size, 1)), 0)[:, None]
    # An input that is always 0 has a row of the identity, so it keeps the mean.
    scaled = jnp.where(diagonal, 1 + ridge, whole * unit * unit.T)
    factor = jax.scipy.linalg.cho_factor(scaled, lower=True)
    change = unit * jax.scipy.linalg.cho_solve(factor, unit * right)
    return (mean + change).astype(kernels[0].dtype)
