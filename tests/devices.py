"""Checks that need several devices: a process of its own, whose answers come back as JSON."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def environment(count: int) -> dict[str, str]:
    """The environment of a process that sees ``count`` CPU devices."""
    devices = f"--xla_force_host_platform_device_count={count}"
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


def ask(code: str, *args: object, count: int = 8) -> dict:
    """Runs ``code`` after the prelude on ``count`` devices; gives what it put into ``answers``."""
    script = f"{PRELUDE}\n{code}\nprint(json.dumps(answers))"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        env=environment(count),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def in_two_processes(code: str, folder: object) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Starts ``code FOLDER PORT NUMBER`` twice, two devices each; they end with the block.

    What it yields waits for both, which must succeed, and gives what each printed.
    """
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    cached = environment(2) | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(port), str(number)],
            env=cached,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]

    def finish() -> list[tuple[str, str]]:
        printed = [process.communicate(timeout=240) for process in processes]
        for process, (_, errors) in zip(processes, printed):
            assert process.returncode == 0, errors[-3000:]
        return printed

    try:
        yield finish
    finally:
        for process in processes:
            process.kill()
            process.wait()
