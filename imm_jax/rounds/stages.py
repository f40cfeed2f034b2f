"""Results that are made once: kept in files, so that a run that was cut off goes on from there."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from jaxtyping import PyTree

from imm_jax import checkpoints, hosts
from imm_jax.errors import InputError
from imm_jax.files import atomic_write, read_jsonl, write_jsonl

T = TypeVar("T")

logger = logging.getLogger("imm_jax")


class Later(Generic[T]):
    """A value made when it is first asked for."""

    def __init__(self, make: Callable[[], T]):
        self.make, self.made, self.value = make, False, None

    def __call__(self) -> T:
        if not self.made:
            self.value, self.made = self.make(), True
        return self.value

    def forget(self) -> None:
        """Frees the value; the next call makes it again."""
        self.made, self.value = False, None


@dataclasses.dataclass(frozen=True)
class Stages:
    """The results of one part of a run, in one folder.

    Every method takes the name of a result and how to make it. A result that is there is read; one
    that is missing or damaged is made from the results before it, and written whole or not at all.
    Of several processes the primary reads and writes files; what is missing all make together.
    """

    folder: Path

    def rows(self, name: str, make: Callable[[], list[dict]]) -> list[dict]:
        """Rows of JSON, in ``name.jsonl``."""
        path = self.folder / f"{name}.jsonl"
        rows = hosts.from_primary(lambda: _read(path, read_jsonl))
        if rows is None:
            rows = make()
            if hosts.is_primary():
                write_jsonl(path, rows)
        return rows

    def values(self, name: str, make: Callable[[], dict]) -> dict:
        """One JSON object, in ``name.json``."""
        path = self.folder / f"{name}.json"
        values = hosts.from_primary(lambda: _read(path, lambda path: json.loads(path.read_bytes())))
        if values is None:
            values = make()
            if hosts.is_primary():
                atomic_write(path, json.dumps(values, indent=1) + "\n")
        return values

    def params(self, name: str, like: PyTree, make: Callable[[], PyTree]) -> Later[PyTree]:
        """Parameters like ``like``, in the checkpoint ``name``; read when first asked for."""
        return Later(lambda: self._params(self.folder / name, like, make))

    def _params(self, folder: Path, like: PyTree, make: Callable[[], PyTree]) -> PyTree:
        if hosts.from_primary(folder.exists):
            try:
                return checkpoints.restore(folder, like)
            except checkpoints.DamagedCheckpoint as error:
                logger.warning(f"{error}; it is made again from what came before")
        params = make()
        checkpoints.save(folder, params)
        return params

    def drop(self, *names: str) -> None:
        """Deletes results that nothing will ask for again."""
        for name in names if hosts.is_primary() else ():
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _read(path: Path, read: Callable[[Path], T]) -> T | None:
    """What is in a file; None where it is missing or damaged."""
    if not path.exists():
        return None
    try:
        return read(path)
    except ValueError as error:
        where = "" if isinstance(error, InputError) else f"{path}: not valid JSON: "
        logger.warning(f"{where}{error}; it is made again")
        return None
