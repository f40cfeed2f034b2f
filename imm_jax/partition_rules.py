"""The one table of how parameters are split over a mesh, and what it leaves whole."""

import functools
import logging
import re
from collections.abc import Mapping

from jax.sharding import PartitionSpec

Sizes = Mapping[str, int]

logger = logging.getLogger("imm_jax")

# How a parameter is split: the end of its path, and an axis for each dimension. Below "layers/" the
# axis of the layers comes before these and is never split.
RULES = {
    "embed/embedding": ("tensor", "fsdp"),
    "lm_head/kernel": ("fsdp", "tensor"),
    "attn/(q|k|v)/kernel": ("fsdp", "tensor"),
    "attn/(q|k|v)/bias": ("tensor",),
    "attn/o/kernel": ("tensor", "fsdp"),
    "mlp/(gate|up)/kernel": ("fsdp", "tensor"),
    "mlp/(gate|up)/bias": ("tensor",),
    "mlp/down/kernel": ("tensor", "fsdp"),
    "scale|bias": (None,),
}
_PATTERNS = tuple((re.compile(f"(?:^|/)({end})$"), axes) for end, axes in RULES.items())
_IN_STACK = re.compile(r"(?:^|/)layers/(?!\d)")


def partition(path: str, shape: tuple[int, ...], sizes: Sizes) -> PartitionSpec:
    """How the parameter at ``path`` is split, by the table.

    The path may stand below others (an optimizer's state is split as its parameters). A dimension
    that an axis does not divide is left whole (:func:`say_what_is_whole`); so is all of an array
    that the table does not know.
    """
    _, axes = _look_up(path, shape)
    # An axis of size 1 is left out, or equal shardings would not compare as equal.
    splits = lambda axis, size: axis is not None and sizes[axis] > 1 and size % sizes[axis] == 0
    fitting = [axis if splits(axis, size) else None for axis, size in zip(axes, shape)]
    while fitting and fitting[-1] is None:
        fitting.pop()
    return PartitionSpec(*fitting)


def _look_up(path: str, shape: tuple[int, ...]) -> tuple[str, tuple[str | None, ...]]:
    """What kind of parameter the table knows an array as, and an axis for each dimension; no axes
    where it does not know it.
    """
    matches = ((pattern.search(path), axes) for pattern, axes in _PATTERNS)
    found, axes = next(((found, axes) for found, axes in matches if found), (None, ()))
    if _IN_STACK.search(path):
        axes = (None, *axes)
    known = found is not None and len(shape) == len(axes)
    return (found[1], axes) if known else ("", ())


def say_what_is_whole(shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> None:
    """Logs for each axis, once, how many kinds of arrays of ``{path: shape}`` it does not divide.

    By kind, because an optimizer's state and a list of layers hold more of the same.
    """
    for axis, parts in sizes.items():
        known, whole = set(), {}
        for path, shape in shapes.items():
            kind, axes = _look_up(path, shape)
            for size in (size for size, own in zip(shape, axes) if own == axis):
                known.add(kind)
                if size % parts:
                    whole[kind] = size
        if whole:
            example, size = min(whole.items())
            _say_once(
                f"mesh: {len(whole)} of {len(known)} arrays are not split over {axis}={parts}, "
                f"such as {example}: {size} is no multiple"
            )


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)
