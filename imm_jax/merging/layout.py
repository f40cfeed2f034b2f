"""Which leaves of a tree a merge works on, and which of them are stacks of layers."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import tree
from imm_jax.errors import InputError, nearest


class Leaf(NamedTuple):
    """A leaf that is merged.

    Attributes:
      leaf_path: its path in the tree, ``"layers/3/attn/q/kernel"``.
      path: the same without a layer's number, ``"layers/attn/q/kernel"``.
      layer: the layer's number where layers are listed, else None.
      stacked: whether its first axis is the layer.
      num_layers: how many layers there are, or None outside the layers.
      shape: its shape.
      dtype: its dtype, which the merged leaf keeps.
      one_device: whether it is known to be on a single device (not while tracing).
    """

    leaf_path: str
    path: str
    layer: int | None
    stacked: bool
    num_layers: int | None
    shape: tuple[int, ...]
    dtype: Any
    one_device: bool = False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def layers(self) -> Sequence[int | None]:
        """The numbers of the layers it holds."""
        return range(self.num_layers) if self.stacked else (self.layer,)


def is_merged(x: Any) -> bool:
    """Whether a leaf is merged: arrays of a real floating dtype are, nothing else is."""
    return hasattr(x, "dtype") and hasattr(x, "shape") and jnp.issubdtype(x.dtype, jnp.floating)


def flatten(params: Any) -> tuple[list[str], list, Any]:
    """Paths, leaves and structure of a tree, with None as a leaf."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: x is None)
    return [tree.path_str(path) for path, _ in flat], [leaf for _, leaf in flat], treedef


def describe(
    paths: Sequence[str], leaves: Sequence[Any], stacked: Callable[[str], bool] | None
) -> list[Leaf]:
    """Describes the merged leaves of a flattened tree.

    ``stacked`` says of a path whether that leaf is a stack of layers. By default these are the
    leaves under ``"layers"`` if all of them have the same first axis. Where ``"layers"`` are found
    at several depths, the outermost are meant; several at one depth may differ in their number.

    Raises:
      InputError: leaves that ``stacked`` names do not share their first axis, a leaf has a dtype
        that is not computed in, or two have the same path.
    """
    chosen = [(p, x) for p, x in zip(paths, leaves, strict=True) if is_merged(x)]
    for path, x in chosen:
        if jnp.finfo(x.dtype).bits < 8:
            raise InputError(f"{path} is {x.dtype}; expected floating numbers of 8 bits or more")
        if x.dtype == np.float64 and not jax.config.jax_enable_x64:
            raise InputError(f"{path} is float64; enable jax_enable_x64, or give float32")
    require_distinct([path for path, _ in chosen])
    places = _outermost({p: tree.find_layers(p) for p, _ in chosen})
    if stacked is None:
        heads = {p: place.head for p, place in places.items() if place.number is None}
    else:
        heads = {p: "" for p, _ in chosen if stacked(p)}
    candidates = {}
    for head in dict.fromkeys(heads.values()):
        group = {p: x for p, x in chosen if heads.get(p) == head}
        depths = {x.shape[0] if len(x.shape) else None for x in group.values()}
        if None not in depths and len(depths) == 1:
            candidates |= group
        elif stacked is not None:
            path, odd = min(group.items(), key=lambda item: _commonness(item[1], group))
            raise InputError(
                f"stacked leaves must share their first axis; {path} has shape {odd.shape}"
            )
    listed = {p: place for p, place in places.items() if place.number is not None}
    counts: dict[str, int] = {}
    for place in listed.values():
        counts[place.head] = max(counts.get(place.head, 0), place.number + 1)

    def array(x: Any) -> tuple:
        traced = isinstance(x, jax.core.Tracer)
        alone = not traced and len(getattr(x, "devices", lambda: "1")()) == 1
        return tuple(x.shape), np.dtype(x.dtype), alone

    def leaf(path: str, x: Any) -> Leaf:
        if path in candidates:
            return Leaf(path, path, None, True, x.shape[0], *array(x))
        if path not in listed:
            return Leaf(path, path, None, False, None, *array(x))
        place = listed[path]
        return Leaf(path, place.path, place.number, False, counts[place.head], *array(x))

    return [leaf(path, x) for path, x in chosen]


