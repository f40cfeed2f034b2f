"""Answers judged in worker processes: mathematics by math-verify, other tasks by reasoning-gym.

math-verify guards itself with signals, which work only in a main thread and not while SymPy's C
code runs. So each comparison runs in a process of ours, with a time limit that kills it.
"""

import atexit
import contextlib
import json
import logging
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

logger = logging.getLogger("imm_jax")

WORKER = Path(__file__).with_name("_worker.py")
TIME_LIMIT = 5.0  # seconds a comparison
# reasoning-gym makes a question anew before it scores an answer; a few take seconds to make.
TIME_LIMITS = {"math": TIME_LIMIT, "reasoning_gym": 60.0}
PACKAGES = {"math": "math-verify", "reasoning_gym": "reasoning-gym"}
START_LIMIT = 120.0  # seconds to import SymPy on a busy machine
MAX_WORKERS = 8


class Verifier:
    """Worker processes that judge answers; started when first needed, then kept.

    Safe to call from any thread, one call at a time. A context manager; ``close`` ends the workers.

    Args:
      judge: ``"math"`` or ``"reasoning_gym"``.
      workers: how many processes at most; by default one a core, 8 at most.
      time_limit: seconds for one comparison, by default 5 or 60. One that takes longer counts as
        not equal, its process is killed and another takes its place.
      command: the worker's command line (tests bring workers that hang).
    """

    def __init__(
        self,
        workers: int | None = None,
        time_limit: float | None = None,
        command: Sequence[str] | None = None,
        judge: str = "math",
    ):
        self.package = PACKAGES[judge]
        self.time_limit = TIME_LIMITS[judge] if time_limit is None else time_limit
        self.command = list(command or (sys.executable, "-P", str(WORKER), judge))
        self.size = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self.workers: list[_Worker] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_):
        self.close()

    def equivalent(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """One verdict for each (gold, answer) pair, in order.

        For mathematics both are LaTeX or plain; for reasoning-gym gold is ``Example.check``.

        A comparison that hangs, or takes its process down, is False and logged as a warning.

        Raises:
          RuntimeError: the worker processes cannot start (the package is not installed).
        """
        distinct = list(dict.fromkeys(pairs))  # answers repeat over samples
        jobs: queue.SimpleQueue = queue.SimpleQueue()
        for pair in distinct:
            jobs.put(pair)
        verdicts: dict[tuple[str, str], bool] = {}
        with self.lock:
            while len(self.workers) < min(self.size, len(distinct)):
                self.workers.append(_Worker(self.command, self.package))
            workers = self.workers[: len(distinct)]
            if not workers:
                return []
            with ThreadPoolExecutor(len(workers)) as pool:
                try:
                    futures = [
                        pool.submit(self._work, worker, jobs, verdicts) for worker in workers
                    ]
                    for future in futures:
                        future.result()
                except BaseException:
                    while not jobs.empty():
                        jobs.get()
                    self._end()  # a worker in an unknown state must not answer the next call
                    raise
        return [verdicts[pair] for pair in pairs]

    def _work(self, worker: "_Worker", jobs: queue.SimpleQueue, verdicts: dict) -> None:
        while True:
            try:
                pair = jobs.get_nowait()
            except queue.Empty:
                return
            try:
                verdicts[pair] = worker.compare(*pair, self.time_limit)
            except (TimeoutError, EOFError) as error:
                logger.warning(f"{self.package}: {str(pair)[:200]}: {error}; counted as not equal")
                verdicts[pair] = False

    def close(self) -> None:
        """Ends the workers and waits for them; a later call starts new ones."""
        with self.lock:
            self._end()

    def _end(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []


class _Worker:
    """One process. Started by its first comparison, and again after it was killed."""

    def __init__(self, command: list[str], package: str):
        self.command, self.package = command, package
        self.process: subprocess.Popen | None = None
        self.pending = b""

    def compare(self, gold: str, answer: str, limit: float) -> bool:
        """Raises TimeoutError or EOFError; the process is then gone."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        job = json.dumps({"gold": gold, "answer": answer, "limit": limit}) + "\n"
        try:
            self.process.stdin.write(job.encode())
            self.process.stdin.flush()
            return self._reply(limit)["verdict"]
        except OSError as error:  # TimeoutError is one too
            self.end()
            if isinstance(error, TimeoutError):
                raise
            raise EOFError("its process died") from error
        except EOFError:
            self.end()
            raise

    def _start(self) -> None:
        self.end()
        # Not multiprocessing: its spawn runs the caller's main module again, its fork copies JAX.
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(),
        )
        try:
            ready = self._reply(START_LIMIT)
        except (TimeoutError, EOFError) as error:
            self.end()
            raise RuntimeError(f"{self.package}'s worker process cannot start: {error}") from error
        if "error" in ready:
            self.end()
            raise RuntimeError(f"{self.package}'s worker process cannot start: {ready['error']}")

    def _reply(self, limit: float) -> dict:
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no verdict within {limit:g} s")
                chunk = os.read(self.process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise EOFError("its process died")
                self.pending += chunk
        line, _, self.pending = self.pending.partition(b"\n")
        return json.loads(line)

    def end(self) -> None:
        process, self.process, self.pending = self.process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not yet written has no reader
                pipe.close()


def worker_environment() -> dict[str, str]:
    """This process's, with Python's hash seed fixed: reasoning-gym's questions depend on it."""
    return os.environ | {"PYTHONHASHSEED": "0"}


_shared: dict[str, Verifier] = {}
_shared_lock = threading.Lock()


def shared_verifier(judge: str = "math") -> Verifier:
    """The verifier that grading uses by default; its workers end with this process."""
    with _shared_lock:
        if judge not in _shared:
            _shared[judge] = Verifier(judge=judge)
            atexit.register(_shared[judge].close)
        return _shared[judge]
