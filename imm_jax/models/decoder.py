"""The decoder: one Linen module for every supported family.

Training and scoring scan a stack of layers (``Decoder.__call__``); sampling walks a list of layers
with a key-value cache (``imm_jax.models.cache``). Both run the same ``Block``.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imm_jax.models import attention
from imm_jax.models.attention import attend, attend_causal
from imm_jax.models.block_attention import KEPT, attend_in_blocks
from imm_jax.models.config import ModelConfig
from imm_jax.models.products import narrow_products
from imm_jax.models.rope import rotate
from imm_jax.models.tables import Tables, layer_kinds, make_tables, rotary
from imm_jax.sharding import ROWS, constrain, current_sizes

# What of a block the backward pass finds instead of computing it again, by MaxText's names.
REMAT_POLICIES = {
    "full": None,
    "minimal": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(KEPT),
    ),
}
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": jax.nn.gelu}


class Cache(NamedTuple):
    """One layer's keys and values, the slot where each row's next ones go, and a shared prefix."""

    k: Float[Array, "B K E S"]
    v: Float[Array, "B K S E"]
    start: Int[Array, "B"]
    prefix: tuple[Float[Array, "K E P"], Float[Array, "K P E"]] | None


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (Zhang and Sennrich, arXiv 1910.07467, eq. 4)."""

    eps: float
    unit_offset: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        start = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * (1 + scale if self.unit_offset else scale)).astype(x.dtype)


def _norm(config: ModelConfig, name: str) -> RMSNorm:
    return RMSNorm(config.rms_norm_eps, config.rms_norm_unit_offset, name=name)


def _dense(config: ModelConfig, features: int, bias: bool, dtype: Any, name: str) -> nn.Dense:
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name)


def write_rows(
    cache: Float[Array, "B ..."], new: Float[Array, "B ..."], start: Int[Array, "B"], axis: int
) -> Float[Array, "B ..."]:
    """Writes ``new[b]`` into row ``b`` from slot ``start[b]`` on, along ``axis``."""

    def write(row, new, at):
        return jax.lax.dynamic_update_slice_in_dim(row, new.astype(row.dtype), at, axis - 1)

    return jax.vmap(write)(cache, new, start)


class Attention(nn.Module):
    """Projects, rotates and attends; returns the new keys and values where there is a cache."""

    config: ModelConfig
    dtype: Any
    fused: bool = False  # rows attend causally to themselves, all layers alike; masks are not read
    products: Any = None

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"], tables: Tables, cache: Cache | None):
        c = self.config
        B, T, _ = x_BTD.shape
        H, K, E = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        q = _dense(c, H * E, c.qkv_bias, self.dtype, "q")(x_BTD).reshape(B, T, H, E)
        k = _dense(c, K * E, c.qkv_bias, self.dtype, "k")(x_BTD).reshape(B, T, K, E)
        v = _dense(c, K * E, c.qkv_bias, self.dtype, "v")(x_BTD).reshape(B, T, K, E)
        if c.qk_norm:
            q, k = _norm(c, "q_norm")(q), _norm(c, "k_norm")(k)
        q, k = rotate(q, tables.cos, tables.sin), rotate(k, tables.cos, tables.sin)
        scale = (c.query_pre_attn_scalar or E) ** -0.5
        output = partial(_dense, c, c.hidden_size, c.o_bias, self.dtype, "o")
        if self.fused:
            out = attend_causal(q, k, v, scale=scale, window=c.windows[0])
            return output()(out.reshape(B, T, H * E)), None
        blocks = self.products is not None and c.attn_logit_softcapping is None
        if cache is None and blocks:
            mask = tables.masks[0]
            out = attend_in_blocks(q, k, v, mask, scale=scale, dtype=self.products)
            return output()(out.reshape(B, T, H * E)), None
        k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
        segments = []
        if cache is not None:
            if cache.prefix is not None:
                segments.append((*cache.prefix, tables.masks[1]))
            k = write_rows(cache.k, k, cache.start, axis=3)
            v = write_rows(cache.v, v, cache.start, axis=2)
        segments.append((k, v, tables.masks[0]))
        out = attend(q, segments, scale=scale, softcap=c.attn_logit_softcapping)
        return output()(out.reshape(B, T, H * E)), (None if cache is None else (k, v))


