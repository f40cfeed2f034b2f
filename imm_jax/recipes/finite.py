"""Whether any weight is NaN or infinite, found before anything is written."""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imm_jax.devices import cores
from imm_jax.errors import InputError
from imm_jax.progress import Progress
from imm_jax.recipes.agreement import Input

CHUNK = 1 << 18  # elements; they stay in the cache


def check_finite(inputs: Iterable[Input]) -> None:
    """Reads all inputs once.

    Raises:
      InputError: a tensor has NaN or infinite values; names its file and the tensor.
    """
    inputs = list(dict.fromkeys(inputs))
    total = sum(i.entry.end - i.entry.begin for i in inputs)
    with Progress("check", total, unit="B") as progress, ThreadPoolExecutor(cores()) as pool:
        found = pool.map(_is_finite, inputs)
        for source, fine in zip(inputs, found, strict=True):
            if not fine:
                pool.shutdown(wait=False, cancel_futures=True)
                files = " with ".join(map(str, source.files))
                raise InputError(f"{files}: tensor {source.name} has NaN or infinite values")
            progress.update(source.entry.end - source.entry.begin)


def _is_finite(source: Input) -> bool:
    reader, size = source.checkpoint.reader, math.prod(source.entry.shape)
    starts = range(0, size, CHUNK)
    return all(is_finite(reader.read(source.name, i, min(i + CHUNK, size))) for i in starts)


def is_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, by two passes that need no temporary.

    Positive numbers order as their bits do read as signed integers, negative ones as unsigned ones;
    infinity comes after all others, and NaN after it.
    """
    infinity = np.array([np.inf, -np.inf], values.dtype)
    size = values.itemsize
    return not values.size or all(
        values.view(kind).max() < infinity.view(kind)[i]
        for i, kind in enumerate((f"i{size}", f"u{size}"))
    )
