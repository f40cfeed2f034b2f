"""Merging tensors that are read in parts: the transforms of a merge, over blocks of a file.

A tensor is cut into blocks as small as its transforms allow (:attr:`Transform.reach`): of any
elements, of whole rows, or all of it. What a transform measures over the whole tensor is gathered
block by block before the pass that merges; so a merge needs the memory of a few blocks, whatever
the tensor's size. The result is that of :func:`imm_jax.merging.merge_params` on the same arrays,
bit for bit where statistics are counts, otherwise up to the rounding of float32 sums.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging import exact
from imm_jax.merging.layout import Leaf
from imm_jax.merging.outofcore import row_ranks, select
from imm_jax.merging.program import Inputs, Place, add_up, kind_of, run
from imm_jax.merging.protocol import Chain, Tensor, chain, fan_in_axis
from imm_jax.merging.random_bits import hash_path
from imm_jax.merging.statistics import Largest, Ranks, Totals

BLOCK = 1 << 20  # elements; larger ones are no faster, smaller ones cost dispatches
SMALL = 1 << 14  # for what is left of a tensor: norms, biases
IN_FLIGHT = 2  # blocks computed while others are read and written
PARTIAL = 32  # elements that are summed in float32; their sums are added up in float64

Read = Callable[[int, int], np.ndarray]


class Part(NamedTuple):
    """A tensor to merge, that is read in parts.

    Attributes:
      name: its path, from which random keys are made.
      shape: its shape.
      base: reads elements ``[start, stop)`` of the flattened base tensor, 1-D.
      tuned: the same for each tuned model.
      weights: a number for each tuned model, or a function that reads a weight for each element.
      dtype: of the result: float32, bfloat16 or float16.
    """

    name: str
    shape: tuple[int, ...]
    base: Read
    tuned: tuple[Read, ...]
    weights: tuple[float | Read, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


class Block(NamedTuple):
    """Elements ``[start, start + size)`` of a tensor, padded with zeros to ``shape``."""

    start: int
    size: int
    shape: tuple[int, ...]


def merge_part(
    part: Part, transform: Any, key: Array | None = None, shared: Sequence[Any] | None = None
) -> Iterator[np.ndarray]:
    """Merges one tensor and yields the flattened result in consecutive pieces.

    Args:
      part: the tensor.
      transform: as in :func:`imm_jax.merging.merge_params`.
      key: a threefry2x32 key, for transforms that draw random numbers.
      shared: what :func:`measure_model` gave, where a transform measures the whole model.

    Raises:
      InputError: a transform measures the whole model and ``shared`` is missing, or a random one
        has no key.
    """
    transforms = chain(transform)
    _check(transforms, key, shared)
    statistics = _measure_tensor(part, transforms, key, shared or [None] * len(transforms))
    yield from (
        result.reshape(-1)[: block.size]
        for block, result in _map_blocks(part, transforms, key, statistics, len(transforms))
    )


def measure_model(parts: Sequence[Part], transform: Any, key: Array | None = None) -> list[Any]:
    """What transforms of scope ``"model"`` measure over all ``parts``, for :func:`merge_part`.

    The parts are read once for each such transform, or up to 32 times where counting has to narrow
    down a k-th magnitude without holding candidates in memory.
    """
    transforms = chain(transform)
    shared: list[Any] = []
    for index, item in enumerate(transforms):
        if item.measure is None or item.scope == "tensor":
            shared.append(None)
            continue
        chosen = [p for p in parts if item.includes is None or item.includes(_tensor_of(p))]
        local = [_measure_tensor(part, transforms[:index], key, shared[:index]) for part in chosen]

        def blocks(chosen=chosen, local=local, index=index) -> Iterator[tuple[Block, Any]]:
            for part, statistics in zip(chosen, local, strict=True):
                yield from _map_blocks(part, transforms, key, statistics, index)

        size = sum(part.size for part in chosen)
        models = len(parts[0].tuned) if parts else 0
        shared.append(_gather(item.measure, blocks, size, models) if chosen else None)
    return shared


def _tensor_of(part: Part) -> Tensor:
    """Its name, for questions that need no arrays."""
    return Tensor(part.name, None, None, None, part.name)


def _check(transforms: Chain, key: Array | None, shared: Sequence[Any] | None) -> None:
    for item in transforms:
        if item.random and key is None:
            raise InputError(f"{item.name} draws random numbers: pass key=jax.random.key(seed)")
        if item.measure is not None and item.scope == "model" and shared is None:
            raise InputError(f"{item.name} measures the whole model: pass what measure_model gave")


def _measure_tensor(
    part: Part, transforms: Chain, key: Array | None, shared: Sequence[Any]
) -> list[Any]:
    """The statistic of each transform; None for those without, and for Ranks, which are local."""
    found: list[Any] = []
    for index, item in enumerate(transforms):
        if item.measure is None or item.scope == "model" or isinstance(item.measure, Ranks):
            found.append(shared[index])
            continue
        blocks = functools.partial(_map_blocks, part, transforms, key, found, index)
        found.append(_gather(item.measure, blocks, part.size, len(part.tuned)))
    return found


def _gather(
    measure: Totals | Largest,
    blocks: Callable[[], Iterator[tuple[Block, Any]]],
    size: int,
    models: int,
) -> Any:
    """A statistic from the values of each block, which ``blocks()`` computes anew in each pass."""
    if isinstance(measure, Totals):
        total: Any = None
        for _, sums in blocks():
            wide = jax.tree.map(
                lambda x: x.sum(dtype=np.int64 if x.dtype.kind == "u" else float), sums
            )
            total = wide if total is None else jax.tree.map(np.add, total, wide)
        return measure.finish(jax.tree.map(np.float32, total), size)
    flat = lambda: ([x.reshape(-1)[: block.size] for x in values] for block, values in blocks())
    return select(flat, size, models, measure)


def _blocks(part: Part, reach: str) -> Iterator[Block]:
    """Cuts a tensor into blocks of few different shapes."""
    size = part.size
    row = part.shape[-1] if part.shape else 1
    if reach == "row" and (len(part.shape) < 2 or fan_in_axis(part.name) != -1):
        reach = "tensor"
    if reach == "tensor" or size == 0:
        yield Block(0, size, part.shape)
        return
    if reach == "row":
        rows = max(PARTIAL, BLOCK // row // PARTIAL * PARTIAL)
        if size <= rows * row:
            yield Block(0, size, part.shape)
            return
        for start in range(0, size, rows * row):
            yield Block(start, min(rows * row, size - start), (rows, row))
        return
    for start in range(0, size, BLOCK):
        left = min(BLOCK, size - start)
        yield Block(start, left, (BLOCK,) if left > SMALL else (SMALL,))


def _map_blocks(
    part: Part, transforms: Chain, key: Array | None, statistics: Sequence[Any], stop: int
) -> Iterator[tuple[Block, Any]]:
    """Runs the transforms before ``stop`` on each block, and what comes there.

    That is the values which the transform at ``stop`` measures, or the merged block after the last.
    """
    used = transforms[: stop + 1]
    reach = max((item.reach for item in used), key=("element", "row", "tensor").index, default="")
    once = any(item.once for item in used)
    waiting: deque[tuple[Block, Any]] = deque()
    for block in _blocks(part, reach or "element"):
        leaf = kind_of(
            Leaf(part.name, part.name, None, False, None, block.shape, np.dtype(part.dtype)), used
        )
        values = {read: _read(read, block) for read in {part.base, *part.tuned}}
        inputs = Inputs(
            values[part.base],
            tuple(values[read] for read in part.tuned),
            tuple(
                exact.to_double(_read(w, block) if callable(w) else np.float64(w))
                for w in part.weights
            ),
        )
        place = Place(hash_path(part.name), np.uint32(0), np.uint32(block.start % 2**32))
        local = list(statistics[:stop])
        for index, item in enumerate(transforms[:stop]):
            if isinstance(item.measure, Ranks):
                program = _program(leaf, transforms, index, once)
                values = program(inputs, key, place, local[:index], np.int32(block.size))
                axis = item.measure.axis(_tensor_of(part)) if len(block.shape) > 1 else -1
                local[index] = [row_ranks(np.asarray(x), axis) for x in values]
        program = _program(leaf, transforms, stop, once)
        waiting.append((block, program(inputs, key, place, local, np.int32(block.size))))
        if len(waiting) > IN_FLIGHT:
            done, result = waiting.popleft()
            yield done, jax.tree.map(np.asarray, result)
    for done, result in waiting:
        yield done, jax.tree.map(np.asarray, result)


def _read(read: Read, block: Block) -> np.ndarray:
    values = read(block.start, block.start + block.size)
    room = int(np.prod(block.shape, dtype=np.int64))
    if block.size < room:
        padded = np.zeros(room, values.dtype)
        padded[: block.size] = values
        values = padded
    return values.reshape(block.shape)


def _program(leaf: Leaf, transforms: Chain, stop: int, once: bool) -> Callable:
    return (_compile if once else _compiled)(leaf, transforms[: stop + 1], stop)


def _compile(leaf: Leaf, transforms: Chain, stop: int) -> Callable:
    def merge(inputs, key, place, local, size):
        nothing = [None] * len(local)
        finish = functools.partial(add_up, leaf.dtype)
        if stop < len(transforms):
            measure = transforms[stop].measure
            finish = lambda work: _values(measure, work, size)
        return run(leaf, transforms[:stop], inputs, key, place, nothing, local, finish)

    return jax.jit(merge)


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
        return jnp.sum(x.reshape(-1, PARTIAL if x.size % PARTIAL == 0 else 1), 1)

    return jax.tree.map(partial_sums, values)
