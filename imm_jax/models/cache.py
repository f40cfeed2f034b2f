"""The forward pass with a key-value cache, over an unstacked list of layers."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imm_jax.models.decoder import (
    Block,
    Cache,
    Decoder,
    RMSNorm,
    softcap_logits,
    unembedding,
)
from imm_jax.models.products import narrow_products
from imm_jax.models.tables import layer_kinds, make_tables, rotary
from imm_jax.sharding import ROWS, constrain


class Prefix(NamedTuple):
    """Tokens that all rows share, kept and read once.

    Attributes:
      layers: ``(k, v)`` a layer, ``[K, E, P]`` and ``[K, P, E]``.
      length: how many of the P slots are in use, int32.
    """

    layers: list[tuple[Float[Array, "K E P"], Float[Array, "K P E"]]]
    length: Int[Array, ""]


class KVCache(NamedTuple):
    """Keys and values of every layer.

    Slot ``s`` of a row holds the token at position ``prefix.length + s``. Slots past a row's newest
    token hold anything: causality hides them until they are overwritten.

    Attributes:
      layers: ``(k, v)`` a layer, ``[B, K, E, S]`` and ``[B, K, S, E]``.
      prefix: what comes before slot 0 in every row; None for nothing.
    """

    layers: list[tuple[Float[Array, "B K E S"], Float[Array, "B K S E"]]]
    prefix: Prefix | None = None

    @property
    def slots(self) -> int:
        """Slots of a row."""
        return self.layers[0][1].shape[2]


def init_cache(model: Decoder, batch: int, slots: int, prefix: Prefix | None = None) -> KVCache:
    """An empty cache for ``batch`` rows of ``slots`` tokens after ``prefix``."""
    c = model.config
    shape, sizes = (batch, c.num_key_value_heads), (c.head_dim, slots)
    layers = [
        (jnp.zeros((*shape, *sizes), model.dtype), jnp.zeros((*shape, *sizes[::-1]), model.dtype))
        for _ in range(c.num_hidden_layers)
    ]
    return KVCache(constrain(layers, ROWS, "tensor"), prefix)


def extend(
    model: Decoder,
    weights: dict,
    cache: KVCache,
    tokens_BT: Int[Array, "B T"],
    start_B: Int[Array, "B"],
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Runs ``tokens_BT`` through the model, keeping their keys and values.

    Prefill is a long extension of an empty cache, decoding an extension by one token. Kernels in a
    narrower type than the model's are multiplied in theirs; sums and all else stay in the model's.

    Args:
      model: the decoder.
      weights: its parameters with unstacked layers (``tree.unstack_layers``).
      cache: what came before.
      tokens_BT: token ids; rows may be padded on the right.
      start_B: the slot of each row's first token.

    Returns:
      The hidden state after the final norm, and the new cache.
    """
    c, prefix = model.config, cache.prefix
    B, T = tokens_BT.shape
    before = 0 if prefix is None else prefix.length
    slots_BT = start_B[:, None] + jnp.arange(T, dtype=jnp.int32)
    positions_BT = before + slots_BT
    segments = [(_positions(B, cache.slots) + before, True)]
    if prefix is not None:
        slots_BP = _positions(B, prefix.layers[0][1].shape[1])
        segments.append((jnp.where(slots_BP < before, slots_BP, -1), True))
    # Of all slots: a loop of decode steps computes them once, not for every step, layer and head.
    turns = rotary(c, before + jnp.arange(cache.slots, dtype=jnp.int32))
    turns = tuple(of_slots[:, slots_BT] for of_slots in turns)
    tables = make_tables(c, turns, positions_BT, segments)
    x = _embed(weights["embed"]["embedding"], tokens_BT).astype(model.dtype)
    x = constrain(x * jnp.asarray(c.embed_scale, model.dtype), ROWS)
    layers = []
    for i, kind in enumerate(layer_kinds(c)[1]):
        layer = Cache(*cache.layers[i], start_B, prefix.layers[i] if prefix else None)
        x, kv = _block(Block(c, model.dtype), int(kind), weights["layers"][i], x, tables, layer)
        layers.append(constrain(kv, ROWS, "tensor"))
    norm = RMSNorm(c.rms_norm_eps, c.rms_norm_unit_offset)
    x = norm.apply({"params": weights["final_norm"]}, x)
    return x, KVCache(layers, prefix)


@partial(jax.jit, static_argnums=(0, 1))
def _block(block: Block, kind: int, params: dict, x, tables, layer: Cache):
    """One layer, a function of its own so that it is traced once for all that are alike."""
    with nn.intercept_methods(narrow_products()):
        return block.apply({"params": params}, x, tables, kind, layer)


def _embed(table: Float[Array, "V D"], tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Rows of a table, taken as bits: XLA:CPU would widen all of a bfloat16 one first."""
    if table.dtype.itemsize != 2:
        return table[tokens_BT]
    bits = jax.lax.bitcast_convert_type(table, jnp.uint16)[tokens_BT]
    return jax.lax.bitcast_convert_type(bits, table.dtype)


def _positions(batch: int, slots: int) -> Int[Array, "B S"]:
    return jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (batch, slots))


def logits_of(
    model: Decoder, weights: dict, hidden: Float[Array, "... D"]
) -> Float[Array, "... V"]:
    """Float32 logits of hidden states."""
    head = unembedding(weights)
    dtype = min(head.dtype, jnp.dtype(model.dtype), key=lambda x: x.itemsize)
    logits = jnp.einsum(
        "...D,VD->...V",
        hidden.astype(dtype),
        head.astype(dtype),
        preferred_element_type=jnp.float32,
    )
    # Products stay where their part of the head is; what follows looks at whole rows.
    logits = constrain(logits, ROWS, *[None] * (logits.ndim - 2), "tensor")
    return softcap_logits(model.config, constrain(logits, ROWS))
