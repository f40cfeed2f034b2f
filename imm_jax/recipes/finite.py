"""Whether any weight is NaN or infinite, found before anything is written."""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imm_jax.devices import cores
from imm_jax.errors import InputError
from imm_jax.progress import Progress
from imm_jax.recipes.adapters import AdaptedReader
from imm_jax.recipes.agreement import Input

CHUNK = 1 << 18  # elements; they stay in the cache
FAR = 1e38  # two numbers below have a sum in float32


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
    reader, name, size = source.checkpoint.reader, source.name, math.prod(source.entry.shape)
    chunks = [(i, min(i + CHUNK, size)) for i in range(0, size, CHUNK)]
    update = reader.adapter.updates.get(name) if isinstance(reader, AdaptedReader) else None
    # Adding it is most of a merge's work: here only where the sum may overflow.
    if update is not None and reader.largest(update) < FAR:
        stored = (reader.stored(name, *chunk) for chunk in chunks)
        if all(is_finite(values, FAR) for values in stored):
            return True
    return all(is_finite(reader.read(name, *chunk)) for chunk in chunks)


def is_finite(values: np.ndarray, limit: float = np.inf) -> bool:
    """Whether no value is NaN or infinite, or ``limit`` in size, by two passes without temporaries.

    Positive numbers order as their bits do read as signed integers, negative ones as unsigned ones;
    infinity comes after all others, and NaN after it.
    """
    with np.errstate(over="ignore"):
        ends = np.array([limit, -limit]).astype(values.dtype)
    size = values.itemsize
    return not values.size or all(
        values.view(kind).max() < ends.view(kind)[i]
        for i, kind in enumerate((f"i{size}", f"u{size}"))
    )
