"""Progress of long work: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import threading
import time

logger = logging.getLogger("imm_jax")

LOG_EVERY_SECONDS = 30.0
WAIT_SECONDS = 30.0  # without anything done, before a line says so


class Progress:
    """Counts work done, with its rate and the time that remains.

    Usable as a context manager. On a terminal it draws a tqdm bar on standard error; elsewhere it
    logs a line through the ``imm_jax`` logger at most every 30 seconds and one at the end; as a
    context manager also one where nothing is done after 30 seconds (programs are compiled first).

    Args:
      label: what is being done, for example ``"round 1 / imm: sample"``.
      total: how many units there are, or None where that is not known.
      unit: the name of one unit (``"tok"``, ``"step"``, ``"B"``).
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "it"):
        self.label, self.total, self.unit = label, total, unit
        self.done, self.skipped, self.note = 0, 0, ""
        self.start = self.logged = time.monotonic()
        self.said: tuple[int, str] | None = None
        self.bar, self.waiting = None, None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                desc=label, total=total, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True
            )

    def __enter__(self) -> "Progress":
        if self.bar is None:
            self.waiting = threading.Timer(WAIT_SECONDS, self._wait)
            self.waiting.daemon = True
            self.waiting.start()
        return self

    def __exit__(self, kind, *_):
        if self.waiting is not None:
            self.waiting.cancel()
        if self.bar is not None:
            self.bar.close()
        if kind is None and (self.done, self.note) != self.said:
            self._log()

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds ``count`` finished units; ``note`` is shown beside the rate."""
        self.done, self.note = self.done + count, note
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.logged > LOG_EVERY_SECONDS:
            self._log()

    def skip(self, count: int) -> None:
        """Adds ``count`` units that were done before, which say nothing of the rate."""
        self.done, self.skipped = self.done + count, self.skipped + count
        if self.bar is not None:
            self.bar.initial += count
            self.bar.n += count
            self.bar.refresh()

    def _wait(self) -> None:
        if self.done == self.skipped:
            logger.info(f"{self.label}: under way, nothing done after {WAIT_SECONDS:.0f} s")

    def _log(self) -> None:
        self.logged, self.said = time.monotonic(), (self.done, self.note)
        seconds = max(self.logged - self.start, 1e-9)
        rate = (self.done - self.skipped) / seconds
        each = f"{rate:,.1f} {self.unit}" if rate >= 1 or not rate else f"{rate:.2g} {self.unit}"
        done, total = f"{self.done:,}", f"{self.total or 0:,}"
        unit = f" {self.unit}"
        if self.unit == "B":
            done, total, each, unit = _bytes(self.done), _bytes(self.total or 0), _bytes(rate), ""
        of = f"/{total}" if self.total else ""
        left = ""
        if self.total and rate and self.done < self.total:
            left = f", {(self.total - self.done) / rate:.0f} s left"
        note = f", {self.note}" if self.note else ""
        logger.info(f"{self.label}: {done}{of}{unit} in {seconds:.1f} s, {each}/s{left}{note}")


def _bytes(count: float) -> str:
    """``2200096768`` as ``"2.20 GB"``; below a thousand as it is."""
    power = 0
    while count >= 1000 and power < 4:
        count, power = count / 1000, power + 1
    return f"{count:.2f} {'kMGT'[power - 1]}B" if power else f"{count:.0f} B"
