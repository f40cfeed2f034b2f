"""The weights of a merged model: shards beside the final folder, taken up again after a kill."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imm_jax.errors import InputError
from imm_jax.files import PART, atomic_write
from imm_jax.models.huggingface.tensor_files import Planned, read_header, write_pieces
from imm_jax.models.huggingface.weights import INDEX, WEIGHTS

LOCK, PLAN = ".lock", ".plan.json"  # in an unfinished folder


class Shard(NamedTuple):
    """One file of weights: its name, and its tensors in the order in which they are written."""

    file: str
    tensors: list[Planned]

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def cut(tensors: Sequence[Planned], limit: float) -> list[Shard]:
    """Distributes tensors over files of at most ``limit`` bytes, unless one alone is larger."""
    groups: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        size += tensor.nbytes
        groups[-1].append(tensor)
    stem, ending = WEIGHTS.rsplit(".", 1)
    count = len(groups)
    names = [f"{stem}-{n:05d}-of-{count:05d}.{ending}" for n in range(1, count + 1)]
    # Wider types first, so that every tensor is aligned.
    return [
        Shard(WEIGHTS if count == 1 else name, sorted(group, key=lambda t: -t.dtype.itemsize))
        for name, group in zip(names, groups, strict=True)
    ]


def require_new(folder: Path) -> None:
    """Refuses a folder that holds something, and a file.

    Raises:
      InputError: it is one of these.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: exists, expected a new folder")


@contextmanager
def unfinished(
    folder: Path, plan: dict[str, Any], shards: Sequence[Shard], *, keep: bool = True
) -> Iterator[Path]:
    """Yields the folder beside ``folder`` that becomes it when the block ends without error.

    Shards that a killed process with an equal ``plan`` finished there are kept; anything else there
    is deleted. An error in the block deletes all of it; an interrupt keeps it, unless ``keep`` is
    False.

    Raises:
      InputError: another process is at it, or it cannot be written.
    """
    path, beside = Path(os.path.abspath(folder)), _beside(folder)
    made = [up for up in path.parents if not up.exists()]
    beside.mkdir(parents=True, exist_ok=True)
    with open(beside / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another process is writing it") from None
        try:
            _sweep(beside, plan, {shard.file for shard in shards} if keep else set())
            yield beside
            for name in (PLAN, LOCK):
                (beside / name).unlink()
            if path.is_dir():
                path.rmdir()  # an empty one: see require_new
            os.rename(beside, path)
        except BaseException as error:
            if keep and not isinstance(error, (InputError, OSError)):
                raise
            _unmake(beside, made)
            if isinstance(error, OSError) and _is_about(error, beside):
                why = error.strerror or error
                raise InputError(f"{folder}: cannot be written ({why})") from error
            raise


def _beside(folder: Path) -> Path:
    path = Path(os.path.abspath(folder))
    return path.parent / f".{path.name}{PART}"


def _sweep(beside: Path, plan: dict[str, Any], finished: set[str]) -> None:
    """Leaves the ``finished`` files of the same plan there, and nothing else."""
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    text = json.dumps({"plan": digest}) + "\n"
    same = (beside / PLAN).is_file() and (beside / PLAN).read_bytes() == text.encode()
    kept = {LOCK, PLAN, *finished} if same else {LOCK}
    for path in beside.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not same:
        atomic_write(beside / PLAN, text)


def _unmake(beside: Path, made: Sequence[Path]) -> None:
    shutil.rmtree(beside, ignore_errors=True)
    for path in made:  # innermost first
        with suppress(OSError):  # somebody else's file is there by now
            path.rmdir()


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether an error speaks of a file in ``folder``, as the target of a copy or otherwise.

    A full disk names no file.
    """
    files = [file for file in (error.filename, error.filename2) if file is not None]
    return not files or any(Path(os.fsdecode(file)).is_relative_to(folder) for file in files)


def write_shards(
    folder: Path,
    shards: Sequence[Shard],
    tensors: Callable[[Sequence[str]], Iterable[Iterable[np.ndarray]]],
    finished: Callable[[int], None],
) -> None:
    """Writes the shards that ``folder`` does not have yet, then their index.

    Args:
      folder: where.
      shards: what :func:`cut` made.
      tensors: makes the tensors of these names, each as consecutive 1-D pieces.
      finished: told the bytes of shards that are there already.
    """
    for shard in shards:
        path = folder / shard.file
        if path.is_file():
            read_header(path)  # whole, or an InputError says what is wrong with it
            finished(shard.nbytes)
            continue
        beside = folder / (shard.file + PART)
        write_pieces(beside, shard.tensors, tensors([tensor.name for tensor in shard.tensors]))
        os.rename(beside, path)
    if len(shards) > 1:
        where = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
        total = sum(shard.nbytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        atomic_write(folder / INDEX, json.dumps(index, indent=2) + "\n")


def require_room(folder: Path, shards: Sequence[Shard]) -> None:
    """Refuses a merge that the disk has no room for.

    Raises:
      InputError: with the bytes needed and free.
    """
    parent = next(up for up in Path(os.path.abspath(folder)).parents if up.is_dir())
    beside = _beside(folder)
    there = sum(path.stat().st_size for path in beside.glob("*")) if beside.is_dir() else 0
    needed, free = sum(shard.nbytes for shard in shards), shutil.disk_usage(parent).free + there
    if needed > free:
        raise InputError(f"{folder}: needs {needed:,} bytes, and the disk has {free:,}")
