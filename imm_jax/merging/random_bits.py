"""Random bits that depend on a parameter's name and layer only, made without temporaries.

``jax.random.bits`` runs its rounds as a loop over whole arrays on some backends, which takes three
temporaries of the leaf's size and about eight times the time (measured, jax 0.10.2 on CPU). Here
the same twenty rounds are plain elementwise code that fuses with whatever uses the bits.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.errors import InputError

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
THREEFRY = ("threefry2x32", "fry")
PARITY = np.uint32(0x1BD11BDA)


def fold_path(key: Array, path: str | int | Array, layer: int | Array | None) -> Array:
    """Folds a parameter's path (or its hash), and its layer if it has one, into ``key``.

    The path is hashed with CRC-32, which is the same on every machine and in every Python.
    """
    hashed = hash_path(path) if isinstance(path, str) else path
    key = jax.random.fold_in(key, hashed)
    return key if layer is None else jax.random.fold_in(key, layer)


def hash_path(path: str) -> np.uint32:
    """CRC-32 of a path, as :func:`fold_path` uses it."""
    return np.uint32(zlib.crc32(path.encode()))


def threefry_key(key: Array) -> Array:
    """A threefry2x32 key from any random key, of the new style or the old.

    One of another generator has its words folded in. Such generators draw other bits inside
    ``vmap`` than outside, and none for a part of a tensor alone; so what they seed here is
    threefry, and layouts, blocks and batches agree.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if typed else jnp.asarray(key)
    if data.shape == (2,) and (not typed or str(jax.random.key_impl(key)) in THREEFRY):
        return key if typed else jax.random.wrap_key_data(data, impl=THREEFRY[0])
    seeded = jax.random.key(0, impl=THREEFRY[0])
    for word in data.ravel():
        seeded = jax.random.fold_in(seeded, word)
    return seeded


def random_bits(key: Array, shape: tuple[int, ...], start: int | Array = 0) -> Array:
    """Uniform uint32 bits, equal to ``jax.random.bits(key, shape, "uint32")``.

    ``start`` skips that many of them, so that parts of a tensor get the bits of the whole. Other
    generators than threefry2x32 are called as they are, and cannot skip.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if typed else key
    if data.shape != (2,) or (typed and str(jax.random.key_impl(key)) not in THREEFRY):
        if not (isinstance(start, int) and start == 0):
            raise InputError("a part of a tensor needs a threefry2x32 key")
        return jax.random.bits(key, shape, "uint32")
    return _threefry(data[0], data[1], shape, start)


def _threefry(k0: Array, k1: Array, shape: tuple[int, ...], start: int | Array) -> Array:
    """Threefry-2x32, 20 rounds (Salmon et al. 2011), over the row-major index of each element."""
    keys = (k0, k1, k0 ^ k1 ^ PARITY)
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index = index + jnp.asarray(start, jnp.uint32)
    x, y = jnp.broadcast_to(keys[0], shape), index + keys[1]
    for block in range(5):
        for turn in ROTATIONS[block % 2]:
            x = x + y
            y = ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn))) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x ^ y


def bernoulli(
    key: Array, probability: float | Array, shape: tuple[int, ...], start: int | Array = 0
) -> Array:
    """Booleans that are True with ``probability``, to a resolution of 2^-32 (float32: 2^-24).

    ``start`` is as in :func:`random_bits`.
    """
    bits = random_bits(key, shape, start)
    if isinstance(probability, (int, float)):
        if probability >= 1:
            return jnp.ones(shape, bool)
        return bits < np.uint32(min(round(probability * 2**32), 2**32 - 1))
    limit = (jnp.minimum(probability, 1 - 2.0**-24) * 2.0**32).astype(jnp.uint32)
    return (bits < limit) | (probability >= 1)
