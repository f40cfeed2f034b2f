"""Checks that need several devices: a process of its own, whose answers come back as JSON."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.processes import PATIENCE, start_code

PRELUDE = """
import dataclasses, json, sys
import jax
import jax.numpy as jnp
import numpy as np
from imm_jax import sharding
from imm_jax.models.config import ModelConfig
from imm_jax.models.decoder import Decoder
from imm_jax.models.layout import param_shapes

answers = {}

def draw(config, scale=0.2):
    rng, tree = np.random.default_rng(0), {}
    for path, shape in param_shapes(config).items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = np.float32(scale * rng.standard_normal(shape) + (leaf == "scale"))
    return tree

def spread(tree, mesh):
    return jax.tree.map(jax.device_put, tree, sharding.param_shardings(mesh, tree))

def furthest(one, other):
    gaps = jax.tree.map(lambda a, b: np.abs(np.float64(a) - np.float64(b)).max(), one, other)
    return float(max(jax.tree.leaves(gaps)))

LLAMA = ModelConfig(
    model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    eos_token_id=0)
"""


def ask(code: str, *args: object, count: int = 8) -> dict:
    """Runs ``code`` after the prelude on ``count`` devices; gives what it put into ``answers``."""
    script = f"{PRELUDE}\n{code}\nprint(json.dumps(answers))"
    with TemporaryDirectory() as folder:
        log = Path(folder, "log")
        process = start_code(script, [str(arg) for arg in args], log, devices=count)
        return json.loads(_printed(process, log)[0].splitlines()[-1])


@contextmanager
def in_two_processes(code: str, folder: object) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Starts ``code FOLDER PORT NUMBER`` twice, two devices each; they end with the block.

    What it yields waits for both, which must succeed, and gives what each printed.
    """
    logs = [Path(folder, f"log-{number}") for number in range(2)]
    with socket.socket() as held:
        # Held to the end, so that nobody else is given it; the coordinator may bind it, too.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        processes = [
            start_code(
                code, [str(folder), str(port), str(number)], log, devices=2, cache=f"{folder}/cache"
            )
            for number, log in enumerate(logs)
        ]
        try:
            yield lambda: [_printed(process, log) for process, log in zip(processes, logs)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _printed(process: BaseProcess, log: Path) -> tuple[str, str]:
    process.join(PATIENCE)
    out, errors = (Path(f"{log}.{name}").read_text() for name in ("out", "err"))
    assert process.exitcode == 0, errors[-3000:]
    return out, errors