class MLP(nn.Module):
    """Gated feed-forward layer (Shazeer, arXiv 2002.05202, eq. 5)."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        gate = _dense(c, c.intermediate_size, c.mlp_bias, self.dtype, "gate")(x_BTD)
        up = _dense(c, c.intermediate_size, c.mlp_bias, self.dtype, "up")(x_BTD)
        x_BTF = ACTIVATIONS[c.hidden_act](gate) * up
        return _dense(c, c.hidden_size, c.mlp_bias, self.dtype, "down")(x_BTF)


class Block(nn.Module):
    """One layer: ``(x, all kinds' tables, this layer's kind, cache) -> (x, keys and values)``."""

    config: ModelConfig
    dtype: Any
    fused: bool = False
    products: Any = None

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        tables: Tables,
        kind: int | Array,
        cache: Cache | None = None,
    ):
        c = self.config
        h, kv = Attention(c, self.dtype, self.fused, self.products, name="attn")(
            _norm(c, "attn_norm")(x_BTD), tables.of(kind), cache
        )
        x_BTD = x_BTD + (_norm(c, "post_attn_norm")(h) if c.sandwich_norm else h)
        h = MLP(c, self.dtype, name="mlp")(_norm(c, "mlp_norm")(x_BTD))
        x_BTD = x_BTD + (_norm(c, "post_mlp_norm")(h) if c.sandwich_norm else h)
        return constrain(x_BTD, ROWS), kv  # on a mesh: rows are split, weights are gathered


class Decoder(nn.Module):
    """A decoder-only language model.

    ``model.apply({"params": params}, tokens_BT)`` gives logits ``[B, T, V]`` in float32.

    Attributes:
      config: the architecture.
      dtype: the type matrix products run in; norms, softmax and logits are float32.
      remat: recompute each block in the backward pass instead of keeping its activations.
      remat_policy: ``full``: all of it; ``minimal``: all but its products and attention.
      products: a type that ``hidden`` rounds the factors of matrix products to, while their sums
        and all else stay in ``dtype``; their gradients, and attention's, are then those of
        ``models/products.py`` and ``models/block_attention.py``, for which rows have to be in order
        (no token attends to a slot after its own). None for none. Attention whose scores have a
        soft cap is left as it is.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: bool = False
    remat_policy: str = "full"
    products: Any = None

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        self.embed = nn.Embed(c.vocab_size, c.hidden_size, dtype=self.dtype, embedding_init=init)
        self.layers = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=c.num_hidden_layers,
        )(c, self.dtype, products=self.products)
        self.final_norm = RMSNorm(c.rms_norm_eps, c.rms_norm_unit_offset)
        if not c.tie_word_embeddings:
            self.lm_head = nn.Dense(
                c.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=init
            )

    def hidden(
        self,
        tokens_BT: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The hidden state after the final norm.

        Args:
          tokens_BT: token ids.
          positions: position of each token; ``0 .. T-1`` where not given.
          segment_ids: rows may hold several sequences; tokens attend only within their own.
        """
        plain = positions is None and segment_ids is None
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        same = True
        if segment_ids is not None:
            same = segment_ids[:, :, None] == segment_ids[:, None, :]
        embedding = constrain(self.embed.embedding, "tensor")
        x_BTD = jnp.take(embedding, tokens_BT, axis=0).astype(self.dtype)
        x_BTD = x_BTD * jnp.asarray(self.config.embed_scale, self.dtype)
        turns = rotary(self.config, positions)
        tables = make_tables(self.config, turns, positions, [(positions, same)])
        x_BTD = constrain(x_BTD, ROWS)
        narrow = self.products is not None and not self.is_initializing()
        with nn.intercept_methods(narrow_products(self.products)) if narrow else nullcontext():
            if self.remat and not self.is_initializing():
                fused = plain and fuses(self.config, self.dtype)
                x_BTD = self._recomputed(x_BTD, tables, fused)
            else:
                x_BTD, _ = self.layers(x_BTD, tables, layer_kinds(self.config)[1])
        return self.final_norm(x_BTD)

    def _recomputed(
        self, x_BTD: Float[Array, "B T D"], tables: Tables, fused: bool
    ) -> Float[Array, "B T D"]:
        """The layers, with blocks recomputed in the backward pass.

        A plain scan that takes its layer out of the stack, not a lifted one that is handed slices:
        so a layer's gradient can be added to the stack's where it lies (``train_step``). Plain
        ``jax.grad`` gives the same, but adds a whole stack for each layer.
        """
        block = Block(self.config, self.dtype, fused, self.products, parent=None)
        stack, kinds = self.variables["params"]["layers"], jnp.asarray(layer_kinds(self.config)[1])

        def run(x_BTD, layer):
            take = partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
            params = jax.tree.map(take, stack)
            return block.apply({"params": params}, x_BTD, tables, kinds[layer])[0], None

        policy = REMAT_POLICIES[self.remat_policy]
        run = jax.checkpoint(run, prevent_cse=False, policy=policy)
        return jax.lax.scan(run, x_BTD, jnp.arange(self.config.num_hidden_layers))[0]

    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the next token at every position; arguments as in :meth:`hidden`."""
        x_BTD = self.hidden(tokens_BT, positions, segment_ids)
        if self.config.tie_word_embeddings:
            logits = self.embed.attend(x_BTD)
        else:
            logits = self.lm_head(x_BTD)
        return softcap_logits(self.config, logits.astype(jnp.float32))


def fuses(config: ModelConfig, dtype: Any) -> bool:
    """Whether rows that attend causally to themselves do so in one fused kernel of this GPU.

    Not where layers differ in their windows, scores have a soft cap, or a mesh surrounds the
    program.
    """
    alike = len(set(config.windows)) == 1 and config.attn_logit_softcapping is None
    alone = all(size == 1 for size in current_sizes().values())
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    dtype = jnp.dtype(dtype).name
    return alike and alone and attention.fused_serves(*heads, config.windows[0], dtype)


def softcap_logits(config: ModelConfig, logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """``cap * tanh(logits / cap)`` where the model has a final soft cap."""
    cap = config.final_logit_softcapping
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def unembedding(params: dict) -> Float[Array, "V D"]:
    """The matrix whose rows score the vocabulary: the head, or the embedding where tied."""
    return params["lm_head"]["kernel"].T if "lm_head" in params else params["embed"]["embedding"]