def require_distinct(paths: Sequence[str], below: bool = False) -> None:
    """Raises InputError where a ``/`` in a key makes two paths one, or ``below``, one of a part."""
    for path, count in Counter(paths).items():
        if count > 1:
            raise InputError(f"{count} leaves have the path {path!r}; rename a key with '/' in it")
    known = set(paths)
    for path in known if below else ():
        above = itertools.accumulate(path.split("/")[:-1], "{}/{}".format)
        for other in known.intersection(above):
            raise InputError(f"{path!r} lies below {other!r} too; rename a key with '/' in it")


def _commonness(x: Any, candidates: dict) -> int:
    return Counter(tuple(c.shape[:1]) for c in candidates.values())[tuple(x.shape[:1])]


def _outermost(places: dict[str, tree.Place | None]) -> dict[str, tree.Place]:
    """Of the paths that go through layers those whose layers lie least deep in the tree."""
    found = {path: place for path, place in places.items() if place is not None}
    least = min((place.head.count("/") for place in found.values()), default=0)
    return {path: place for path, place in found.items() if place.head.count("/") == least}


def match(base: Any, tuned: Any) -> tuple[list[list], bool]:
    """Flattens the tuned tree or trees to the structure of ``base``.

    ``tuned`` is one tree if it has the structure of ``base``, and several if it is a list or tuple
    of such trees; a tree never has the structure of one of its own items, so this is never
    ambiguous. Returns the leaves of each, and whether there were several.
    """
    paths, base_leaves, treedef = flatten(base)
    tuned_paths, leaves, tuned_def = flatten(tuned)
    if tuned_def == treedef:
        trees, several = [leaves], False
    elif type(tuned) in (list, tuple) and not _same_kind(base, tuned):
        if not tuned:
            raise InputError("tuned is an empty sequence; expected at least one model")
        trees, several = [], True
        for i, item in enumerate(tuned):
            item_paths, item_leaves, item_def = flatten(item)
            if item_def != treedef:
                raise InputError(f"tuned[{i}] {_difference(paths, item_paths, base, item)}")
            trees.append(item_leaves)
    else:
        raise InputError(f"tuned {_difference(paths, tuned_paths, base, tuned)}")
    for i, other in enumerate(trees):
        name = f"tuned[{i}]" if several else "tuned"
        for path, x, y in zip(paths, base_leaves, other, strict=True):
            _check_leaf(name, path, x, y)
    return trees, several


def _same_kind(base: Any, tuned: Any) -> bool:
    """Whether a list as ``tuned`` is more likely a wrong tree than several models."""
    structures = [jax.tree.structure(item) for item in tuned]
    return type(base) is type(tuned) and jax.tree.structure(base) not in structures


def _difference(paths: list[str], others: list[str], base: Any, other: Any) -> str:
    missing = [p for p in paths if p not in set(others)]
    extra = [p for p in others if p not in set(paths)]
    if missing:
        return f"has no leaf {missing[0]!r}, which base has{nearest(missing[0], extra)}"
    if extra:
        return f"has a leaf {extra[0]!r} that base does not have{nearest(extra[0], paths)}"
    kinds = f"{type(other).__name__}, {type(base).__name__}"
    return f"has another tree structure than base, with the same paths ({kinds})"


def _check_leaf(name: str, path: str, x: Any, y: Any) -> None:
    if not is_merged(x) or y is None:
        return
    if np.shape(y) != tuple(x.shape):
        raise InputError(f"{name} {path} has shape {np.shape(y)}; base has {tuple(x.shape)}")
    here, there = _committed(x), _committed(y)
    if here and there and here != there:
        raise InputError(
            f"{name} {path} lies on {_devices(there)}; base lies on {_devices(here)}: "
            "move it by jax.device_put"
        )
    if not is_merged(y):
        kind = getattr(y, "dtype", type(y).__name__)
        raise InputError(f"{name} {path} is {kind}; base has floating numbers there ({x.dtype})")


def _committed(x: Any) -> frozenset:
    """The devices that an array is bound to; none where it may be moved."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, "committed", False):
        return frozenset()
    return frozenset(x.sharding.device_set)


def _devices(devices: frozenset) -> str:
    return str(next(iter(devices))) if len(devices) == 1 else f"{len(devices)} devices"
