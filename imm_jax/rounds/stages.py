"""Results that are made once: kept in files, so that a run that was cut off goes on from there."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Generic, TypeVar

import jax
from jaxtyping import PyTree

from imm_jax import checkpoints, hosts
from imm_jax.errors import InputError
from imm_jax.files import atomic_write, read_jsonl, write_jsonl
from imm_jax.rounds.costs import Meter

T = TypeVar("T")

logger = logging.getLogger("imm_jax")


class Later(Generic[T]):
    """A value made when it is first asked for."""

    def __init__(self, make: Callable[[], T]):
        self.make, self.made, self.value = make, False, None
        self.places: list[jax.sharding.Sharding] | None = None  # of arrays that are put aside

    def __call__(self) -> T:
        if not self.made:
            self.value, self.made = self.make(), True
        if self.places is not None:
            leaves, tree = jax.tree.flatten(self.value)
            self.value, self.places = tree.unflatten(jax.device_put(leaves, self.places)), None
        return self.value

    def put_aside(self) -> None:
        """Moves its arrays, if they are made, to the host's memory until it is next asked for."""
        if self.made and self.places is None:
            leaves, tree = jax.tree.flatten(self.value)
            places = [leaf.sharding for leaf in leaves]
            host = [place.with_memory_kind("pinned_host") for place in places]
            self.value, self.places = tree.unflatten(jax.device_put(leaves, host)), places

    def forget(self) -> None:
        """Frees the value; the next call makes it again."""
        self.made, self.value, self.places = False, None, None


@dataclasses.dataclass(frozen=True)
class Stages:
    """The results of one part of a run, in one folder.

    Every method takes the name of a result and how to make it. A result that is there is read; one
    that is missing or damaged is made from the results before it, and written whole or not at all.
    Of several processes the primary reads and writes files; what is missing all make together.

    Attributes:
      folder: holds the results.
      meter: keeps what they cost beside them.
    """

    folder: Path
    meter: Meter = dataclasses.field(default_factory=Meter)

    def measure(self, stage: str) -> AbstractContextManager[None]:
        """Inside, results of this stage are made."""
        return self.meter.measure(self.folder, stage)

    def traced(self, work: Callable[..., T], *args) -> T:
        """``work(*args)``; its function's name is the stage of the trace, if one is wanted."""
        if self.meter.profile is None:
            return work(*args)
        return self.meter.profile.whole(work.__name__, lambda: work(*args))

    def rows(self, name: str, make: Callable[[], list[dict]]) -> list[dict]:
        """Rows of JSON, in ``name.jsonl``."""
        path = self.folder / f"{name}.jsonl"
        rows = hosts.from_primary(lambda: _read(path, read_jsonl))
        if rows is None:
            rows = make()
            if hosts.is_primary():
                write_jsonl(path, rows)
            self.meter.keep()
        return rows

    def values(self, name: str, make: Callable[[], dict]) -> dict:
        """One JSON object, in ``name.json``."""
        path = self.folder / f"{name}.json"
        values = hosts.from_primary(lambda: _read(path, lambda path: json.loads(path.read_bytes())))
        if values is None:
            values = make()
            if hosts.is_primary():
                atomic_write(path, json.dumps(values, indent=1) + "\n")
            self.meter.keep()
        return values

    def params(
        self, name: str, like: PyTree, make: Callable[[], PyTree], stage: str
    ) -> Later[PyTree]:
        """Parameters like ``like``, in the checkpoint ``name``; read when first asked for.

        Making and writing them are this stage.
        """
        return Later(lambda: self._params(self.folder / name, like, make, stage))

    def _params(self, folder: Path, like: PyTree, make: Callable[[], PyTree], stage: str) -> PyTree:
        if hosts.from_primary(folder.exists):
            try:
                return checkpoints.restore(folder, like)
            except checkpoints.DamagedCheckpoint as error:
                logger.warning(f"{error}; it is made again from what came before")
        with self.measure(stage):
            params = make()
            checkpoints.save(folder, params)
            self.meter.keep()
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
