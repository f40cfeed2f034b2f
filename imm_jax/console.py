"""What the command shares with the terminal: signals in, log lines out."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("imm_jax")


class Stop:
    """Turns the first SIGINT or SIGTERM into a polite request; the second acts at once."""

    signal: int | None = None

    def __enter__(self) -> Callable[[], bool]:
        Stop.signal = None
        self.old = {number: signal.signal(number, self._note) for number in
                    (signal.SIGINT, signal.SIGTERM)}  # fmt: skip
        return lambda: Stop.signal is not None

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        Stop.signal = number
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"stopping at the next step; once more to stop at once\n")
        for number, handler in self.old.items():
            signal.signal(number, handler)


def keep_stdout_for_results() -> None:
    """What C++ libraries print goes to standard error: gloo says whom it is connected to."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(own, "w", buffering=1, encoding=sys.stdout.encoding)  # noqa: SIM115


class _Handler(logging.StreamHandler):
    """Log lines that do not cut through a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
        else:
            super().emit(record)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Our log lines on standard error; afterwards logging is as it was."""
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


def silence_closed_loops() -> None:
    """Drops what threads of a checkpoint that could not be written say after it was reported."""
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _unraisable(report) -> None:
    if str(report.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(report)
