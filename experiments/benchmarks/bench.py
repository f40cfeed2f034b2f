"""What the side-by-side benchmarks share: a peer in a process of its own, medians, JSON.

A peer is a script that imports torch or llama.cpp, so that the measuring process never does. It
reads one JSON request a line from standard input and answers each with one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

RESULTS = Path(__file__).parent / "results"
DEVICES = ("cpu", "gpu")
# Our faster remat policy on a CPU: cheap products are rather computed again than kept.
CPU_REMAT = {"float32": "minimal", "bfloat16": "full"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


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
                env=os.environ | OFFLINE,
            )

    def ask(self, **request) -> dict:
        """The answer to a request."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self.answer()

    def answer(self) -> dict:
        """The next answer; ends this program with the peer's last words where it died."""
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


def jax_environment(device: str) -> dict[str, str]:
    """What a process that computes with JAX on ``device`` is started with.

    On a GPU it takes memory as it needs it: three quarters of it up front would leave a peer none.
    """
    if device == "cpu":
        return {"JAX_PLATFORMS": "cpu"}
    return {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def use_device(device: str) -> None:
    """The same for this process and those it starts; to be called before JAX is imported."""
    os.environ.update(jax_environment(device))


def in_process(device: str, script: str, *options: str):
    """What a script of this folder prints as JSON, in a process of its own.

    What it held on a GPU is free afterwards. Where it fails this program ends as it did.
    """
    command = [sys.executable, str(Path(__file__).with_name(script)), *options]
    environment = os.environ | jax_environment(device)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> dict[str, int]:
    """Peak bytes of this process: resident, and on a GPU what JAX's allocator held at most."""
    import jax

    text = Path("/proc/self/status").read_text()
    found = {"resident": 1024 * int(text.split("VmHWM:")[1].split()[0])}
    on_device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in on_device:
        found["device"] = on_device["peak_bytes_in_use"]
    return found


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


def add_output(parser: argparse.ArgumentParser) -> None:
    """The options that say where figures go."""
    parser.add_argument("--output", type=Path, help="JSON; by default a file in results/")
    parser.add_argument("--force", action="store_true", help="write over the file in results/")


def result_path(args: argparse.Namespace, name: str) -> Path:
    """Where figures go; asked before measuring, so that none are lost and none written over."""
    if args.output:
        return args.output
    path = RESULTS / f"{name}.json"
    if path.exists() and not args.force:
        refuse(f"results/{path.name} exists, expected --output FILE or --force")
    return path


def refuse(message: str) -> NoReturn:
    """Ends this program over what its user asked for, in one line."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def write_report(path: Path, report: dict) -> None:
    """Writes the figures and the command that made them as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": sys.argv, **report}, indent=1) + "\n")
    print(f"figures: {path}")
