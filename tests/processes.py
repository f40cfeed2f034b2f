"""Processes that begin with everything imported.

Imports are half of what a short run takes, and more where transformers finds torch. So a process
that has done nothing but import is kept, and forks.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax

from imm_jax.cli import main

PATIENCE = 1200  # seconds until a process is taken to hang: others at work may slow it much

SERVER = multiprocessing.get_context("forkserver")
# What is not there is left out.
IMPORTS = "imm_jax.cli imm_jax.rounds.run matplotlib.pyplot optax orbax.checkpoint pydantic"
IMPORTS += " scipy.stats transformers.modeling_utils transformers.models.auto.tokenization_auto"
SERVER.set_forkserver_preload(IMPORTS.split())


def import_all() -> None:
    """Here, too, what a command may import."""
    for name in IMPORTS.split():
        with suppress(ImportError):
            import_module(name)


def start_command(argv: list[str], log: Path, cache: Path) -> BaseProcess:
    """Starts ``imm-jax ARGV``; what it prints is written to ``LOG.out`` and ``LOG.err``."""
    return _start(main, argv, log, cache)


def start_code(
    code: str, words: list[str], log: Path, devices: int, cache: Path | None = None
) -> BaseProcess:
    """Starts ``python -c CODE WORDS`` on some CPU devices, likewise."""
    return _start(_run, (code, words, devices), log, cache)


def _start(run: Callable, argument: object, log: Path, cache: Path | None) -> BaseProcess:
    options = {
        "jax_platforms": "cpu",
        "jax_compilation_cache_dir": cache and str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0,  # JAX would not keep the small ones
        "jax_disable_most_optimizations": jax.config.read("jax_disable_most_optimizations"),
    }
    process = SERVER.Process(target=_begin, args=(run, argument, log, options), daemon=True)
    process.start()
    return process


def _begin(run: Callable, argument: object, log: Path, options: dict) -> None:
    for number, name in ((1, "out"), (2, "err")):
        with open(f"{log}.{name}", "w") as file:
            os.dup2(file.fileno(), number)
    for name, value in options.items():
        jax.config.update(name, value)
    # Or a command takes the user's.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(options["jax_compilation_cache_dir"])
    status = run(argument)
    jax.distributed.shutdown()  # an interpreter's end does it, a fork's does not
    sys.exit(status)


def _run(what: tuple[str, list[str], int]) -> None:
    code, words, devices = what
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = flags
    sys.argv = ["-c", *words]
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
