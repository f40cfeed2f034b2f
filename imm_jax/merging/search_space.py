"""What a search may change: a tree with an :class:`Interval` for each number, as one vector."""

import math
import numbers
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from imm_jax import tree
from imm_jax.errors import InputError

UNBOUNDED_SPREAD = 0.25  # merge weights are mostly between 0 and 1


@dataclass(frozen=True)
class Interval:
    """Numbers to search for, each from ``low`` to ``high``, ends included.

    Attributes:
      low, high: the bounds; infinite by default.
      shape: of the array of such numbers, ``()`` for a single one.
      spread: the standard deviation of the first candidates; without it a quarter of the width, or
        0.25 where a bound is infinite.
    """

    low: float = -math.inf
    high: float = math.inf
    shape: tuple[int, ...] = ()
    spread: float | None = None


@dataclass(frozen=True)
class Space:
    """A tree of intervals, read by :func:`read_space`. D is how many numbers are searched.

    Attributes:
      paths: of the leaves.
      leaves: an Interval where numbers are searched, else the number or array that stays.
      treedef: the tree's structure.
      low, high, spread, start: ``[D]`` float64, of each number; ``start`` is where a search begins.
    """

    paths: list[str]
    leaves: list
    treedef: Any
    low: np.ndarray
    high: np.ndarray
    spread: np.ndarray
    start: np.ndarray

    def unravel(self, vector: Float[Any, " D"]) -> PyTree:
        """The tree that ``vector`` stands for, its searched leaves float32; traceable."""
        leaves, at = [], 0
        for leaf in self.leaves:
            if isinstance(leaf, Interval):
                size = math.prod(leaf.shape)
                leaf = jnp.asarray(vector[at : at + size].reshape(leaf.shape), jnp.float32)
                at += size
            leaves.append(leaf)
        return self.treedef.unflatten(leaves)

    def ravel(self, values: PyTree, name: str = "initial") -> np.ndarray:
        """The vector ``[D]``, float64, of a tree like the space; numbers that stay are left out.

        Raises:
          InputError: another structure or shape, or a number that is not finite or out of bounds.
        """
        leaves, treedef = jax.tree.flatten(values)
        if treedef != self.treedef:
            raise InputError(f"{name} is {treedef}, expected the structure of space {self.treedef}")
        parts = []
        for path, leaf, value in zip(self.paths, self.leaves, leaves, strict=True):
            if not isinstance(leaf, Interval):
                continue
            if np.shape(value) != leaf.shape or not _is_numeric(value):
                raise InputError(f"{name} {path} is {value!r:.60}, expected shape {leaf.shape}")
            part = np.asarray(value, np.float64)
            if not np.all(np.isfinite(part) & (leaf.low <= part) & (part <= leaf.high)):
                raise InputError(
                    f"{name} {path} is {value!r:.60}, expected from {leaf.low} to {leaf.high}"
                )
            parts.append(part.reshape(-1))
        return np.concatenate(parts)

    def clip(self, vectors: Float[np.ndarray, "*N D"]) -> Float[np.ndarray, "*N D"]:
        """The nearest vectors within bounds."""
        return np.clip(vectors, self.low, self.high)

    def to_float32(self, vectors: Float[np.ndarray, "*N D"]) -> Float[np.ndarray, "*N D"]:
        """As :meth:`clip`, rounded to float32 but never out of bounds."""
        low, high = _inside(self.low, self.high)
        return np.clip(vectors.astype(np.float32), low, high)

    def describe(self) -> list[dict]:
        """What is searched and what stays, as plain data."""
        rows = []
        for path, leaf in zip(self.paths, self.leaves, strict=True):
            if isinstance(leaf, Interval):
                ends = [None if math.isinf(end) else float(end) for end in (leaf.low, leaf.high)]
                row = {"bounds": ends, "shape": list(leaf.shape), "spread": _spread(leaf)}
            else:
                row = {"value": np.asarray(leaf, np.float64).tolist()}
            rows.append({"path": path, **row})
        return rows


def read_space(space: PyTree, initial: PyTree | None = None) -> Space:
    """Reads a tree whose leaves are intervals, or numbers and arrays, which stay as they are.

    Without ``initial`` a search starts in the middle of each interval; where one bound is infinite,
    a spread from the other; where both are, at 0.

    Raises:
      InputError: a leaf is something else, an interval holds no float32 number, a spread is not
        above 0, there is nothing to search, or ``initial`` does not fit.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(space)
    paths, leaves = [tree.path_str(path) for path, _ in flat], [leaf for _, leaf in flat]
    for path, leaf in zip(paths, leaves, strict=True):
        _check_leaf(path, leaf)
    intervals = [leaf for leaf in leaves if isinstance(leaf, Interval)]
    sizes = [math.prod(leaf.shape) for leaf in intervals]
    if not sum(sizes):
        raise InputError("space has no Interval, expected at least one number to search for")
    spread = lambda of: np.repeat(np.array([of(leaf) for leaf in intervals], np.float64), sizes)
    columns = [spread(of) for of in (lambda x: x.low, lambda x: x.high, _spread, _middle)]
    found = Space(paths, leaves, treedef, *columns)
    if initial is None:
        return found
    return Space(paths, leaves, treedef, *columns[:3], found.ravel(initial))


def _check_leaf(path: str, leaf: Any) -> None:
    where = f"space {path}".rstrip()
    if not isinstance(leaf, Interval):
        if not _is_numeric(leaf):
            raise InputError(
                f"{where} is {leaf!r:.60}, expected an Interval or a number that stays"
            )
        return
    if not (_is_number(leaf.low) and _is_number(leaf.high) and leaf.low < leaf.high):
        raise InputError(f"{where} is from {leaf.low} to {leaf.high}, expected low below high")
    low, high = _inside(np.float64(leaf.low), np.float64(leaf.high))
    if not low <= high or low == math.inf or high == -math.inf:
        raise InputError(f"{where}: no float32 number is from {leaf.low} to {leaf.high}")
    if type(leaf.shape) is not tuple or any(type(n) is not int or n < 0 for n in leaf.shape):
        raise InputError(f"{where} has shape {leaf.shape!r:.60}, expected a tuple of whole numbers")
    if leaf.spread is not None and not (_is_number(leaf.spread) and 0 < leaf.spread < math.inf):
        raise InputError(f"{where} has spread {leaf.spread}, expected a number above 0")


def _is_numeric(x: Any) -> bool:
    if isinstance(x, (np.ndarray, jax.Array)):
        return x.dtype != bool and jnp.issubdtype(x.dtype, jnp.number)
    return _is_number(x)


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _spread(leaf: Interval) -> float:
    if leaf.spread is not None:
        return float(leaf.spread)
    width = leaf.high - leaf.low
    return UNBOUNDED_SPREAD if math.isinf(width) else float(width) / 4


def _middle(leaf: Interval) -> float:
    if math.isfinite(leaf.low) and math.isfinite(leaf.high):
        return leaf.low + (leaf.high - leaf.low) / 2
    if math.isfinite(leaf.low):
        return leaf.low + _spread(leaf)
    return leaf.high - _spread(leaf) if math.isfinite(leaf.high) else 0.0


def _inside(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outermost float32 numbers that are not beyond ``low`` and ``high``, float64."""
    with np.errstate(over="ignore"):
        first, last = np.asarray(low, np.float32), np.asarray(high, np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    return (
        np.where(first < low, np.nextafter(first, up), first),
        np.where(last > high, np.nextafter(last, down), last),
    )
