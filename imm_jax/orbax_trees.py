"""Parameters out of checkpoints that other programs wrote with Orbax.

They have no manifest of ours: what is there and in which shapes, Orbax's own metadata say.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from imm_jax.checkpoint_files import MANIFEST
from imm_jax.checkpoints import orbax
from imm_jax.errors import InputError, nearest
from imm_jax.tree import find_layers, is_stacked, path_str

PyTree = Any

TREE, FOLDER = "_METADATA", "_CHECKPOINT_METADATA"  # of a tree, of a finished folder
ITEMS = ("", "default", "params", "state")  # below a step of a CheckpointManager
INSIDE = "params"  # of a train state


def find_tree(folder: Path) -> Path | None:
    """Where Orbax's tree lies in ``folder``; None where it is ours, or holds none.

    Raises:
      InputError: the checkpoint is not finished, or the folder holds steps.
    """
    if (folder / MANIFEST).exists():
        return None
    found = next((folder / item for item in ITEMS if (folder / item / TREE).is_file()), None)
    steps = sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    if found is None and steps and find_tree(steps[-1]) is not None:
        listed = ", ".join(step.name for step in steps)
        raise InputError(f"{folder}: holds the steps {listed}, expected one such as {steps[-1]}")
    if found is not None and not _is_finished(folder):
        raise InputError(f"{folder}: a checkpoint that Orbax did not finish")
    return found


def _is_finished(folder: Path) -> bool:
    """Whether Orbax says when it was done; older versions had no such file."""
    if ".orbax-checkpoint-tmp" in folder.name:
        return False
    try:
        return bool(json.loads((folder / FOLDER).read_bytes()).get("commit_timestamp_nsecs"))
    except FileNotFoundError:
        return True
    except (ValueError, AttributeError):
        return False


def read_params(place: Path, shapes: Mapping[str, tuple[int, ...]]) -> PyTree:
    """The parameters of a model out of a tree, alone or under ``params``, as NumPy arrays.

    Layers may be stacked as the model has them, or listed: ``layers/3/...``, ``layers_3/...``.

    Args:
      place: what :func:`find_tree` gave.
      shapes: of every parameter by its path, as the model has them.

    Raises:
      InputError: other paths or shapes, found before an array is read, or it cannot be read.
    """
    ocp, path = orbax(), place.absolute()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            stored = checkpointer.metadata(path).item_metadata.tree
            _check(place, _leaves(place, stored), shapes)
            item = {INSIDE: stored[INSIDE]} if _params(stored) is not stored else stored
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            wanted = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
            return to_model(place, checkpointer.restore(path, args=wanted), shapes)
    except InputError:
        raise
    except Exception as error:  # of many classes: tensorstore's, json's, Orbax's own
        reason = (str(error) or repr(error)).splitlines()[0]
        raise InputError(f"{place}: Orbax cannot read it ({reason:.200})") from error


def to_model(place: Path, tree: PyTree, shapes: Mapping[str, tuple[int, ...]]) -> PyTree:
    """The parameters of a model out of arrays as a checkpoint has them.

    Args, and what is raised, are those of :func:`read_params`. Listed arrays are freed once they
    are in their stack, where the caller does not hold them.
    """
    leaves = _leaves(place, tree)
    del tree
    _check(place, leaves, shapes)
    for path, shape in shapes.items():
        if path not in leaves:
            leaves[path] = np.stack([leaves.pop(one) for one in _listed(path, shape)])
    return unflatten_dict(leaves, sep="/")


def _params(tree: PyTree) -> PyTree:
    return tree.get(INSIDE, tree) if isinstance(tree, dict) else tree


def _leaves(place: Path, tree: PyTree) -> dict[str, Any]:
    """Parameters by their paths, a listed layer's as ``layers/3/...``."""
    found: dict[str, Any] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(_params(tree)):
        path = path_str(key_path)
        at = find_layers(path)
        path = path if at is None or at.number is None else at.of_layer(at.number)
        if path in found:
            raise InputError(f"{place}: {path} is there twice")
        found[path] = leaf
    return found


def _listed(path: str, shape: tuple[int, ...]) -> list[str]:
    """The paths of a stack's layers, where they are listed."""
    at = find_layers(path)
    return [at.of_layer(number) for number in range(shape[0])]


def _check(place: Path, leaves: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    found = {path: tuple(getattr(leaf, "shape", None) or ()) for path, leaf in leaves.items()}
    if any(find_layers(path) and not is_stacked(path) for path in found):
        shapes = {
            one: shape[1:] if is_stacked(path) else shape
            for path, shape in shapes.items()
            for one in (_listed(path, shape) if is_stacked(path) else [path])
        }
    for path, shape in shapes.items():
        if path not in found:
            extra = [other for other in found if other not in shapes]
            raise InputError(
                f"{place}: {path} is missing, which the model has with shape {list(shape)}"
                f"{nearest(path, extra)}"
            )
        if found[path] != shape:
            raise InputError(
                f"{place}: {path} has shape {list(found[path])}, but {list(shape)} in the model"
            )
        if not jnp.issubdtype(leaves[path].dtype, jnp.floating):
            raise InputError(f"{place}: {path} is {leaves[path].dtype}, expected floating numbers")
    extra = next((path for path in found if path not in shapes), None)
    if extra is not None:
        raise InputError(f"{place}: {extra} is there, which the model does not have")
