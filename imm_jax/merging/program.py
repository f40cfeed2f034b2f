"""The compiled part of a merge: one small program for each kind of leaf.

A program reads a leaf of each model and writes the merged leaf, so nothing larger than a leaf is
ever made beside the models. Leaves of one shape share a program, in lists of layers too. What a
transform measures over the whole model comes from one more program, which only counts.
"""

import functools
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.merging import bfloat16, exact, statistics
from imm_jax.merging.exact import Double
from imm_jax.merging.layout import Leaf
from imm_jax.merging.protocol import Chain, TaskVectors, Tensor, Transform, rows_like
from imm_jax.merging.random_bits import fold_path, hash_path
from imm_jax.merging.statistics import Measure, Piece, Totals


class Inputs(NamedTuple):
    """The arrays of a leaf: the base's, each tuned model's, and each model's weight.

    A weight is 0-d or has as many axes as the leaf.
    """

    base: Array
    tuned: tuple[Array, ...]
    weights: tuple[Double, ...]


class Place(NamedTuple):
    """Where a leaf stands, as numbers.

    Its path's hash, its layer's number (0 without one), and, where it is a part of a tensor, the
    position of its first element.
    """

    path_hash: Any
    layer: Any
    start: Any = 0


class View(NamedTuple):
    """A tensor's task vectors as they are, and as the transforms make them; and what it is."""

    given: TaskVectors
    vectors: TaskVectors
    tensor: Tensor


class Work(NamedTuple):
    """One tensor on its way: its arrays, what it is, and a view of it when called for.

    Views with a value ``after`` which they come are computed apart from others.
    """

    inputs: Inputs
    tensor: Tensor
    view: Callable[..., View]


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
    places = [Place(hash_path(x.path), np.uint32(x.layer or 0)) for x in leaves]
    shared: list = [None] * len(transforms)
    if any(item.measure is not None and item.scope == "model" for item in transforms):
        compiled = (_compile_measures if once else _measures_once)(tuple(leaves), transforms)
        shared = compiled(list(inputs), key, places)
    uses = Counter(id(array) for x in inputs for array in (x.base, *x.tuned)) if donate else {}
    results = []
    for leaf, x, place in zip(leaves, inputs, places, strict=True):
        kind = kind_of(leaf, transforms)
        given = x.base if donate == "base" else x.tuned[0]
        own = donate if uses.get(id(given)) == 1 else None  # others still need one that is shared
        program = (_compile_leaf if once else _leaf_once)(kind, transforms, _sharding(x.base), own)
        results.append(program(x.base, x.tuned[0], x.tuned[1:], x.weights, key, place, shared))
    return results


def kind_of(leaf: Leaf, transforms: Chain) -> Leaf:
    """The leaf without what its program does not depend on."""
    layer = leaf.layer if leaf.layer is None else 0
    path = leaf.path
    if all(item.same_everywhere for item in transforms):
        path = "" if all(item.reach == "element" for item in transforms) else rows_like(path)
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
        finish = functools.partial(add_up, leaf.dtype)
        return run(leaf, transforms, inputs, key, place, shared, local, finish)

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
                _whole_leaf(leaf, before, item, x, key, place, shared)
                for leaf, x, place in zip(leaves, inputs, places, strict=True)
                if item.includes is None or item.includes(_tensor_of(leaf))
            ]
            shared.append(statistics.take(item.measure, pieces) if pieces else None)
        return shared

    return jax.jit(measure)


_leaf_once = functools.lru_cache(maxsize=1024)(_compile_leaf)
_measures_once = functools.lru_cache(maxsize=64)(_compile_measures)


