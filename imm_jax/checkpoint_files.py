"""The folder of a checkpoint: made beside, sealed by a manifest, checked when read.

It is ``{data-N/ (Orbax), manifest.json}``. The manifest is written last and holds the size and
SHA-256 of every file, so that an unfinished, truncated or altered checkpoint is found out.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imm_jax import hosts
from imm_jax.errors import InputError
from imm_jax.files import atomic_write
from imm_jax.tree import num_bytes, path_str

PyTree = Any

MANIFEST = "manifest.json"
FORMAT = 1


class DamagedCheckpoint(InputError):
    """A checkpoint with a missing, truncated or altered file; the message names the file."""


def describe(folder: Path, tree: PyTree) -> dict[str, str]:
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


def begin(folder: Path, tree: PyTree) -> tuple[Path, str]:
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
        raise write_error(folder, error) from error
    if free < size:
        need = f"{size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
        raise InputError(f"{folder}: not enough room on the disk ({need})")
    return str(root), f"data-{max(numbers, default=-1) + 1}"


def commit(folder: Path, root: Path, data: str, leaves: dict[str, str]) -> None:
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
        raise write_error(folder, error) from error
    for old in folder.glob("data-*"):
        if old.name != data:
            shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path) -> dict:
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


def check_leaves(folder: Path, stored: dict[str, str], like: PyTree) -> None:
    """Raises InputError where the manifest's leaves are not those of ``like``."""
    wanted = describe(folder, like)
    for path in wanted.keys() | stored.keys():
        found, expected = stored.get(path, "nothing"), wanted.get(path, "nothing")
        if found != expected:
            raise InputError(f"{folder}: {path} is {found} there, expected {expected}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_error(folder: Path, error: Exception) -> InputError:
    """What went wrong with writing, in one line."""
    reason = getattr(error, "strerror", None) or (str(error) or repr(error)).splitlines()[0]
    if number := re.search(r"os_error_code='(\d+)'", reason):  # at the end of a long story
        reason = os.strerror(int(number[1]))
    return InputError(f"{folder}: the checkpoint could not be written ({reason})")
