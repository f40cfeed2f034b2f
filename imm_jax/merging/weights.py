"""Merge weights: scalars, prefix trees, functions of the path, and values per layer."""

import fnmatch
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from imm_jax.errors import InputError, nearest
from imm_jax.merging.layout import Leaf
from imm_jax.merging.numbered import number_layers
from imm_jax.merging.ramps import Ramp, gradient, stack_numbers
from imm_jax.tree import Place, find_layers


@dataclass(frozen=True)
class LayerWeights:
    """A weight for each layer, with exceptions by path.

    A value is a number, a :class:`Ramp`, a list (a gradient, see :func:`gradient`), or an array
    ``[L]`` with one weight for each layer.

    Attributes:
      layers: the value for parameters inside layers.
      default: the weight of parameters outside layers (embedding, last norm, head). Without it,
        ``layers`` serves them too if it is a single number.
      patterns: ordered ``{pattern: value}`` that come before both; the first that matches decides.
        A pattern is a path with ``*`` and ``?`` (``"layers/attn/*"``, ``"*/bias"``), with or
        without a layer's number (``"layers/3/*"``); a whole part of the tree may be named by its
        path (``"layers/mlp"``). One that matches nothing is an InputError, and so are values over
        depth for a tree in which no layers are found.
      named: what the layers are called where it is not ``"layers"``: ``"block"`` for ``"block_0"``,
        ``"transformer.h"`` for ``"transformer.h.0"``, their path or the end of it. Without it, and
        where nothing is called ``"layers"``, they are what is numbered from 0 without a gap and
        alike in each; an InputError names those that could be meant. Weights alone know of them:
        paths and random numbers are those of a tree without layers.

    It is a pytree, so its numbers may be traced, batched and differentiated.
    """

    layers: Any
    default: Any = None
    patterns: Any = ()
    named: str | None = None

    def __post_init__(self):
        pairs = self.patterns.items() if isinstance(self.patterns, Mapping) else self.patterns
        object.__setattr__(self, "patterns", tuple((str(p), v) for p, v in pairs))


jax.tree_util.register_pytree_node(
    LayerWeights,
    lambda w: (
        (w.layers, w.default, [v for _, v in w.patterns]),
        ([p for p, _ in w.patterns], w.named),
    ),
    lambda aux, parts: LayerWeights(*parts[:2], list(zip(aux[0], parts[2], strict=True)), aux[1]),
)

Weight = float | Array | Callable[[str], Any] | LayerWeights | Any


def resolve(weight: Weight, tree: Any, leaves: Sequence[Leaf], models: int | None) -> list[tuple]:
    """Finds the weight of every leaf for every model.

    Args:
      weight: see :func:`imm_jax.merging.merge_params`.
      tree: the base tree with each leaf replaced by its index in ``leaves``, or by None where
        the leaf is not merged.
      leaves: the leaves that are merged.
      models: how many tuned models were given as a sequence, or None for a single tree.

    Returns:
      For each leaf a tuple with one number or array for each model: 0-d, or broadcasting to the
      leaf with as many axes. Numbers that are not traced stay float64.
    """
    columns = [_resolve_one(w, tree, leaves) for w in _for_each_model(weight, models)]
    return list(zip(*columns, strict=True))


def _for_each_model(weight: Weight, models: int | None) -> list:
    if models is None:
        return [weight]
    listed = type(weight) in (list, tuple)
    if listed and len(weight) != models:
        raise InputError(f"weight has {len(weight)} values for {models} tuned models")
    if listed or (_is_array(weight) and weight.shape == (models,)):
        return [weight[i] for i in range(models)]
    return [weight] * models


def _resolve_one(weight: Weight, tree: Any, leaves: Sequence[Leaf]) -> list:
    if isinstance(weight, LayerWeights):
        return _layer_weights(weight, leaves)
    if callable(weight):
        return [_for_leaf(weight(leaf.leaf_path), leaf) for leaf in leaves]
    if _is_number(weight) or _is_array(weight) or isinstance(weight, Ramp):
        return [_for_leaf(weight, leaf) for leaf in leaves]
    if jax.tree_util.all_leaves([weight]):
        raise InputError(f"weight is {weight!r:.60}; expected a number, array, function or tree")
    found: list[Any] = [None] * len(leaves)

    def spread(part: Weight, subtree: Any) -> None:
        if isinstance(subtree, int) and _is_array(part) and part.shape == leaves[subtree].shape:
            found[subtree] = part  # one weight for each element
            return
        indices = jax.tree.leaves(subtree)
        values = _resolve_one(part, subtree, [leaves[i] for i in indices]) if indices else []
        for index, value in zip(indices, values, strict=True):
            found[index] = value

    try:
        jax.tree.map(spread, weight, tree, is_leaf=_is_weight)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise InputError(f"weight is not a prefix of the parameter tree: {reason:.200}") from error
    return found


def _is_weight(x: Any) -> bool:
    return _is_number(x) or _is_array(x) or isinstance(x, (LayerWeights, Ramp)) or callable(x)


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _is_array(x: Any) -> bool:
    return isinstance(x, (np.ndarray, jax.Array))


