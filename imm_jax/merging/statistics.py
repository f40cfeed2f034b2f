"""What a transform asks of a whole tensor, or of the whole model, before it acts on elements.

A transform only declares it: sums (:class:`Totals`), k-th largest numbers (:class:`Largest`) or
ranks (:class:`Ranks`) of values that it computes element by element. So the same transform runs
inside one compiled program, which is what this file does, and over chunks of a file that is never
in memory, which :mod:`imm_jax.merging.streaming` does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.merging.kth import kth_largest, order_bits
from imm_jax.merging.reductions import count_true, totals

FIRST = np.int32(0)
NOTHING = np.int32(0x7FFFFFFF)  # above the bits of every float: a threshold that keeps nothing


class Totals(NamedTuple):
    """Sums over all elements.

    Attributes:
      values: ``(vectors, tensor) -> arrays``, a pytree of arrays of the tensor's shape; booleans
        are counted.
      finish: ``(sums, size) -> statistic``, from the tree of sums and the number of elements.
    """

    values: Callable[[Any, Any], Any]
    finish: Callable[[Any, int], Any]


class Largest(NamedTuple):
    """Exact k-th largest numbers, found by counting.

    The statistic is int32 ``[arrays, ranks]``: ``order_bits(x) >= statistic[i, j]`` holds for the
    ``ranks[i][j]`` largest elements of array i and what ties with the last of them; a rank of 0
    holds for none.

    Attributes:
      values: ``(vectors, tensor) -> arrays``, a sequence of arrays >= 0.
      ranks: ``(count, models) -> ranks``, a list of numbers for each array. ``count`` is the number
        of elements, of each array that are above 0 if ``of_positive``.
      of_positive: ranks depend on the numbers of elements above 0, as a list of traced integers.
    """

    values: Callable[[Any, Any], Sequence[Array]]
    ranks: Callable[[Any, int], Sequence[Sequence[Any]]]
    of_positive: bool = False


class Ranks(NamedTuple):
    """Each element's rank in its row, from 0 for the smallest to 1; 0.5 in a row of one.

    Elements that tie are ranked in the order they stand. The statistic is a sequence of float32
    arrays of the tensor's shape.

    Attributes:
      values: ``(vectors, tensor) -> arrays``, a sequence of arrays >= 0.
      axis: ``(tensor) -> axis`` along which a row lies.
    """

    values: Callable[[Any, Any], Sequence[Array]]
    axis: Callable[[Any], int]


Measure = Totals | Largest | Ranks


class Piece(NamedTuple):
    """One tensor, or a stack of them, as a measure sees it.

    ``values(after)`` computes its values. Calling it anew in each pass, with a value of that pass
    as ``after`` (any, such as :data:`FIRST`), keeps them out of memory. ``one_device`` says that
    its arrays are known to be on one.
    """

    values: Callable[..., Any]
    tensor: Any
    size: int
    models: int
    one_device: bool = False


def take(measure: Measure, pieces: Sequence[Piece]) -> Any:
    """The statistic of one tensor, or of all tensors of a model (Totals and Largest only)."""
    return TAKE[type(measure)](measure, pieces)


def _take_totals(measure: Totals, pieces: Sequence[Piece]) -> Any:
    sums = []
    for piece in pieces:
        values, structure = jax.tree.flatten(piece.values(FIRST))
        sums.append(structure.unflatten(totals(values, piece.one_device)))
    if len(sums) > 1:
        sums = [jax.tree.map(lambda *parts: sum(p.astype(jnp.float32) for p in parts), *sums)]
    return measure.finish(sums[0], sum(piece.size for piece in pieces))


def _take_largest(measure: Largest, pieces: Sequence[Piece]) -> Array:
    count: Any = sum(piece.size for piece in pieces)
    if measure.of_positive:
        above = [[count_true(x > 0) for x in piece.values(FIRST)] for piece in pieces]
        count = [sum(counts) for counts in zip(*above, strict=True)]
    ranks = measure.ranks(count, pieces[0].models)
    flat = [k for row in ranks for k in row]

    def repeated(piece: Piece) -> Callable[[Array], list[Array]]:
        return lambda after: [
            x for x, row in zip(piece.values(after), ranks, strict=True) for _ in row
        ]

    found = kth_largest([repeated(piece) for piece in pieces], [_at_least_1(k) for k in flat])
    none = jnp.stack([jnp.asarray(k) == 0 for k in flat])
    return jnp.where(none, NOTHING, found).reshape(len(ranks), -1)


def _at_least_1(k: Any) -> Any:
    return max(1, k) if isinstance(k, int) else jnp.maximum(k, 1)


def _take_ranks(measure: Ranks, pieces: Sequence[Piece]) -> list[Array]:
    (piece,) = pieces
    axis = measure.axis(piece.tensor)
    return [rank_shares(x, axis if x.ndim > 1 else -1) for x in piece.values(FIRST)]


def rank_shares(x: Array, axis: int) -> Array:
    """See :class:`Ranks`."""
    if x.ndim == 0 or x.shape[axis] < 2:
        return jnp.full(x.shape, 0.5)
    moved = jnp.moveaxis(x, axis, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    order = jnp.argsort(order_bits(rows), stable=True)
    share = jnp.arange(rows.shape[1], dtype=jnp.float32) / (rows.shape[1] - 1)
    shares = (
        jnp.zeros_like(rows)
        .at[jnp.arange(rows.shape[0])[:, None], order]
        .set(share, unique_indices=True)
    )
    return jnp.moveaxis(shares.reshape(moved.shape), -1, axis)


TAKE = {Totals: _take_totals, Largest: _take_largest, Ranks: _take_ranks}
