"""``merge_params``: the front door of the merge library."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging import exact, layout
from imm_jax.merging.leaf_weights import leaf_weights
from imm_jax.merging.program import Inputs, run_all
from imm_jax.merging.protocol import Chain, Transform, chain
from imm_jax.merging.random_bits import threefry_key
from imm_jax.merging.weights import Weight

PyTree = Any


def merge_params(
    base: PyTree,
    tuned: PyTree | Sequence[PyTree],
    *,
    weight: Weight = 0.5,
    transform: Transform | Chain | None = None,
    key: Array | None = None,
    stacked: Callable[[str], bool] | None = None,
    donate: Literal["base", "tuned"] | None = None,
) -> PyTree:
    """Adds weighted, transformed task vectors to a base model.

    ``base + sum_i weight_i * transform(tuned_i - base)``, so without a transform a single model is
    interpolated (Wortsman et al. 2022, arXiv 2109.01903, eq. 1) and several are added up by task
    arithmetic (Ilharco et al. 2023, arXiv 2212.04089). Everything is computed to float32 precision
    or better, leaf by leaf, and rounded once to the leaf's dtype: without a transform the result is
    the correctly rounded one, also in bfloat16 (what is within 2^-46 of a tie, relative to the
    summands, counts as a tie: a weight like 0.7 is no nearer to what it stands for; and of numbers
    below about 2^-100 processors flush the rounding errors to 0). Weight 0
    returns the bits of ``base``, weight 1 with a single model and no transform those of ``tuned``.

    Jitted inside: each kind of leaf is compiled once for each transform, and never again for other
    values. Outputs keep the shardings of ``base``. It can be traced: ``jit``, ``vmap`` over
    weights, ``lax.scan``, ``grad`` with respect to weights.

    Args:
      base: any pytree. Its arrays of a real floating dtype are merged; every other leaf (None,
        integers, booleans, keys, Python objects) is returned as it is in ``base``. float64 needs
        ``jax_enable_x64``, also in NumPy.
      tuned: a tree of the same structure, or a list or tuple of such trees. None in place of an
        array means that this model did not change it.
      weight: what each model's task vector is multiplied with:

        - a number or 0-d array: the same everywhere;
        - a tree that is a prefix of ``base``, whose leaves are any of these;
        - a function of the leaf's path (``"layers/attn/q/kernel"``);
        - :class:`LayerWeights`, or a :func:`ramp` or :func:`gradient` over depth;
        - an array: of shape ``[L]`` on leaves in layers, one weight for each layer (this comes
          first); otherwise broadcast to the leaf as NumPy does.

        If ``tuned`` is a sequence of N models, a list or tuple (or an array ``[N]``) of weights
        gives each model its own; anything else is shared by all.
      transform: a transform or chain of them, applied from left to right.
      key: for transforms that draw random numbers, which need it: any ``jax.random.key``. Numbers
        are drawn by threefry2x32; a key of another generator seeds it.
      stacked: which paths are stacks of layers ``[L, ...]``, each layer a tensor of its own to
        methods that look at whole tensors. Default: the leaves under ``"layers"``, at whatever
        depth (``"params/layers/..."``), if they agree in their first axis; layers that are listed
        (``"layers/3/..."``, ``"layers_3/..."``) are found too. For weights of layers that are
        listed under another name see :class:`LayerWeights`.
      donate: reuse the buffers of ``base`` or of ``tuned`` (the first of several) for the result.
        Those arrays cannot be used afterwards; one that stands in two places is kept.

    Returns:
      A tree like ``base``: its structure, dtypes and shardings.

    Raises:
      InputError: structures, shapes or devices differ (named), two leaves have one path, a leaf is
        float64 without x64, a weight does not fit, a pattern matches nothing, or a key is missing
        or none.
    """
    transforms = chain(transform)
    for item in transforms:
        if item.random and key is None:
            raise InputError(f"{item.name} draws random numbers: pass key=jax.random.key(seed)")
    if key is not None and not _is_key(key):
        found = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise InputError(f"key is {found:.60}; expected jax.random.key(seed)")
    if donate not in (None, "base", "tuned"):
        raise InputError(f"donate is {donate!r}; expected None, 'base' or 'tuned'")
    trees, several = layout.match(base, tuned)
    _, base_leaves, treedef = layout.flatten(base)
    leaves, weights = leaf_weights(base, weight, len(trees) if several else None, stacked)
    merged = [i for i, x in enumerate(base_leaves) if layout.is_merged(x)]
    inputs = []
    for leaf, i, row in zip(leaves, merged, weights, strict=True):
        own = base_leaves[i]
        models = tuple(own if tree[i] is None else tree[i] for tree in trees)
        wide = exact.compute_dtype(leaf.dtype)
        inputs.append(Inputs(own, models, tuple(exact.to_double(w, wide) for w in row)))
    drawn = None if key is None else threefry_key(key)
    results = run_all(leaves, transforms, inputs, drawn, donate)
    out = list(base_leaves)
    for i, result in zip(merged, results, strict=True):
        out[i] = result
    return treedef.unflatten(out)


def _is_key(key: Any) -> bool:
    """Whether it is one random key, of the new style or the old."""
    if not isinstance(key, (jax.Array, np.ndarray)):
        return False
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key.ndim == 0
    return key.dtype == np.uint32 and key.ndim == 1
