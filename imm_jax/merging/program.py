"""The compiled part of a merge: one small program for each kind of leaf.

A program reads a leaf of each model and writes the merged leaf, so nothing larger than a leaf is
ever made beside the models. Leaves of one shape share a program, in lists of layers too. What a
transform measures over the whole model comes from one more program, which only counts.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.merging import bfloat16, exact
from imm_jax.merging.exact import Double
from imm_jax.merging.layout import Leaf
from imm_jax.merging.protocol import Chain, Piece, TaskVectors, Tensor
from imm_jax.merging.random_bits import fold_path


class Inputs(NamedTuple):
    """The arrays of a leaf: the base's, each tuned model's, and each model's weight.

    A weight is 0-d or has as many axes as the leaf.
    """

    base: Array
    tuned: tuple[Array, ...]
    weights: tuple[Double, ...]


class Place(NamedTuple):
    """Where a leaf stands, as numbers: its path's hash, and its layer's number (0 without one)."""

    path_hash: Any
    layer: Any


class Work(NamedTuple):
    """One tensor on its way: its arrays, what it is, and its task vectors when called for."""

    inputs: Inputs
    tensor: Tensor
    vectors: Callable[..., TaskVectors]
    untouched: bool


def run_all(
    leaves: Sequence[Leaf],
    transforms: Chain,
    inputs: Sequence[Inputs],
    key: Array | None,
    donate: str | None = None,
) -> list[Array]:
    """Merges all leaves; see :func:`imm_jax.merging.merge_params`."""
    if not leaves:
        return []
    once = any(item.once for item in transforms)
    places = [
        Place(np.uint32(zlib.crc32(x.path.encode())), np.uint32(x.layer or 0)) for x in leaves
    ]
    shared: list = [None] * len(transforms)
    if any(item.measure is not None and item.scope == "model" for item in transforms):
        compiled = (_compile_measures if once else _measures_once)(tuple(leaves), transforms)
        shared = compiled(list(inputs), key, places)
    results = []
    for leaf, x, place in zip(leaves, inputs, places, strict=True):
        kind = _kind(leaf, transforms)
        program = (_compile_leaf if once else _leaf_once)(
            kind, transforms, _sharding(x.base), donate
        )
        results.append(program(x.base, x.tuned[0], x.tuned[1:], x.weights, key, place, shared))
    return results


def _kind(leaf: Leaf, transforms: Chain) -> Leaf:
    """The leaf without what its program does not depend on."""
    layer = leaf.layer if leaf.layer is None else 0
    path = "" if all(item.same_everywhere for item in transforms) else leaf.path
    where = leaf.leaf_path if any(item.by_leaf_path for item in transforms) else path
    return leaf._replace(path=path, leaf_path=where, layer=layer)


def _sharding(x: Any) -> Any:
    """The sharding to keep, where the array is spread over several devices."""
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return None
    return x.sharding if len(x.sharding.device_set) > 1 else None


def _compile_leaf(leaf: Leaf, transforms: Chain, sharding: Any, donate: str | None) -> Callable:
    def merge(base, first, others, weights, key, place, shared):
        inputs = Inputs(base, (first, *others), weights)
        local = _measure_tensors(leaf, transforms, inputs, key, place, shared)
        return _run(leaf, transforms, inputs, key, place, shared, local, _add_up)

    donated = {None: (), "base": (0,), "tuned": (1,)}[donate]
    options = {} if sharding is None else {"out_shardings": sharding}
    return jax.jit(merge, donate_argnums=donated, **options)


def _compile_measures(leaves: tuple[Leaf, ...], transforms: Chain) -> Callable:
    def measure(inputs, key, places):
        shared: list = []
        for item in transforms:
            if item.measure is None or item.scope == "tensor":
                shared.append(None)
                continue
            before = transforms[: len(shared)]
            pieces = [
                _whole_leaf(leaf, before, x, key, place, shared)
                for leaf, x, place in zip(leaves, inputs, places, strict=True)
            ]
            shared.append(item.measure(pieces))
        return shared

    return jax.jit(measure)


_leaf_once = functools.lru_cache(maxsize=1024)(_compile_leaf)
_measures_once = functools.lru_cache(maxsize=64)(_compile_measures)


def _run(
    leaf: Leaf,
    transforms: Chain,
    inputs: Inputs,
    key: Array | None,
    place: Place,
    shared: list,
    local: list,
    finish: Callable[[Work], Any],
) -> Any:
    """Applies ``finish`` to the tensor of a leaf, or to each of the layers that it stacks.

    ``shared`` has the statistics of the whole model and ``local`` those of the leaf's tensors, each
    with one entry (or None) for each transform.
    """
    wide = exact.compute_dtype(leaf.dtype)

    def one(inputs: Inputs, layer: Array | None, local: list) -> Any:
        keyed = None if key is None else fold_path(key, place.path_hash, layer)
        tensor = Tensor(leaf.path, layer, inputs.base.astype(wide), keyed, leaf.leaf_path)

        def vectors(after: Array | None = None) -> TaskVectors:
            base, tuned = inputs.base, inputs.tuned
            if after is not None:
                # Tied to the pass of a loop, the deltas cannot be moved out of it into memory.
                base, tuned, _ = jax.lax.optimization_barrier(
                    (jax.lax.stop_gradient(base), jax.lax.stop_gradient(tuned), after)
                )
            base = base.astype(wide)
            deltas = tuple(exact.subtract_leaf(t.astype(wide), base) for t in tuned)
            result = TaskVectors(deltas, inputs.weights)
            for i, item in enumerate(transforms):
                own = None if keyed is None else jax.random.fold_in(keyed, i)
                statistic = shared[i] if shared[i] is not None else local[i]
                result = item.apply(result, tensor._replace(base=base, key=own), statistic)
            return result

        return finish(Work(inputs, tensor, vectors, not transforms))

    if not leaf.stacked:
        return one(inputs, None if leaf.layer is None else place.layer, local)
    layers = jnp.arange(leaf.num_layers, dtype=jnp.uint32)
    weights = _per_layer(inputs.weights, leaf.num_layers)
    arguments = (inputs._replace(weights=weights), layers, local)
    if any(item.one_by_one for item in transforms):
        return jax.lax.map(lambda xs: one(*xs), arguments)
    return jax.vmap(one)(*arguments)


def _per_layer(weights: tuple[Double, ...], num_layers: int) -> tuple[Double, ...]:
    """Weights with the layer as first axis; 0-d ones and those of length 1 there are repeated."""
    return jax.tree.map(lambda w: jnp.broadcast_to(w, (num_layers, *jnp.shape(w)[1:])), weights)


def _measure_tensors(
    leaf: Leaf, transforms: Chain, inputs: Inputs, key: Array | None, place: Place, shared: list
) -> list:
    """The statistics that transforms want of each tensor, from those before them in the chain."""
    local: list = []
    for item in transforms:
        if item.measure is None or item.scope == "model":
            local.append(None)
            continue
        before, finish = transforms[: len(local)], functools.partial(_measure_one, item.measure)
        local.append(_run(leaf, before, inputs, key, place, shared, local, finish))
    return local


def _measure_one(measure: Callable, work: Work) -> Any:
    base, tuned, _ = work.inputs
    return measure([Piece(work.tensor, work.vectors, base.size, len(tuned))])


def _whole_leaf(
    leaf: Leaf, transforms: Chain, inputs: Inputs, key: Array | None, place: Place, shared: list
) -> Piece:
    """A leaf as one piece of a measure over the whole model; layers stay stacked."""
    local = _measure_tensors(leaf, transforms, inputs, key, place, shared)
    base = inputs.base.astype(exact.compute_dtype(leaf.dtype))
    tensor = Tensor(leaf.path, leaf.layer, base, None, leaf.leaf_path)

    def vectors(after: Array | None = None) -> TaskVectors:
        finish = lambda work: work.vectors(after)
        found = _run(leaf, transforms, inputs, key, place, shared, local, finish)
        return found._replace(weights=_beside_stack(found.weights, base.ndim))

    return Piece(tensor, vectors, inputs.base.size, len(inputs.tuned))


def _beside_stack(weights: tuple[Double, ...], ndim: int) -> tuple[Double, ...]:
    """Weights that are one number for each layer, with as many axes as the stack of layers."""
    return jax.tree.map(lambda w: w.reshape(-1, *[1] * (ndim - 1)) if w.ndim == 1 else w, weights)


def _add_up(work: Work) -> Array:
    """The merged tensor."""
    (base, tuned, weights), vectors = work.inputs, work.vectors()
    if work.untouched and all(x.dtype == jnp.bfloat16 for x in (base, *tuned)):
        merged = bfloat16.weighted_sum(base, tuned, weights)
    else:
        merged = exact.weighted_sum(work.tensor.base, vectors.deltas, vectors.weights, base.dtype)
    unchanged = functools.reduce(jnp.logical_and, [w.hi == 0 for w in vectors.weights])
    value = exact.pick(unchanged, base, merged)
    if len(tuned) == 1 and work.untouched:
        value = exact.pick(weights[0].hi == 1, tuned[0].astype(base.dtype), value)
    return exact.with_gradient_of(merged, value)
