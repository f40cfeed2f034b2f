"""Whether any weight is NaN or infinite, found before anything is written."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imm_jax.errors import InputError
from imm_jax.progress import Progress
from imm_jax.recipes.agreement import Input

CHUNK = 1 << 20  # elements; what is computed of them stays in the cache


def check_finite(inputs: Iterable[Input]) -> None:
    """Reads all inputs once.

    Raises:
      InputError: a tensor has NaN or infinite values; names its file and the tensor.
    """
    inputs = list(dict.fromkeys(inputs))
    total = sum(i.checkpoint.flat(i.name).nbytes for i in inputs)
    with Progress("check", total, unit="B") as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda i: _is_finite(i.checkpoint.flat(i.name)), inputs)
        for (checkpoint, name), fine in zip(inputs, found, strict=True):
            if not fine:
                pool.shutdown(wait=False, cancel_futures=True)
                raise InputError(
                    f"{checkpoint.tensors[name].file}: tensor {name} has NaN or infinite values"
                )
            progress.update(checkpoint.flat(name).nbytes)


def _is_finite(values: np.ndarray) -> bool:
    """By the exponent's bits: of numbers that are not finite all are 1, and no number is larger."""
    unsigned = np.dtype(f"u{values.itemsize}")
    infinity = np.array(np.inf, values.dtype).view(unsigned) << 1
    bits = values.view(unsigned)
    chunks = (bits[i : i + CHUNK] for i in range(0, bits.size, CHUNK))
    return all((chunk << 1).max() < infinity for chunk in chunks)
