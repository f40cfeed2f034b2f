"""How far weights have moved."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from imm_jax.analysis.by_layer import ByLayer, by_module, sum_by_layer
from imm_jax.errors import InputError
from imm_jax.tree import path_str


class Change(NamedTuple):
    """Distances of a model from its base.

    Attributes:
      plain: ``||theta_t - theta_0||_2`` of each module of each layer.
      relative: the same as a share of ``||theta_0||_2`` of that module and layer; 0 where both
        are 0.
      layers: ``||theta_t^l - theta_0^l||_2`` of whole layers, ``[L]``.
      layers_relative: the same as a share of ``||theta_0^l||_2``, ``[L]``.
    """

    plain: ByLayer
    relative: ByLayer
    layers: np.ndarray
    layers_relative: np.ndarray


@jax.jit
def _squares(base: PyTree, tuned: PyTree):
    def square(x):
        return jnp.sum(jnp.square(x.astype(jnp.float32)))

    pairs = zip(jax.tree.leaves(base), jax.tree.leaves(tuned))
    moved = sum(square(y.astype(jnp.float32) - x.astype(jnp.float32)) for x, y in pairs)
    return moved, sum(square(x) for x in jax.tree.leaves(base))


def relative_distance(base: PyTree, tuned: PyTree) -> float:
    """``||tuned - base||_2 / ||base||_2`` over all parameters, in float32."""
    moved, size = jax.device_get(_squares(base, tuned))
    return float((moved / size) ** 0.5)


@jax.jit
def _squares_by_layer(base: PyTree, tuned: PyTree):
    moved = sum_by_layer(lambda x, y: jnp.square(y - x), base, tuned)
    return moved, sum_by_layer(jnp.square, base)


def change_by_layer(base: PyTree, tuned: PyTree) -> Change:
    """How far each layer, and each module of it, has moved.

    Args:
      base: theta_0, the canonical tree with stacked layers.
      tuned: theta_t, a tree of the same structure and shapes.

    Raises:
      InputError: the trees differ; names the first array that does.
    """
    check_same(base, tuned)
    moved, size = map(by_module, _squares_by_layer(base, tuned))
    plain, norms = moved.map(np.sqrt), size.map(np.sqrt)
    relative = ByLayer(
        {name: _ratio(row, norms.modules[name]) for name, row in plain.modules.items()},
        {name: float(_ratio(x, norms.outside[name])) for name, x in plain.outside.items()},
    )
    layers = np.sqrt(moved.layers)
    return Change(plain, relative, layers, _ratio(layers, np.sqrt(size.layers)))


def check_same(base: PyTree, tuned: PyTree) -> None:
    """Raises InputError, naming an array, unless both trees have the same arrays and shapes."""
    shapes, others = (
        {path_str(path): np.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (base, tuned)
    )
    for path in (*shapes, *others):
        if shapes.get(path) != others.get(path):
            found = others.get(path, "none")
            raise InputError(
                f"{path}: {found} in the tuned model, expected {shapes.get(path, 'none')} as in "
                "the base"
            )


def _ratio(x, y):
    return np.divide(x, y, out=np.zeros_like(x, np.float64), where=np.asarray(y) > 0)
