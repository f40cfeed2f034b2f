"""The machine: what it is, and what it can do at most, measured.

    python experiments/benchmarks/machine.py cpu|gpu kind|device_limits|product_flops [TYPE]

The benchmarks run this as a process of its own, so that what it measures with is in nobody's way.
"""

import json
import os
import platform
import sys
import time
from functools import partial
from importlib.metadata import version

from bench import in_process, seconds, use_device


def description(device: str) -> dict[str, str | int]:
    """What figures depend on."""
    kind = platform.machine() if device == "cpu" else measured(device, "kind")
    return {
        "device": kind,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": version("jax"),
    }


def measured(device: str, what: str, *options: str):
    """What the function ``what`` of this file gives, in a process of its own."""
    return in_process(device, "machine.py", device, what, *options)


def kind(device: str) -> str:
    """A device's name."""
    import jax

    return jax.devices()[0].device_kind


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


def product_flops(device: str, dtype: str) -> float:
    """Operations a second of a large matrix product with float32 sums.

    The best of many: a machine's speed drifts.
    """
    import jax
    import jax.numpy as jnp

    size = 8192 if device == "gpu" else 1536
    one = jnp.ones((size, size), dtype)
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    taken = []
    for _ in range(100):
        start = time.perf_counter()
        jax.block_until_ready(product(one, one))
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / min(taken)


if __name__ == "__main__":
    device, what, *options = sys.argv[1:]
    use_device(device)
    functions = {f.__name__: f for f in (kind, device_limits, product_flops)}
    print(json.dumps(functions[what](device, *options)))
