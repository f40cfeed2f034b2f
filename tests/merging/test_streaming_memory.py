"""Peak memory of a merge in blocks, in a process of its own."""

import subprocess
import sys

from tests.processes import PATIENCE

PEAK = """
import functools, sys
import jax, numpy as np
from imm_jax import merging
from imm_jax.merging import outofcore, streaming
from imm_jax.merging.streaming import Part, merge_part

BLOCK = streaming.BLOCK = outofcore.HELD = 1 << 18
most = 0

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

TILE = np.random.default_rng(0).normal(size=BLOCK).astype(np.float32)

def read(seed, start, stop):
    global most
    most = max(most, anonymous())
    return TILE[::-1 if seed else 1] * np.float32(1 + seed + start / 1e9)

def peak(transform, blocks):
    global most
    reads = [functools.partial(read, seed) for seed in range(3)]
    part = Part("x", (blocks * BLOCK,), reads[0], tuple(reads[1:]), (0.5, 0.5), np.float32)
    key, most, size = jax.random.key(0, impl="threefry2x32"), 0, 0
    for piece in merge_part(part, transform, key):
        size += piece.size
    assert size == part.size
    return most

for transform in (merging.dare_linear(0.5), merging.ties(0.2)):
    few = peak(transform, 16)
    print((peak(transform, 128) - few) / (4 * BLOCK))
"""


def test_memory_does_not_grow_with_the_tensor():
    """128 blocks against 16. Held whole, one array would take 112 more, and there are four."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    for more_blocks in map(float, done.stdout.split()):
        assert more_blocks < 25
