"""The runs of a sweep as arrays, for :mod:`imm_jax.rounds.compiled`."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, UInt

from imm_jax.errors import InputError
from imm_jax.training.batching import visiting_order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a sweep.

    Attributes:
      weight: alpha; whatever NumPy broadcasts to ``[T, L + 1]``: for each round the weight of each
        layer, and last that of what is outside the layers. ``0.5`` is the paper's; ``[[1], [0.5]]``
        a schedule of two rounds; ``[1, 0, 1]`` a mask over two layers that moves all but the
        second.
      drop_rate: p.
      seed: of samples, fine-tunes and dropping.
    """

    weight: ArrayLike = 0.5
    drop_rate: float = 0.0
    seed: int = 0


class Seeds(NamedTuple):
    """The seeds of a sweep.

    Attributes:
      seed: each once, ascending; then again from the first, as often as it takes to be split.
      row: its place in the table of :func:`visiting_orders`.
    """

    seed: Int[Array, "S"]
    row: Int[Array, "S"]


class Members(NamedTuple):
    """The members of a sweep.

    Attributes:
      weight: of each round and layer, and last of what is outside the layers.
      drop_rate: p.
      seed: of samples, fine-tunes and dropping.
      row: the place of the seed among the sweep's.
    """

    weight: Float[Array, "M T L1"]
    drop_rate: Float[Array, "M"]
    seed: Int[Array, "M"]
    row: Int[Array, "M"]


def as_arrays(
    members: Sequence[Member], rounds: int, layers: int, devices: int = 1
) -> tuple[Seeds, Members]:
    """What the members are to a program of ``rounds`` rounds, for a model of so many layers.

    Raises:
      InputError: no members, a weight that does not fit, a drop rate or seed out of range.
    """
    if not members:
        raise InputError("members: none, expected at least one")
    shape = rounds, layers + 1
    weights = []
    for number, member in enumerate(members):
        if not 0 <= member.drop_rate < 1:
            raise InputError(
                f"member {number}: drop_rate is {member.drop_rate}, expected 0 <= drop_rate < 1"
            )
        if not 0 <= member.seed < 2**31:
            raise InputError(f"member {number}: seed is {member.seed}, expected 0 to 2147483647")
        try:
            weights.append(np.broadcast_to(np.asarray(member.weight, np.float32), shape))
        except ValueError as error:
            raise InputError(
                f"member {number}: weight has shape {np.shape(member.weight)}, expected one that "
                f"broadcasts to {shape}, rounds by layers and what is outside them"
            ) from error
    seeds, rows = np.unique([member.seed for member in members], return_inverse=True)
    columns = [
        np.stack(weights),
        np.array([member.drop_rate for member in members], np.float32),
        seeds[rows].astype(np.int32),
        rows.astype(np.int32),
    ]
    split = -(-len(seeds) // devices) * devices
    places = np.resize(np.arange(len(seeds), dtype=np.int32), split)
    return (
        Seeds(jnp.asarray(seeds[places].astype(np.int32)), jnp.asarray(places)),
        Members(*map(jnp.asarray, columns)),
    )


def visiting_orders(
    seeds: Int[Array, "S"], rounds: int, epochs: int, count: int
) -> UInt[Array, "S T E N1 N"]:
    """For each seed, round, epoch and number of sequences the order that the host visits them in.

    Seeds that come again, so that devices have equally many, have the row of their first time. How
    many are kept is known on the device alone, hence a row for every number up to ``count``.
    """
    seeds = np.unique(seeds)
    table = np.zeros((len(seeds), rounds, epochs, count + 1, count), np.uint16)
    for s, t, epoch in np.ndindex(table.shape[:3]):
        for n in range(1, count + 1):
            # The seed of a round's fine-tune, as in `tools.make_tools`.
            table[s, t, epoch, n, :n] = visiting_order(int(seeds[s]) * 1000 + t + 1, epoch, n)
    return jnp.asarray(table)
