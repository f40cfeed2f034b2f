"""The newest few checkpoints of a loop, written while it goes on."""

import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from imm_jax import hosts
from imm_jax.checkpoint_files import DamagedCheckpoint, begin, commit, describe, write_error
from imm_jax.checkpoints import handler, orbax, restore, save_args
from imm_jax.errors import InputError

PyTree = Any

logger = logging.getLogger("imm_jax")


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
        leaves = describe(folder, tree)
        if self._checkpointer is None:
            self._checkpointer = orbax().AsyncCheckpointer(handler())
            self._writer = ThreadPoolExecutor(1, "checkpoint")
        root, data = begin(folder, tree)
        try:
            self._checkpointer.save((root / data).absolute(), args=save_args(tree))
        except Exception as error:
            raise write_error(folder, error) from error
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
            raise write_error(self._path(step), error) from error
        if not hosts.is_primary():
            return
        commit(self._path(step), root, data, leaves)
        kept = [s for s in self._steps() if s <= step][-self.keep :]
        for other in set(self._steps()) - set(kept):
            gone = self.folder / f".step_{other:08d}.gone"  # renamed first: never half a folder
            os.rename(self._path(other), gone)
            shutil.rmtree(gone, ignore_errors=True)
