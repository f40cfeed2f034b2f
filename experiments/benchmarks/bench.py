"""What the side-by-side benchmarks share: a peer in a process of its own, physical limits, JSON.

A peer is a script that imports torch or llama.cpp, so that the measuring process never does. It
reads one JSON request a line from standard input and answers each with one JSON line.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Our faster remat policy on a CPU: cheap products are rather computed again than kept.
CPU_REMAT = {"float32": "minimal", "bfloat16": "full"}


class Peer:
    """A running peer: ``ask`` sends a request and waits for its answer.

    Args:
      command: what to run.
      log: where its standard error goes.
    """

    def __init__(self, command: list[str], log: Path):
        self.log = log
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )

    def ask(self, **request) -> dict:
        """The answer to a request; ends this program with the peer's last words where it died."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{self.process.args[:2]} died:\n{self.log.read_text()[-2000:]}")

    def close(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()


def serve(answer: Callable[..., dict]) -> None:
    """The peer's half: answers every request until there are no more."""
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def seconds(call: Callable[[], object], runs: int = 5) -> float:
    """Median seconds of a call, the first not counted."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def import_seconds(python: str, code: str) -> float:
    """Median seconds of a process that imports and ends."""
    return seconds(lambda: subprocess.run([python, "-c", code], check=True), runs=3)


def device_limits(device: str) -> dict[str, float]:
    """Bytes a second that the device reads (a sum of a large array) and floating-point operations a
    second of square matrix products, the fastest of some sizes, in float32 and in bfloat16.
    """
    import jax
    import jax.numpy as jnp

    large = device == "gpu"
    array = jnp.ones(1 << (30 if large else 26), jnp.float32)
    total = jax.jit(jnp.sum)
    found = {"read_bytes": array.nbytes / seconds(lambda: total(array).block_until_ready())}

    def product(x, y):  # float32 sums, with which XLA:CPU takes bfloat16 factors as they are
        return (jnp.matmul(x, y, preferred_element_type=jnp.float32) / len(x)).astype(x.dtype)

    # Many products in one program: the time of fresh memory for results is not a product's.
    products = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: product(x, y), x))
    for dtype in (jnp.float32, jnp.bfloat16):
        rates = []
        for size in (4096, 8192) if large else (512, 1024, 2048):
            square = jnp.ones((size, size), dtype)
            taken = seconds(lambda x=square: products(x).block_until_ready())
            rates.append(20 * size**3 / taken)
        found[f"flops_{jnp.dtype(dtype).name}"] = max(rates)
    return found


def machine(device: str) -> dict[str, str | int]:
    """What the figures depend on."""
    import jax

    kind = jax.devices()[0].device_kind if device == "gpu" else platform.machine()
    return {
        "device": kind,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write_report(path: str | None, report: dict) -> None:
    """Writes the figures and the command that made them as JSON."""
    if path:
        Path(path).write_text(json.dumps({"command": sys.argv, **report}, indent=1) + "\n")
