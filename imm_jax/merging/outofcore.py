"""Exact order statistics of numbers that come in blocks and are never in memory together."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from imm_jax.merging.statistics import NOTHING, Largest

SAMPLED = 1 << 14  # numbers of a block from which bounds are guessed
HELD = 1 << 22  # candidates in memory at once
RANKED = 1 << 17  # so few numbers are all candidates
IN_CACHE = 1 << 16  # elements ranked at once
WHOLE = (0, int(NOTHING) + 1)

T = TypeVar("T")
Blocks = Callable[[Callable[[Sequence[np.ndarray]], T]], Iterator[T]]


class _Search(NamedTuple):
    """Where the k-th largest is known to be, and where it is looked for, as ``[low, high)``."""

    known: tuple[int, int]
    tried: tuple[int, int]


def select(blocks: Blocks, size: int, models: int, measure: Largest) -> np.ndarray:
    """The thresholds of a :class:`Largest`, as int32 ``[arrays, ranks]``.

    One block, the first that is there, gives bounds that the k-th largest is likely to lie between.
    A pass over all blocks counts what is above them and keeps what is between; where the k-th is
    not among those, or there are too many, bounds from a sample of everything serve for another
    pass. The answer is exact either way.

    Args:
      blocks: computes the blocks anew in each call, for each a list of arrays of float32 >= 0, and
        yields what the function given to it makes of each, perhaps on threads.
      size: how many numbers each array has over all blocks.
      models: how many models there are, for the ranks.
      measure: what is asked for.
    """
    count = _count_positive(blocks) if measure.of_positive else size
    ranks = [[int(k) for k in row] for row in measure.ranks(count, models)]
    searches = {(i, k): _Search(WHOLE, WHOLE) for i, row in enumerate(ranks) for k in row if k}
    found: dict[tuple[int, int], int] = {}
    first = True
    while searches:
        searches = _narrow(blocks, size, searches, found, first)
        first = False
    rows = [[found.get((i, k), NOTHING) for k in row] for i, row in enumerate(ranks)]
    return np.array(rows, np.int32)


def _bits(x: np.ndarray) -> np.ndarray:
    """int32 that order as the numbers do."""
    return np.ascontiguousarray(x, np.float32).view(np.int32)


def _count_positive(blocks: Blocks) -> list[int]:
    counts = blocks(lambda arrays: [int(np.count_nonzero(x > 0)) for x in arrays])
    return [sum(of_array) for of_array in zip(*counts)]


def _narrow(blocks: Blocks, size: int, searches: dict, found: dict, first: bool) -> dict:
    """One pass: puts what it decides into ``found`` and returns the searches that are left."""
    above, held = dict.fromkeys(searches, 0), dict.fromkeys(searches, 0)
    inside: dict = {at: [] for at in searches}
    samples: dict = {at: [] for at in searches}
    guess, lock = first and size > RANKED, threading.Lock()

    def look(arrays: Sequence[np.ndarray]) -> dict:
        nonlocal guess
        bits = [_bits(x) for x in arrays]
        with lock:  # all blocks are held against the same bounds
            if guess and bits[0].size:
                for at in searches:
                    sample = bits[at[0]][:: max(1, bits[0].size // SAMPLED)]
                    searches[at] = _Search(WHOLE, _guess(sample, at[1] / size, 0.03))
                guess = False
        return {at: _sift(bits[at[0]], size, *search.tried) for at, search in searches.items()}

    for sifted in blocks(look):
        for at, (sample, count, candidates) in sifted.items():
            samples[at].append(sample)
            above[at] += count
            held[at] += candidates.size
            if held[at] <= HELD:
                inside[at].append(candidates)
    left = {}
    for at, ((known_low, known_high), (low, high)) in searches.items():
        place = at[1] - above[at]  # of the k-th among the candidates, from 1 at the largest
        if place < 1:
            known = (high, known_high)
        elif place > held[at]:
            if low == 0:  # -0 has a sign
                found[at] = 0
                continue
            known = (known_low, low)
        elif held[at] <= HELD:
            values = np.sort(np.concatenate(inside[at]))  # a partition is slow where many tie
            found[at] = max(0, int(values[held[at] - place]))
            continue
        elif high - low == 1:
            found[at] = low
            continue
        else:
            known = (low, high)
        guess = _guess(np.concatenate(samples[at]), at[1] / size, 0.002)
        tried = max(known[0], guess[0]), min(known[1], guess[1])
        if tried[0] >= tried[1] or tried == (low, high) or not first:
            tried = (sum(known) // 2, known[1])
        left[at] = _Search(known, tried)
    return left


def _sift(x: np.ndarray, size: int, low: int, high: int) -> tuple[np.ndarray, int, np.ndarray]:
    """A sample of a block, how many are at or above ``high``, and those between the bounds."""
    # Copied, or the block would stay in memory.
    sample = x[:: max(1, x.size // SAMPLED, size // HELD)].copy()
    beyond = x >= high
    candidates = x if (low, high) == WHOLE else np.compress((x >= low) & ~beyond, x)
    return sample, int(np.count_nonzero(beyond)), candidates


def _guess(sample: np.ndarray, share: float, margin: float) -> tuple[int, int]:
    """Bounds ``[low, high)`` for what has the ``share`` of largest numbers at or above it."""
    count, margin = sample.size, max(margin, 6 / np.sqrt(sample.size))
    low, high = int(count * (1 - share - margin)), int(count * (1 - share + margin))
    places = sorted({max(low, 0), min(high, count - 1)})
    values = np.partition(sample, places)[places]
    return (int(values[0]) if low > 0 else 0, int(values[-1]) + 1 if high < count else WHOLE[1])


def row_ranks(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Each element's rank in its row along ``axis``, as :class:`imm_jax.merging.Ranks` has it.

    Sorting pairs of bits and positions as one integer keeps the order of elements that tie.
    """
    length = x.shape[axis] if x.ndim else 1
    if length < 2:
        return np.full(x.shape, 0.5, np.float32)
    moved = np.moveaxis(x, axis, -1)
    rows = np.ascontiguousarray(moved, np.float32).reshape(-1, length)
    ranks = np.empty_like(rows)
    step = max(1, IN_CACHE // length)
    for start in range(0, len(rows), step):
        _rank(rows[start : start + step], ranks[start : start + step])
    return np.moveaxis(ranks.reshape(moved.shape), -1, axis)


def _rank(rows: np.ndarray, ranks: np.ndarray) -> None:
    length = rows.shape[1]
    pairs = np.left_shift(_bits(rows), 32, dtype=np.int64)
    pairs |= np.arange(rows.size).reshape(rows.shape)
    pairs.sort(axis=-1)
    pairs &= 0xFFFFFFFF
    shares = np.arange(length, dtype=np.float32) / np.float32(length - 1)
    # Flat and of one size: NumPy takes half the time of broadcasting one row.
    ranks.reshape(-1)[pairs.reshape(-1)] = np.tile(shares, len(rows))
