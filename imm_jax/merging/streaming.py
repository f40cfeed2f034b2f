"""Merging tensors that are read in parts: the transforms of a merge, over blocks of a file.

A tensor is cut into blocks as small as its transforms allow (:attr:`Transform.reach`): of any
elements, of whole rows, or all of it. What a transform measures over the whole tensor is gathered
block by block before the pass that merges; so a merge needs the memory of a few blocks, whatever
the tensor's size. The result is that of :func:`imm_jax.merging.merge_params` on the same arrays,
bit for bit where statistics are counts, otherwise up to the rounding of float32 sums.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging import exact
from imm_jax.merging.ahead import THREADS, map_ahead, one_ahead
from imm_jax.merging.block_program import PARTIAL, block_program
from imm_jax.merging.layout import Leaf
from imm_jax.merging.outofcore import row_ranks, select
from imm_jax.merging.program import Inputs, Place, kind_of
from imm_jax.merging.protocol import Chain, Tensor, Transform, chain, fan_in_axis
from imm_jax.merging.random_bits import hash_path
from imm_jax.merging.statistics import Largest, Ranks, Totals

BLOCK = 1 << 20  # elements; larger ones are no faster, smaller ones cost dispatches
SMALL = 1 << 14  # for what is left of a tensor: norms, biases
KEPT = 1 << 25  # elements of a tensor, over all models, that are kept from one pass to the next
IN_FLIGHT = THREADS + 2  # blocks read, computed, and waiting to be written

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


class Task(NamedTuple):
    """A tensor to merge, and how.

    Attributes:
      part: the tensor.
      transform: as in :func:`imm_jax.merging.merge_params`.
      shared: what :func:`measure_model` gave, where a transform measures the whole model.
    """

    part: Part
    transform: Any
    shared: Sequence[Any] | None = None


class Block(NamedTuple):
    """Elements ``[start, start + size)`` of a tensor, padded with zeros to ``shape``."""

    start: int
    size: int
    shape: tuple[int, ...]


class _Pass(NamedTuple):
    """A tensor to go through, up to the transform at ``stop``, with what those before measured."""

    part: Part
    transforms: Chain
    statistics: Sequence[Any]
    stop: int

    @property
    def used(self) -> Chain:
        """The transforms that run or measure."""
        return self.transforms[: self.stop + 1]

    @property
    def reach(self) -> str:
        """How far they look."""
        reaches = [item.reach for item in self.used]
        return max(reaches, key=("element", "row", "tensor").index, default="element")


def merge_part(
    part: Part, transform: Any, key: Array | None = None, shared: Sequence[Any] | None = None
) -> Iterator[np.ndarray]:
    """Merges one tensor and yields the flattened result in consecutive pieces.

    Args and errors are those of :func:`merge_parts`.
    """
    for _, piece in merge_parts([Task(part, transform, shared)], key):
        yield piece


def merge_parts(
    tasks: Iterable[Task], key: Array | None = None
) -> Iterator[tuple[Part, np.ndarray]]:
    """Merges tensors one after another and yields the flattened results in consecutive pieces.

    Threads read and compute what comes next while a piece is used, also across tensors.

    Args:
      tasks: the tensors.
      key: a threefry2x32 key, for transforms that draw random numbers.

    Raises:
      InputError: a transform measures the whole model and ``shared`` is missing, or a random one
        has no key.
    """

    def passes() -> Iterator[_Pass]:
        for part, transform, shared in tasks:
            part = _split_weights(part)
            transforms = chain(transform)
            _check(transforms, key, shared)
            if part.size * (1 + len(part.tuned)) <= KEPT and any(map(_is_gathered, transforms)):
                part = _read_once(part)
            found = _measure_tensor(part, transforms, key, shared or [None] * len(transforms))
            yield _Pass(part, transforms, found, len(transforms))

    for (one, block), result in _map_blocks(one_ahead(passes()), key):
        yield one.part, result.reshape(-1)[: block.size]


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
        chosen = list(map(_split_weights, chosen))
        local = [_measure_tensor(part, transforms[:index], key, shared[:index]) for part in chosen]

        def blocks(then, chosen=chosen, local=local, index=index) -> Iterator[Any]:
            passes = [_Pass(p, transforms, s, index) for p, s in zip(chosen, local, strict=True)]
            return (result for _, result in _map_blocks(passes, key, then))

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


def _is_gathered(item: Transform) -> bool:
    """Whether a tensor is gone through for its measure. Ranks are local to a block."""
    return isinstance(item.measure, Totals | Largest) and item.scope == "tensor"


def _read_once(part: Part) -> Part:
    """The part with reads that are remembered as long as it is."""
    reads = {read: functools.cache(read) for read in {part.base, *part.tuned}}
    return part._replace(base=reads[part.base], tuned=tuple(reads[read] for read in part.tuned))


def _split_weights(part: Part) -> Part:
    """The part with its numbers as the blocks' programs take them, not split for each block."""
    return part._replace(
        weights=tuple(w if callable(w) else exact.to_double(np.float64(w)) for w in part.weights)
    )