def _for_leaf(value: Any, leaf: Leaf) -> Any:
    """One leaf's weight, from a number, Ramp, ``[L]`` values, or an array that broadcasts to it."""
    if isinstance(value, Ramp):
        _require_layer(leaf, "a ramp over depth")
        value = value.at_layers(leaf.num_layers)
    if _is_number(value):
        return np.float64(value)
    if not _is_array(value):
        raise InputError(
            f"the weight of {leaf.leaf_path} is {value!r:.60}; expected a number or an array"
        )
    if value.ndim == 0:
        return value
    if leaf.num_layers is not None and value.shape == (leaf.num_layers,):
        return value[leaf.layer] if not leaf.stacked else value.reshape(-1, *[1] * (leaf.ndim - 1))
    if value.ndim > leaf.ndim or any(
        n not in (1, m) for n, m in zip(reversed(value.shape), reversed(leaf.shape))
    ):
        raise InputError(
            f"a weight of shape {value.shape} does not fit {leaf.leaf_path} of shape {leaf.shape}"
        )
    return value.reshape((1,) * (leaf.ndim - value.ndim) + value.shape)


def _require_layer(leaf: Leaf, what: str) -> None:
    if leaf.num_layers is None:
        raise InputError(
            f"{what} has no value for {leaf.leaf_path}, which is outside the layers; "
            "use LayerWeights(..., default=...)"
        )


def _layer_weights(spec: LayerWeights, leaves: Sequence[Leaf]) -> list:
    matched: set[str] = set()
    alone = _is_number(spec.layers) or (_is_array(spec.layers) and spec.layers.ndim == 0)
    everywhere = alone and spec.default is None
    if spec.named or not (everywhere or any(leaf.num_layers is not None for leaf in leaves)):
        leaves = number_layers(leaves, spec.named)
    if leaves and not alone and all(leaf.num_layers is None for leaf in leaves):
        raise InputError(
            "LayerWeights: no layers for its values over depth, the first parameter is "
            f"{leaves[0].leaf_path}; expected 'layers' in paths, stacked or numbered, or named= or "
            "stacked="
        )

    def value_for(leaf: Leaf, layer: int | None) -> Any:
        for pattern, value in spec.patterns:
            if _matches(pattern, leaf, layer):
                matched.add(pattern)
                return value
        if leaf.num_layers is None:
            if spec.default is None and not alone:
                _require_layer(leaf, "a weight per layer")
            return spec.layers if spec.default is None else spec.default
        return spec.layers

    def over_depth(value: Any, leaf: Leaf) -> Any:
        """The value of each layer, ``[L]``; a single number as it is."""
        if isinstance(value, (list, tuple)):
            value = gradient(value)
        if isinstance(value, Ramp):
            _require_layer(leaf, "a ramp over depth")
            return value.at_layers(leaf.num_layers)
        if _is_array(value) and value.ndim and value.shape != (leaf.num_layers,):
            raise InputError(
                f"weights per layer have shape {value.shape}; {leaf.leaf_path} "
                + (f"has {leaf.num_layers} layers" if leaf.num_layers else "is outside the layers")
            )
        return value

    def for_leaf(leaf: Leaf) -> Any:
        if not leaf.stacked:
            return _for_leaf(over_depth(value_for(leaf, leaf.layer), leaf), leaf)
        chosen = [value_for(leaf, i) for i in range(leaf.num_layers)]
        if not chosen:
            return np.float64(0)
        if all(c is chosen[0] for c in chosen):
            return _for_leaf(over_depth(chosen[0], leaf), leaf)
        each = [over_depth(value, leaf) for value in chosen]
        return _for_leaf(
            stack_numbers([v[i] if np.ndim(v) else v for i, v in enumerate(each)]), leaf
        )

    weights = [for_leaf(leaf) for leaf in leaves]
    paths = [leaf.path for leaf in leaves]
    for pattern, _ in spec.patterns:
        if pattern not in matched and not any(
            _matches(pattern, leaf, layer) for leaf in leaves for layer in leaf.layers()
        ):
            raise InputError(
                f"weight pattern {pattern!r} matches no parameter{nearest(pattern, paths)}"
            )
    return weights


def _matches(pattern: str, leaf: Leaf, layer: int | None) -> bool:
    names = [leaf.path]
    if layer is not None:
        names += [leaf.leaf_path, _of_layer(leaf.path, layer)]
    return any(
        fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + "/*")
        for name in names
    )


def _of_layer(path: str, layer: int) -> str:
    """The path of a layer of a stack; one that ``stacked=`` names is numbered after its head."""
    place = find_layers(path)
    if place is None:
        head, _, tail = path.partition("/")
        place = Place(head, tail, None)
    return place.of_layer(layer)


def plus(weight: Weight, amount: float) -> Weight:
    """The weight, in whatever form, with ``amount`` added to its numbers."""
    if callable(weight):
        return lambda path: plus(weight(path), amount)
    more = lambda w: w + amount if _is_number(w) or _is_array(w) else w
    return jax.tree.map(lambda w: plus(w, amount) if callable(w) else more(w), weight)


def weight_sum_is_zero(weights: Sequence[Any]) -> bool:
    """Whether weights that are known numbers sum to 0 (False where one is an array)."""
    return all(_is_number(w) for w in weights) and math.isclose(sum(weights), 0, abs_tol=1e-8)
