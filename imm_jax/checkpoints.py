"""Trees of arrays on disk: Orbax behind one small door, whole or absent, checked when read.

A checkpoint is a folder ``{data-N/ (Orbax), manifest.json}``. The manifest is written last and
holds the size and SHA-256 of every file, so that an unfinished, truncated or altered checkpoint is
found out. One run writes to a folder at a time. Of several processes each writes and reads its part
of the arrays, on a disk that all see; the primary does the rest.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imm_jax import hosts
from imm_jax.errors import InputError
from imm_jax.files import atomic_write
from imm_jax.tree import num_bytes, path_str

PyTree = Any

logger = logging.getLogger("imm_jax")

MANIFEST = "manifest.json"
FORMAT = 1


class DamagedCheckpoint(InputError):
    """A checkpoint with a missing, truncated or altered file; the message names the file."""


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
    leaves = _describe(folder, tree)
    with _orbax().Checkpointer(_handler()) as checkpointer:
        root, data = _begin(folder, tree)
        try:
            checkpointer.save((root / data).absolute(), args=_save_args(tree))
        except Exception as error:
            raise _write_error(folder, error) from error
        hosts.from_primary(lambda: _commit(folder, root, data, leaves))


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
    manifest = _verify(folder)
    data = (folder / manifest["data"]).absolute()
    ocp = _orbax()
    with ocp.Checkpointer(_handler()) as checkpointer:
        if like is None:
            stored = checkpointer.metadata(data).item_metadata.tree
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            return checkpointer.restore(data, args=ocp.args.PyTreeRestore(restore_args=args))
        _check_leaves(folder, manifest["leaves"], like)
        # Orbax reads the structure alone from `item`; arrays there would be kept alive for nothing.
        item = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        args = jax.tree.map(_restore_args, like)
        return checkpointer.restore(data, args=ocp.args.PyTreeRestore(item=item, restore_args=args))


class StepCheckpoints:
    """The newest few checkpoints of a loop, written in the background.

    Use as a context manager, or call :meth:`wait` before the process ends.

    Args:
      folder: holds one checkpoint a step, ``step_00000120/``; made at the first save.
      keep: how many of the newest steps stay.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2):
        if keep < 1:
            raise InputError(f"StepCheckpoints: keep is {keep}, expected 1 or more")
        self.folder, self.keep = Path(folder), keep
        self._writer: ThreadPoolExecutor | None = None
        self._checkpointer = None
        self._pending: Future | None = None
        for rest in self.folder.glob(".step_*") if hosts.is_primary() else ():
            shutil.rmtree(rest, ignore_errors=True)  # what a killed process left

    def __enter__(self) -> "StepCheckpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps present, oldest first, whether whole or damaged."""
        return hosts.from_primary(self._steps)

    def _steps(self) -> list[int]:
        names = (path.name.removeprefix("step_") for path in self.folder.glob("step_*"))
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, step: int, tree: PyTree) -> None:
        """Copies ``tree`` to the host and returns; the rest happens in the background.

        ``tree`` may be donated or changed as soon as this returns. Checkpoints of later steps,
        which a restart from an older one leaves behind, are removed once this one is whole.

        Raises:
          InputError: as :func:`save`, for this save or for the one before.
        """
        self.wait()
        folder = self._path(step)
        leaves = _describe(folder, tree)
        if self._checkpointer is None:
            self._checkpointer = _orbax().AsyncCheckpointer(_handler())
            self._writer = ThreadPoolExecutor(1, "checkpoint")
        root, data = _begin(folder, tree)
        try:
            self._checkpointer.save((root / data).absolute(), args=_save_args(tree))
        except Exception as error:
            raise _write_error(folder, error) from error
        self._pending = self._writer.submit(self._finish, step, root, data, leaves)

    def restore_latest(self, like: PyTree | None = None) -> tuple[int, PyTree] | None:
        """The newest whole checkpoint as ``(step, tree)``, or None; damaged ones are logged."""
        self.wait()
        for step in reversed(self.steps()):
            try:
                return step, restore(self._path(step), like)
            except DamagedCheckpoint as error:
                logger.warning(f"{error}; using the checkpoint before it")
        return None

    def wait(self) -> None:
        """Returns once the save under way is on disk; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits, then frees the threads."""
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                self._writer.shutdown()
                self._checkpointer.close()
                self._checkpointer = self._writer = None

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _finish(self, step: int, root: Path, data: str, leaves: dict) -> None:
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            raise _write_error(self._path(step), error) from error
        if not hosts.is_primary():
            return
        _commit(self._path(step), root, data, leaves)
        kept = [s for s in self._steps() if s <= step][-self.keep :]
        for other in set(self._steps()) - set(kept):
            gone = self.folder / f".step_{other:08d}.gone"  # renamed first: never half a folder
            os.rename(self._path(other), gone)
            shutil.rmtree(gone, ignore_errors=True)