def _measure_tensor(
    part: Part, transforms: Chain, key: Array | None, shared: Sequence[Any]
) -> list[Any]:
    """The statistic of each transform; None for those without, and for Ranks, which are local."""
    found: list[Any] = []
    for index, item in enumerate(transforms):
        if not _is_gathered(item):
            found.append(shared[index])
            continue
        one = _Pass(part, transforms, tuple(found), index)
        blocks = lambda then, one=one: (result for _, result in _map_blocks([one], key, then))
        found.append(_gather(item.measure, blocks, part.size, len(part.tuned)))
    return found


def _gather(
    measure: Totals | Largest,
    blocks: Callable[[Callable[[Block, Any], Any]], Iterator[Any]],
    size: int,
    models: int,
) -> Any:
    """A statistic from the values of each block, which ``blocks`` computes anew in each pass, and
    hands to the function it is given.
    """
    if isinstance(measure, Totals):

        def wide(_: Block, sums: Any) -> Any:
            return jax.tree.map(
                lambda x: x.sum(dtype=np.int64 if x.dtype.kind == "u" else float), sums
            )

        total = functools.reduce(lambda *two: jax.tree.map(np.add, *two), blocks(wide))
        return measure.finish(jax.tree.map(np.float32, total), size)

    def flat(look: Callable[[Sequence[np.ndarray]], Any]) -> Iterator[Any]:
        return blocks(lambda block, values: look([x.reshape(-1)[: block.size] for x in values]))

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
    passes: Iterable[_Pass], key: Array | None, then: Callable[[Block, Any], Any] | None = None
) -> Iterator[tuple[tuple[_Pass, Block], Any]]:
    """Goes through tensors block by block, with :func:`_run_block`, and ``then``, on threads."""

    def run_block(item: tuple[_Pass, Block]) -> Any:
        result = _run_block(*item, key)
        return result if then is None else then(item[1], result)

    blocks = ((one, block) for one in passes for block in _blocks(one.part, one.reach))
    cost = lambda item: max(item[1].size, SMALL)
    return map_ahead(run_block, blocks, cost, IN_FLIGHT * BLOCK)


def _run_block(one: _Pass, block: Block, key: Array | None) -> Any:
    """Runs the transforms before ``stop`` on a block, and what comes there.

    That is the values which the transform at ``stop`` measures, or the merged block after the last.
    """
    part, transforms, statistics, stop = one
    once = any(item.once for item in one.used)
    leaf = kind_of(
        Leaf(part.name, part.name, None, False, None, block.shape, np.dtype(part.dtype)), one.used
    )
    values = {read: _read(read, block) for read in {part.base, *part.tuned}}
    inputs = Inputs(
        values[part.base],
        tuple(values[read] for read in part.tuned),
        tuple(exact.to_double(_read(w, block) if callable(w) else w) for w in part.weights),
    )
    place = Place(hash_path(part.name), np.uint32(0), np.uint32(block.start % 2**32))
    local = list(statistics[:stop])
    for index, item in enumerate(transforms[:stop]):
        if isinstance(item.measure, Ranks):
            program = block_program(leaf, transforms, index, once)
            ranked = program(inputs, key, place, local[:index], np.int32(block.size))
            axis = item.measure.axis(_tensor_of(part)) if len(block.shape) > 1 else -1
            local[index] = [row_ranks(np.asarray(x), axis) for x in ranked]
    program = block_program(leaf, transforms, stop, once)
    result = program(inputs, key, place, local, np.int32(block.size))
    return jax.tree.map(np.asarray, result)


def _read(read: Read, block: Block) -> np.ndarray:
    values = read(block.start, block.start + block.size)
    room = int(np.prod(block.shape, dtype=np.int64))
    if block.size < room:
        padded = np.zeros(room, values.dtype)
        padded[: block.size] = values
        values = padded
    return values.reshape(block.shape)
