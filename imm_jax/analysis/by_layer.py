"""One number for each layer and each kind of tensor in it, from the canonical parameter tree."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from imm_jax.tree import STACK, is_stacked, path_str


class ByLayer(NamedTuple):
    """Figures of a model's parts.

    Attributes:
      modules: for each module of a layer (``"attn/q"``, ``"mlp/down"``; all norms are ``"norms"``)
        its figure in every layer, ``[L]``, float64. A bias counts with its kernel.
      outside: the figures of ``embed``, ``final_norm`` and ``lm_head`` (untied only).
    """

    modules: dict[str, Float[np.ndarray, "L"]]
    outside: dict[str, float]

    @property
    def layers(self) -> Float[np.ndarray, "L"]:
        """The sum over a layer's modules, ``[L]``."""
        return np.sum(list(self.modules.values()), axis=0)

    def map(self, fn: Callable) -> "ByLayer":
        """``fn`` of every figure."""
        modules = {name: fn(row) for name, row in self.modules.items()}
        return ByLayer(modules, {name: float(fn(x)) for name, x in self.outside.items()})


def sum_by_layer(
    fn: Callable[..., Array], *trees: PyTree[Float[Array, "..."]]
) -> dict[str, Float[Array, "..."]]:
    """The sum of an elementwise function of one tensor of each tree, by path; may be traced.

    Args:
      fn: elementwise, of float32 arrays.
      *trees: canonical trees of one structure, layers stacked.

    Returns:
      For each leaf's path its float32 sum: ``[L]`` where it is a stack of layers, else ``[]``.
    """
    leaves, *others = (jax.tree_util.tree_leaves_with_path(tree) for tree in trees)
    sums = {}
    for (path, leaf), *rest in zip(leaves, *others):
        values = fn(*(x.astype(jnp.float32) for x in (leaf, *(other for _, other in rest))))
        name = path_str(path)
        sums[name] = values.sum(axis=tuple(range(int(is_stacked(name)), values.ndim)))
    return sums


def by_module(sums: dict[str, Array]) -> ByLayer:
    """Adds up what :func:`sum_by_layer` gives: biases to kernels, norms to one another."""
    modules: dict[str, np.ndarray] = {}
    outside: dict[str, float] = {}
    for path, value in jax.device_get(sums).items():
        value, inside = np.asarray(value, np.float64), is_stacked(path)
        name = module_of(path)
        if inside:
            modules[name] = modules.get(name, 0.0) + value
        else:
            outside[name] = outside.get(name, 0.0) + float(value)
    return ByLayer(modules, outside)


def module_of(path: str) -> str:
    """``"layers/attn/q/kernel"`` is of ``"attn/q"``, ``"embed/embedding"`` of ``"embed"``."""
    if not path.startswith(f"{STACK}/"):
        return path.split("/")[0]
    return "norms" if re.search(r"norm/scale$", path) else path.split("/", 1)[1].rpartition("/")[0]
