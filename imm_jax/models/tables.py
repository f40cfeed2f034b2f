"""What every block reads besides the hidden state: rotations and masks, by kind of layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imm_jax.models.attention import causal_mask
from imm_jax.models.config import ModelConfig
from imm_jax.models.rope import rotary_tables


class Tables(NamedTuple):
    """Cos and sin of the queries and the masks, once for each kind of layer (full, sliding).

    ``masks`` has one ``[kinds, B, T, S]`` array for each key-value segment.
    """

    cos: Float[Array, "kinds B T E2"]
    sin: Float[Array, "kinds B T E2"]
    masks: tuple[Array, ...]

    def of(self, kind: int | Array) -> "Tables":
        """The tables of one kind of layer."""
        return jax.tree.map(lambda x: x[kind], self)


def layer_kinds(config: ModelConfig) -> tuple[tuple[bool, ...], np.ndarray]:
    """The distinct kinds of layer (is it sliding?) and the kind ``[L]`` of each."""
    sliding = [window is not None for window in config.windows]
    kinds = tuple(sorted(set(sliding)))
    return kinds, np.array([kinds.index(s) for s in sliding], np.int32)


def rotary(
    config: ModelConfig, positions: Int[Array, "..."]
) -> tuple[Float[Array, "kinds ... E2"], Float[Array, "kinds ... E2"]]:
    """Cos and sin of positions, for every kind of layer."""
    cos, sin = zip(*(rotary_tables(config, s, positions) for s in layer_kinds(config)[0]))
    return jnp.stack(cos), jnp.stack(sin)


def make_tables(
    config: ModelConfig,
    turns: tuple[Float[Array, "kinds B T E2"], Float[Array, "kinds B T E2"]],
    positions_BT: Int[Array, "B T"],
    segments: list[tuple[Array, Array | bool]],
) -> Tables:
    """Builds the tables of every kind of layer.

    Args:
      config: the model's.
      turns: cos and sin of the queries, as ``rotary`` gives them.
      positions_BT: positions of the queries.
      segments: for each key-value segment the keys' positions ``[B, S]`` (-1 where empty) and a
        further mask ``[B, T, S]``, or True for none.
    """
    masks = tuple(
        jnp.stack([causal_mask(positions_BT, keys, config.sliding_window if s else None) & extra
                   for s in layer_kinds(config)[0]])
        for keys, extra in segments
    )  # fmt: skip
    return Tables(*turns, masks)
