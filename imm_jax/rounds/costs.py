"""What the stages of a round cost: seconds, tokens, and the share of the devices' peak.

A stage is timed where its results are made and its cost is kept beside them in ``costs.json``, so
that a run that was cut off still knows the cost of what it does not do again. Results themselves
hold no times.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imm_jax import hosts
from imm_jax.files import atomic_write
from imm_jax.rounds.profile import Profile

logger = logging.getLogger("imm_jax")

FILE = "costs.json"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What was spent on the results of a stage.

    Attributes:
      seconds: of all processes that made one of them; loading, compiling and writing included.
      tokens: sampled, or in a fine-tune run through the model; None where nothing counts them.
      flops: that the mathematics asks for; see ``rounds.flops``.
      possible: FLOPs that the devices could have done in the same time; None where not known.
    """

    seconds: float = 0.0
    tokens: int | None = None
    flops: int | None = None
    possible: float | None = None

    def __add__(self, other: "Cost") -> "Cost":
        possible = (
            None if None in (self.possible, other.possible) else self.possible + other.possible
        )
        tokens, flops = _sum(self.tokens, other.tokens), _sum(self.flops, other.flops)
        return Cost(self.seconds + other.seconds, tokens, flops, possible)

    def figures(self) -> dict[str, float | int | None]:
        """Seconds, tokens, their ratio, and MFU = flops / (seconds * peak FLOP/s of all devices).

        (Chowdhery et al., arXiv 2204.02311, appendix B.) What is not known is None.
        """
        speed = mfu = None
        if self.tokens is not None and self.seconds:
            speed = round(self.tokens / self.seconds, 3)
        if self.flops is not None and self.possible:
            mfu = float(f"{self.flops / self.possible:.4g}")
        seconds = round(self.seconds, 3)
        return {"seconds": seconds, "tokens": self.tokens, "tokens_per_second": speed, "mfu": mfu}


UNKNOWN = dict.fromkeys(Cost().figures())


class _Clock:
    """A stage under way in this process, and what it had cost before."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name, self.before = folder, name, read_costs(folder).get(name)
        self.passed, self.since = 0.0, time.monotonic()
        self.tokens = self.flops = None
        self.made = False

    def stop(self) -> None:
        self.passed = self.seconds()

    def go(self) -> None:
        self.since = time.monotonic()

    def seconds(self) -> float:
        return self.passed + time.monotonic() - self.since

    def keep(self, peak: float | None) -> None:
        """Writes what the stage has cost up to now."""
        self.made, seconds = True, self.seconds()
        now = Cost(seconds, self.tokens, self.flops, None if peak is None else peak * seconds)
        costs = read_costs(self.folder) | {
            self.name: now if self.before is None else self.before + now
        }
        plain = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
        atomic_write(self.folder / FILE, json.dumps(plain, indent=1) + "\n")


class Meter:
    """Times the stages of a run; a stage inside another stops the other's clock.

    Args:
      peak: FLOP/s of all devices together, None where not known.
      profile: what to trace, None for nothing.
    """

    def __init__(self, peak: float | None = None, profile: Profile | None = None):
        self.peak, self.profile = peak, profile
        self._clocks: list[_Clock] = []

    @contextmanager
    def measure(self, folder: Path, name: str) -> Iterator[None]:
        """Inside, stage ``name`` of the results in ``folder`` is under way.

        What it costs counts where something was made by the end (:meth:`keep`).
        """
        if self._clocks:
            self._clocks[-1].stop()
        clock = _Clock(folder, name)
        self._clocks.append(clock)
        try:
            yield
            if clock.made and hosts.is_primary():
                clock.keep(self.peak)
        finally:
            if self.profile is not None:
                self.profile.stop(name)
            self._clocks.pop()
            if self._clocks:
                self._clocks[-1].go()

    def watching(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """``should_stop``, which is asked before every small step, for the profile to count."""
        if self.profile is None:
            return should_stop

        def ask() -> bool:
            self.profile.step(self._clocks[-1].name)
            return should_stop()

        return ask

    def keep(self) -> None:
        """To be called once a result is written."""
        if self._clocks and hosts.is_primary():
            self._clocks[-1].keep(self.peak)

    def count(self, tokens: int, flops: int) -> None:
        """Adds to what the stage under way has done, if one is."""
        for clock in self._clocks[-1:]:
            clock.tokens, clock.flops = _sum(clock.tokens, tokens), _sum(clock.flops, flops)


def read_costs(folder: Path) -> dict[str, Cost]:
    """The costs kept in a folder of results; empty where none can be read."""
    path = folder / FILE
    try:
        return {name: Cost(**cost) for name, cost in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        logger.warning(f"{path}: not readable; the times it held are not known")
        return {}


def stage_figures(folder: Path, stages: Sequence[str]) -> dict[str, dict]:
    """:meth:`Cost.figures` of each stage, None for what the folder does not know of."""

    def read() -> dict[str, dict]:
        costs = read_costs(folder)
        return {name: costs[name].figures() if name in costs else UNKNOWN for name in stages}

    return hosts.from_primary(read)


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other