def _orbax():
    """Imports Orbax late (it is slow to import) and keeps its log out of ours."""
    import orbax.checkpoint as ocp

    absl = logging.getLogger("absl")
    if absl.level == logging.NOTSET:  # what goes wrong reaches the caller as an exception
        absl.setLevel(logging.CRITICAL)
    return ocp


def _handler():
    # Compressing floats takes three times as long and saves 8 % of the bytes.
    return _orbax().PyTreeCheckpointHandler(use_zarr3=True, use_compression=False)


def _save_args(tree: PyTree):
    return _orbax().args.PyTreeSave(tree)


def _restore_args(leaf):
    ocp = _orbax()
    if isinstance(leaf, np.ndarray | np.generic):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _describe(folder: Path, tree: PyTree) -> dict[str, str]:
    """``{"layers/attn/q/kernel": "float32[30, 576, 576]"}`` for every leaf."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            kind = type(leaf).__name__
            raise InputError(f"{folder}: {path_str(path)} is a {kind}, expected an array")
        if leaf.size == 0:
            raise InputError(f"{folder}: {path_str(path)} is empty, which Orbax cannot save")
        described[path_str(path)] = f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    if not described:
        raise InputError(f"{folder}: the tree to save holds no array")
    return described


def _begin(folder: Path, tree: PyTree) -> tuple[Path, str]:
    """Makes room: returns where to build the checkpoint and the name of its data folder.

    A new checkpoint is built beside and renamed; in one that exists the manifest is swapped.
    """
    root, data = hosts.from_primary(lambda: _make_room(folder, num_bytes(tree)))
    return Path(root), data


def _make_room(folder: Path, size: int) -> tuple[str, str]:
    try:
        there = folder.exists()
        # A killed save leaves "data-3.orbax-checkpoint-tmp", which counts.
        numbers = [int(p.stem.removeprefix("data-")) for p in folder.glob("data-[0-9]*")]
        if there and not (folder / MANIFEST).exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: holds something other than a checkpoint, left as it is")
        root = folder if there else folder.with_name(f".{folder.name}.part")
        if not there:
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise _write_error(folder, error) from error
    if free < size:
        need = f"{size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
        raise InputError(f"{folder}: not enough room on the disk ({need})")
    return str(root), f"data-{max(numbers, default=-1) + 1}"


def _commit(folder: Path, root: Path, data: str, leaves: dict[str, str]) -> None:
    """Seals the finished data folder: the manifest makes it the checkpoint."""
    try:
        files = {
            str(path.relative_to(root)): {"size": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted((root / data).rglob("*"))
            if path.is_file()
        }
        manifest = {"format": FORMAT, "data": data, "leaves": leaves, "files": files}
        atomic_write(root / MANIFEST, json.dumps(manifest, indent=1))
        if root != folder:
            os.rename(root, folder)
    except OSError as error:
        raise _write_error(folder, error) from error
    for old in folder.glob("data-*"):
        if old.name != data:
            shutil.rmtree(old, ignore_errors=True)


def _verify(folder: Path) -> dict:
    """Reads the manifest and checks each file against it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no checkpoint there")
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != FORMAT:
            raise DamagedCheckpoint(
                f"{path}: checkpoint format {manifest['format']!r}, expected {FORMAT}"
            )
        files = {folder / k: (v["size"], v["sha256"]) for k, v in manifest["files"].items()}
        present = bool(files) and (folder / manifest["data"]).is_dir()
        dict(manifest["leaves"])
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{path}: missing, the checkpoint was not finished") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"{path}: not a readable manifest") from error
    if not present:
        raise DamagedCheckpoint(f"{path}: names no data folder that exists")
    for path, (size, digest) in files.items():
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: missing from the checkpoint")
        if path.stat().st_size != size:
            raise DamagedCheckpoint(f"{path}: {path.stat().st_size} bytes, expected {size}")
        if _sha256(path) != digest:
            raise DamagedCheckpoint(f"{path}: altered since it was written (SHA-256 differs)")
    return manifest


def _check_leaves(folder: Path, stored: dict[str, str], like: PyTree) -> None:
    wanted = _describe(folder, like)
    for path in wanted.keys() | stored.keys():
        found, expected = stored.get(path, "nothing"), wanted.get(path, "nothing")
        if found != expected:
            raise InputError(f"{folder}: {path} is {found} there, expected {expected}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_error(folder: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or (str(error) or repr(error)).splitlines()[0]
    if number := re.search(r"os_error_code='(\d+)'", reason):  # at the end of a long story
        reason = os.strerror(int(number[1]))
    return InputError(f"{folder}: the checkpoint could not be written ({reason})")
