"""Trees of arrays on disk: Orbax behind one small door, whole or absent, checked when read.

One run writes to a folder at a time. Of several processes each writes and reads its part of the
arrays, on a disk that all see; the primary does the rest.
"""

import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imm_jax import hosts
from imm_jax.checkpoint_files import (
    DamagedCheckpoint,
    begin,
    check_leaves,
    commit,
    describe,
    verify,
    write_error,
)

PyTree = Any

__all__ = ["DamagedCheckpoint", "restore", "save"]


def save(folder: str | os.PathLike, tree: PyTree) -> None:
    """Writes ``tree`` to ``folder``, where it takes the place of a checkpoint already there.

    A kill at any moment leaves the old state (the old checkpoint, or no folder) or the new one.

    Args:
      folder: where; its parents are made.
      tree: a pytree of jax or NumPy arrays, at least one; values and dtypes are kept bit for bit.

    Raises:
      InputError: a leaf is not an array or holds no element, ``folder`` holds something else, the
        disk is full, or the folder cannot be written.
    """
    folder = Path(folder)
    leaves = describe(folder, tree)
    with orbax().Checkpointer(handler()) as checkpointer:
        root, data = begin(folder, tree)
        try:
            checkpointer.save((root / data).absolute(), args=save_args(tree))
        except Exception as error:
            raise write_error(folder, error) from error
        hosts.from_primary(lambda: commit(folder, root, data, leaves))


def restore(folder: str | os.PathLike, like: PyTree | None = None) -> PyTree:
    """Reads the checkpoint in ``folder`` after checking every file of it.

    Args:
      folder: a folder written by :func:`save`.
      like: a tree with the structure, shapes and dtypes stored: jax arrays or ``ShapeDtypeStruct``
        give jax arrays on the leaf's sharding (the default device where it has none), NumPy arrays
        give NumPy arrays. Named tuples come back only through ``like``. None gives nested dicts and
        lists of NumPy arrays.

    Raises:
      DamagedCheckpoint: a file is missing, truncated or altered.
      InputError: there is no such folder, or it does not hold what ``like`` describes.
    """
    folder = Path(folder)
    manifest = verify(folder)
    data = (folder / manifest["data"]).absolute()
    ocp = orbax()
    with ocp.Checkpointer(handler()) as checkpointer:
        if like is None:
            stored = checkpointer.metadata(data).item_metadata.tree
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            return checkpointer.restore(data, args=ocp.args.PyTreeRestore(restore_args=args))
        check_leaves(folder, manifest["leaves"], like)
        # Orbax reads the structure alone from `item`; arrays there would be kept alive for nothing.
        item = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        args = jax.tree.map(_restore_args, like)
        return checkpointer.restore(data, args=ocp.args.PyTreeRestore(item=item, restore_args=args))


def orbax():
    """Imports Orbax late (it is slow to import) and keeps its log out of ours."""
    import orbax.checkpoint as ocp

    absl = logging.getLogger("absl")
    if absl.level == logging.NOTSET:  # what goes wrong reaches the caller as an exception
        absl.setLevel(logging.CRITICAL)
    return ocp


def handler():
    """Orbax's reader and writer of a tree, as a new object."""
    # Compressing floats takes three times as long and saves 8 % of the bytes.
    return orbax().PyTreeCheckpointHandler(use_zarr3=True, use_compression=False)


def save_args(tree: PyTree):
    """What a checkpointer is told to save."""
    return orbax().args.PyTreeSave(tree)


def _restore_args(leaf):
    ocp = orbax()
    if isinstance(leaf, np.ndarray | np.generic):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
