"""A trace of a few moments of a run, for XProf, TensorBoard and Perfetto."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import jax

from imm_jax.errors import InputError

T = TypeVar("T")

logger = logging.getLogger("imm_jax")

SKIPPED = 1  # steps of a stage before its trace: the first one compiles
STEPS = 3  # steps in a trace


class Profile:
    """Traces each stage once: the first time that it is done in this process.

    Of sampling and evaluating ``STEPS`` chunks of decode steps, of the fine-tune as many updates,
    each behind the first one, and a whole merge. Where a stage has a single step in this process
    the trace is of that one, compilation and all; so each first step is traced, and its trace
    deleted once there is another step. Every trace stands in a folder of its own,
    ``<folder>/<stage>/plugins/profile/<time>/``: an ``xplane.pb`` for XProf and TensorBoard, and a
    ``perfetto_trace.json.gz``. Regions bear the stage's name. So a trace's size does not grow with
    the run.

    Args:
      folder: where to; made when there is something to write.

    Raises:
      InputError: it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._seen: dict[str, int] = {}  # steps of each stage; those traced are at the limit
        self._first: dict[str, set[Path]] = {}  # traces of first steps
        self._stage: str | None = None
        self._failed = False
        self._regions = ExitStack()
        above = (self.folder.absolute(), *self.folder.absolute().parents)
        there = next(path for path in above if os.path.lexists(path))
        if not there.is_dir():
            raise InputError(f"profile: {folder} cannot be written, for {there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"profile: {folder} cannot be written (no permission in {there})")

    def step(self, stage: str) -> None:
        """To be called before every small step of a stage."""
        seen = self._seen.get(stage, 0)
        self._seen[stage] = seen + 1
        if self._stage is not None:
            self._regions.close()
        if seen == SKIPPED:
            self._discard(stage)
        if seen in (0, SKIPPED):
            self._start(stage)
        elif seen == SKIPPED + STEPS:
            self.stop(stage)
        if self._stage is not None:
            self._regions.enter_context(jax.profiler.StepTraceAnnotation(stage, step_num=seen))

    def whole(self, stage: str, work: Callable[[], T]) -> T:
        """``work()``, traced if no call for this stage was before."""
        if self._seen.get(stage) or self._stage is not None:
            return work()
        self._seen[stage] = SKIPPED + STEPS + 1
        self._start(stage)
        try:
            with jax.profiler.TraceAnnotation(stage):
                return jax.block_until_ready(work())
        finally:
            self.stop(stage)

    def _start(self, stage: str) -> None:
        if self._failed or self._stage is not None:
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a million calls and more
        jax.profiler.start_trace(
            self.folder / stage, create_perfetto_trace=True, profiler_options=options
        )
        self._stage = stage

    def stop(self, stage: str) -> None:
        """Writes the trace of ``stage``, if it is the one under way."""
        if self._stage != stage:
            return
        self._regions.close()
        began, only = time.monotonic(), self._seen[stage] <= SKIPPED
        written = self._write(stage)
        if only:
            self._first[stage] = written
        else:
            self._seen[stage] = SKIPPED + STEPS + 1
        if written:
            what = "a trace of the first step, which may compile" if only else "a trace"
            seconds = time.monotonic() - began
            logger.info(f"{self.folder / stage}: {what}, written in {seconds:.1f} s")

    def _discard(self, stage: str) -> None:
        """Deletes the trace of a first step, which ends if it is under way."""
        written = self._write(stage) if self._stage == stage else self._first.pop(stage, set())
        for folder in written:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, stage: str) -> set[Path]:
        """Ends the trace under way, and returns the folders that it made, none where it failed."""
        place, self._stage = self.folder / stage, None
        before = set(place.glob("plugins/profile/*"))
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # a full disk must not end the run
            logger.warning(f"{place}: the trace could not be written ({error})")
            self._failed = True  # the profiler may not let go of it
            return set()
        return set(place.glob("plugins/profile/*")) - before
