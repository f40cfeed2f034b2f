"""Layers that are listed under another name than ``layers``, found by their numbers."""

import re
from collections.abc import Sequence

from imm_jax.errors import InputError, nearest
from imm_jax.merging.layout import Leaf

# A number that ends a name or is one: "block_0/kernel", "h/0/kernel", "transformer.h.0.kernel".
_NUMBER = re.compile(r"[/._](\d+)(?=([/.])|$)")

Layers = dict[str, tuple[int, str]]  # a path's layer, and the path without its number


def number_layers(leaves: Sequence[Leaf], named: str | None) -> list[Leaf]:
    """The leaves, of which those in numbered layers know their layer.

    Layers are what is numbered from 0 without a gap, at least two of them, with the same parameters
    in each. What is numbered inside of others is no candidate. With ``named`` their path or the end
    of it is given, and they may differ.

    Raises:
      InputError: several could be meant, or there are none of that name.
    """
    found: dict[str, Layers] = {}
    for leaf in leaves:
        for head, layers in _heads(leaf.leaf_path):
            found.setdefault(head, {})[leaf.leaf_path] = layers
    if named is None:
        found = {head: layers for head, layers in found.items() if _alike(layers, leaves)}
    else:
        names = [re.split("[/.]", head)[-1] for head in found] + list(found)
        found = {head: x for head, x in found.items() if re.search(_ends(named), head)}
        if not found:
            raise InputError(f"no numbered layers are named {named!r}{nearest(named, names)}")
    outer = [head for head in found if not any(_inside(head, other) for other in found)]
    if named is None and len({re.split("[/.]", head)[-1] for head in outer}) > 1:
        raise InputError(
            f"LayerWeights: several could be the layers: {', '.join(outer)}; "
            "say which by LayerWeights(..., named=)"
        )
    chosen = {path: (head, *at) for head in outer for path, at in found[head].items()}
    counts: dict[str, int] = {}
    for head, number, _ in chosen.values():
        counts[head] = max(counts.get(head, 0), number + 1)

    def numbered(leaf: Leaf) -> Leaf:
        if leaf.leaf_path not in chosen:
            return leaf._replace(num_layers=None, layer=None, stacked=False, path=leaf.leaf_path)
        head, number, path = chosen[leaf.leaf_path]
        return leaf._replace(path=path, layer=number, num_layers=counts[head], stacked=False)

    return [numbered(leaf) for leaf in leaves]


def _heads(path: str) -> list[tuple[str, tuple[int, str]]]:
    """What comes before each number of a path, the number, and the path without it."""
    return [
        (path[: found.start()], (int(found[1]), path[: found.start()] + path[found.end() :]))
        for found in _NUMBER.finditer(path)
    ]


def _ends(named: str) -> str:
    return rf"(^|[/.]){re.escape(named)}$"


def _inside(head: str, other: str) -> bool:
    """Whether a head lies in one of the layers below another."""
    return re.match(re.escape(other) + r"[/._]\d+([/.]|$)", head) is not None


def _alike(layers: Layers, leaves: Sequence[Leaf]) -> bool:
    """Whether layers are numbered from 0 without a gap and hold the same parameters."""
    ndim = {leaf.leaf_path: leaf.ndim for leaf in leaves}
    inside: dict[int, set] = {}
    for path, (number, name) in layers.items():
        inside.setdefault(number, set()).add((name, ndim[path]))
    same = all(names == inside.get(0) for names in inside.values())
    return len(inside) > 1 and same and sorted(inside) == list(range(len(inside)))
