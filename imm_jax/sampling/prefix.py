"""What prompts have in common at their start, run through the model once for all."""

from collections.abc import Sequence

import numpy as np

from imm_jax.models.cache import Prefix
from imm_jax.models.decoder import Decoder
from imm_jax.sampling.decode import prefill
from imm_jax.tree import PyTree

PREFIX_BUCKET = 128  # a shared prefix is padded to a multiple of it
PREFIX_MIN = 16  # a shorter one is not worth a program of its own


def shared_length(tokens: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts share, less than any prompt has; 0 where it is not worth it."""
    first, last = min(tokens), max(tokens)
    count = 0
    while count < min(len(first), len(last)) and first[count] == last[count]:
        count += 1
    count = min(count, min(map(len, tokens)) - 1)
    return 0 if first == last or count < PREFIX_MIN else count


def make_prefix(model: Decoder, weights: PyTree, tokens: Sequence[int]) -> Prefix | None:
    """Keys and values of ``tokens`` for all rows to share; None for no tokens."""
    if not tokens:
        return None
    padded = np.zeros((1, bucket(len(tokens), PREFIX_BUCKET)), np.int32)
    padded[0, : len(tokens)] = tokens
    layers = prefill(model, weights, None, padded)
    return Prefix([(k[0], v[0]) for k, v in layers], np.int32(len(tokens)))


def bucket(count: int, unit: int) -> int:
    """``count`` rounded up to a multiple of ``unit``, at least one."""
    return max(1, -(-count // unit)) * unit
