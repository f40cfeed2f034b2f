"""The compiled part of a merge in blocks: one small program for each kind of block."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from imm_jax.merging.layout import Leaf
from imm_jax.merging.program import add_up, run
from imm_jax.merging.protocol import Chain
from imm_jax.merging.statistics import Totals

PARTIAL = 32  # elements that are summed in float32; their sums are added up in float64


def block_program(leaf: Leaf, transforms: Chain, stop: int, once: bool) -> Callable:
    """The program ``(inputs, key, place, statistics, size)`` for blocks of one kind.

    It runs the transforms before ``stop`` and computes what the one there measures, or the merged
    block after the last. With ``once`` it is not remembered.
    """
    return (_compile if once else _compiled)(leaf, transforms[: stop + 1], stop)


def _compile(leaf: Leaf, transforms: Chain, stop: int) -> Callable:
    def merge(inputs, key, place, local, size):
        nothing = [None] * len(local)
        finish = functools.partial(add_up, leaf.dtype)
        if stop < len(transforms):
            measure = transforms[stop].measure
            finish = lambda work: _values(measure, work, size)
        return run(leaf, transforms[:stop], inputs, key, place, nothing, local, finish)

    return _first_alone(jax.jit(merge))


def _first_alone(program: Callable) -> Callable:
    """``program``, whose first call, which compiles, the others wait for: they would do it too."""
    lock, compiled = threading.Lock(), []

    def call(*args):
        if compiled:
            return program(*args)
        with lock:
            result = program(*args)
            compiled.append(True)
        return result

    return call


_compiled = functools.lru_cache(maxsize=256)(_compile)


def _values(measure: Any, work: Any, size: Array) -> Any:
    """What is gathered of a block: its values, or partial sums of them without the padding."""
    values = measure.values(*work.view()[1:])
    if not isinstance(measure, Totals):
        return values

    def partial_sums(x: Array) -> Array:
        inside = jax.lax.iota(jnp.int32, x.size) < size
        x = jnp.where(inside, x.reshape(-1), jnp.zeros((), x.dtype))
        if x.dtype == bool:
            x = x.astype(jnp.uint32)
        few = x.size // PARTIAL
        while x.size % 2 == 0 and x.size > few:  # half the time of summing neighbours
            x = x[: x.size // 2] + x[x.size // 2 :]
        return x

    return jax.tree.map(partial_sums, values)
