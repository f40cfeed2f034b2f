"""Values over depth, from the first layer to the last."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax.errors import InputError


@dataclass(frozen=True)
class Ramp:
    """Values over depth, through ``points`` at equal distances from the first layer to the last.

    ``curve`` is how it goes from one point to the next: ``"linear"`` or ``"cosine"``. Make one with
    :func:`ramp` or :func:`gradient`.
    """

    points: tuple
    curve: str = "linear"

    def at_layers(self, num_layers: int) -> Any:
        """The values, ``[num_layers]``; float64 NumPy unless a point is traced."""
        # A lone layer is the last one, as in mergekit.
        depth = np.arange(num_layers) / (num_layers - 1) if num_layers > 1 else np.ones(num_layers)
        at = depth * (len(self.points) - 1)
        low = np.minimum(at.astype(int), max(len(self.points) - 2, 0))
        share = at - low
        if self.curve == "cosine":
            share = (1 - np.cos(np.pi * share)) / 2
        points = stack_numbers(self.points)
        return (1 - share) * points[low] + share * points[np.minimum(low + 1, len(self.points) - 1)]


def ramp(start: float, stop: float, curve: str = "linear") -> Ramp:
    """From ``start`` at the first layer to ``stop`` at the last, on a line or half a cosine.

    A lone layer gets ``stop``.
    """
    if curve not in ("linear", "cosine"):
        raise InputError(f"ramp curve {curve!r}: expected 'linear' or 'cosine'")
    return Ramp((start, stop), curve)


def gradient(points: Sequence[float]) -> Ramp:
    """A gradient list as in mergekit: points at equal distances over depth, lines between them.

    A lone layer gets the last point.
    """
    if not len(points):
        raise InputError("a gradient needs at least one point, got an empty list")
    return Ramp(tuple(points))


jax.tree_util.register_pytree_node(
    Ramp, lambda r: (r.points, r.curve), lambda curve, points: Ramp(tuple(points), curve)
)


def stack_numbers(values: Sequence[Any]) -> Any:
    """Stacks numbers in float64 NumPy, or in JAX if one of them is a JAX array."""
    if any(isinstance(v, jax.Array) for v in values):
        return jnp.stack([jnp.asarray(v, jnp.float32) for v in values])
    return np.asarray(values, np.float64)