def run(
    leaf: Leaf,
    transforms: Chain,
    inputs: Inputs,
    key: Array | None,
    place: Place,
    shared: list,
    local: list,
    finish: Callable[[Work], Any],
    one_by_one: bool = False,
) -> Any:
    """Applies ``finish`` to the tensor of a leaf, or to each of the layers that it stacks.

    ``shared`` has the statistics of the whole model and ``local`` those of the leaf's tensors, each
    with one entry (or None) for each transform. ``one_by_one`` visits layers one after another, for
    a ``finish`` that sums: both layouts then sum in the same order.
    """
    wide = exact.compute_dtype(leaf.dtype)

    def one(inputs: Inputs, layer: Array | None, local: list) -> Any:
        keyed = None if key is None else fold_path(key, place.path_hash, layer)
        base = inputs.base.astype(wide)
        tensor = Tensor(leaf.path, layer, base, keyed, leaf.leaf_path, place.start)

        def view(after: Array | None = None) -> View:
            base, tuned = inputs.base, inputs.tuned
            if after is not None:
                # Tied to a value, they cannot be computed once for all and kept in memory.
                base, tuned, _ = jax.lax.optimization_barrier(
                    (jax.lax.stop_gradient(base), jax.lax.stop_gradient(tuned), after)
                )
            base = base.astype(wide)
            deltas = tuple(exact.subtract_leaf(t.astype(wide), base) for t in tuned)
            given = result = TaskVectors(deltas, inputs.weights)
            for i, item in enumerate(transforms):
                own = None if keyed is None else jax.random.fold_in(keyed, i)
                statistic = shared[i] if shared[i] is not None else local[i]
                result = item.apply(result, tensor._replace(base=base, key=own), statistic)
            return View(given, result, tensor._replace(base=base))

        return finish(Work(inputs, tensor, view))

    if not leaf.stacked:
        return one(inputs, None if leaf.layer is None else place.layer, local)
    layers = jnp.arange(leaf.num_layers, dtype=jnp.uint32)
    weights = _per_layer(inputs.weights, leaf.num_layers)
    arguments = (inputs._replace(weights=weights), layers, local)
    if one_by_one:
        return jax.lax.map(lambda xs: one(*_unpacked(xs, leaf.dtype)), _packed(arguments))
    if any(item.reach != "element" for item in transforms):
        return jax.lax.map(lambda xs: one(*xs), arguments)
    return jax.vmap(one)(*arguments)


def _packed(arguments: tuple) -> tuple:
    """Arrays of 16-bit floats as integers, which XLA cannot convert ahead of a loop over layers.

    It would keep all layers in float32.
    """
    inputs, *rest = arguments
    bits = lambda x: jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), jnp.uint16)
    return (jax.tree.map(lambda x: bits(x) if x.dtype.itemsize == 2 else x, inputs), *rest)


def _unpacked(arguments: tuple, dtype: Any) -> tuple:
    inputs, *rest = jax.lax.optimization_barrier(arguments)
    floats = lambda x: jax.lax.bitcast_convert_type(x, dtype) if x.dtype == jnp.uint16 else x
    return (jax.tree.map(floats, inputs), *rest)


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
        before, finish = (
            transforms[: len(local)],
            functools.partial(_measure_one, item.measure, leaf.one_device),
        )
        alone = item.reach != "element" or isinstance(item.measure, Totals)
        local.append(run(leaf, before, inputs, key, place, shared, local, finish, alone))
    return local


def _measure_one(measure: Measure, one_device: bool, work: Work) -> Any:
    base, tuned, _ = work.inputs
    values = lambda after: measure.values(*work.view(after)[1:])
    return statistics.take(measure, [Piece(values, work.tensor, base.size, len(tuned), one_device)])


def _whole_leaf(
    leaf: Leaf,
    transforms: Chain,
    item: Transform,
    inputs: Inputs,
    key: Array | None,
    place: Place,
    shared: list,
) -> Piece:
    """A leaf as one piece of what ``item`` measures over the whole model; layers stay stacked."""
    local = _measure_tensors(leaf, transforms, inputs, key, place, shared)

    def values(after: Array) -> Any:
        finish = lambda work: item.measure.values(*work.view(after)[1:])
        return run(leaf, transforms, inputs, key, place, shared, local, finish)

    return Piece(values, _tensor_of(leaf), inputs.base.size, len(inputs.tuned), leaf.one_device)


def _tensor_of(leaf: Leaf) -> Tensor:
    """A leaf's names, for questions that need no arrays."""
    return Tensor(leaf.path, leaf.layer, None, None, leaf.leaf_path)


def add_up(dtype: Any, work: Work) -> Array:
    """The merged tensor, rounded once to ``dtype``."""
    base, tuned, _ = work.inputs
    given, (deltas, weights), tensor = work.view()
    untouched = len(deltas) == len(tuned) and all(map(operator.is_, deltas, given.deltas))
    if untouched and all(x.dtype == dtype == jnp.bfloat16 for x in (base, *tuned)):
        merged = bfloat16.weighted_sum(base, tuned, weights)
    else:
        merged = exact.weighted_sum(tensor.base, deltas, weights, dtype)
    unchanged = functools.reduce(jnp.logical_and, [w.hi == 0 for w in weights])
    value = exact.pick(unchanged, base.astype(dtype), merged)
    if len(tuned) == 1 and untouched:
        whole = (weights[0].hi == 1) & (weights[0].lo == 0)
        value = exact.pick(whole, tuned[0].astype(dtype), value)
    return exact.with_gradient_of(merged, value)
