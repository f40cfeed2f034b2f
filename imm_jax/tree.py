"""The ground floor: parameter paths, layer stacks, functions of one tensor over a tree."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any

STACK = "layers"  # leaves below this key carry a leading layer axis [L, ...]


def path_str(path: tuple) -> str:
    """Turns a JAX key path into ``"layers/attn/q/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_with_path(fn: Callable, tree: PyTree, *rest: PyTree) -> PyTree:
    """``jax.tree.map`` whose function gets the path string first: ``fn(path, leaf, *others)``."""
    call = lambda path, *leaves: fn(path_str(path), *leaves)
    return jax.tree_util.tree_map_with_path(call, tree, *rest)


class Place(NamedTuple):
    """Where a path goes through layers.

    Attributes:
      head: the path up to them, ``"params/layers"``.
      tail: what comes below a layer, ``"attn/q/kernel"``; may be empty.
      number: the layer's, where layers are listed; None where they are stacked.
    """

    head: str
    tail: str
    number: int | None

    @property
    def path(self) -> str:
        """The path without a layer's number."""
        return f"{self.head}/{self.tail}" if self.tail else self.head

    def of_layer(self, number: int) -> str:
        """The path of one of the layers, as a list of them has it."""
        return f"{self.head}/{number}/{self.tail}" if self.tail else f"{self.head}/{number}"


def find_layers(path: str) -> Place | None:
    """Finds ``layers`` in a path, at any depth (``"params/layers/..."``); None outside of them.

    Layers are listed where a number follows (``"layers/3/..."``, ``"layers_3/..."``), else stacked.
    """
    found = _LAYERS.match(path)
    if found is None:
        return None
    head, number, below, stacked = found.groups()
    return Place(head, stacked or below or "", None if number is None else int(number))


# The first name that is it, then a layer's number and what is below it, or what is stacked.
_LAYERS = re.compile(rf"((?:.*?/)?{STACK})(?:[/_](\d+)(?:/(.*))?|/(.+))$")


def is_stacked(path: str) -> bool:
    """Whether the leaf at ``path`` is a stack of per-layer tensors ``[L, ...]``.

    A leaf under an unstacked list of layers (``"layers/3/..."``) is not.
    """
    place = find_layers(path)
    return place is not None and place.number is None


def per_tensor(fn: Callable, *trees: PyTree) -> PyTree:
    """Maps a function of one tensor over trees, over each layer apart where layers are stacked.

    ``unstack_layers(per_tensor(f, t)) == per_tensor(f, unstack_layers(t))`` for every ``f`` that
    returns one tensor.
    """

    def apply(path: str, *leaves):
        return jax.vmap(fn)(*leaves) if is_stacked(path) else fn(*leaves)

    return map_with_path(apply, *trees)


def num_layers(params: PyTree) -> int:
    """The number of layers in a stacked or unstacked canonical tree."""
    layers = params[STACK]
    return len(layers) if isinstance(layers, list) else jax.tree.leaves(layers)[0].shape[0]


def unstack_layers(params: PyTree) -> PyTree:
    """Returns ``params`` with ``"layers"`` as a list of ``L`` trees, the layout decoding takes."""
    layers = params[STACK]
    if isinstance(layers, list):
        return params
    count = num_layers(params)
    return {**params, STACK: [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count)]}


def stack_layers(params: PyTree) -> PyTree:
    """Inverse of :func:`unstack_layers`."""
    layers = params[STACK]
    if not isinstance(layers, list):
        return params
    return {**params, STACK: jax.tree.map(lambda *xs: jnp.stack(xs), *layers)}


def num_params(tree: PyTree) -> int:
    """The number of array elements in ``tree``."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """The bytes that ``tree``'s arrays take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
