"""The straight line from a base to a tuned model."""

from imm_jax.errors import InputError

FARTHEST = 10.0


def path_weights(points: int, beyond: float = 1.0) -> list[float]:
    """Weights from 0, the base, to 1, the tuned model, at equal distances, and on to ``beyond``.

    ``merge_params(base, tuned, weight=w)`` is the model at ``w``; 0 and 1 give the models' own
    bits.

    Args:
      points: how many from 0 to 1, both ends included; at least 2.
      beyond: where the line ends, 1 to 10; past 1 the same steps go on up to it.

    Raises:
      InputError: fewer than 2 points, or an end elsewhere.
    """
    if points < 2:
        raise InputError(f"path: {points} points, expected at least 2")
    if not 1 <= beyond <= FARTHEST:
        raise InputError(f"path: ends at {beyond}, expected 1 to {FARTHEST:g}")
    steps = points - 1
    return [i / steps for i in range(points + int((beyond - 1) * steps + 1e-9))]
