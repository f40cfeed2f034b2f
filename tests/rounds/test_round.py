import jax
import numpy as np
import pytest

from imm_jax.config import ArmConfig
from imm_jax.rounds.round import merge
from imm_jax.rounds.stages import Later

SCHEDULE = (1.0, 0.5, 0.25)


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    stack = rng.normal(size=(3, 4, 5)).astype(np.float32)
    return {"embed": rng.normal(size=(6, 4)).astype(np.float32), "layers": {"kernel": stack}}


@pytest.mark.parametrize("anchor", ["base", "previous"])
@pytest.mark.parametrize("t", [1, 2, 3, 4, 9])
def test_a_schedule_scales_the_weights_of_its_round_and_its_last_factor_holds_on(t, anchor):
    base, current, tuned = map(tree, range(3))
    weights, outside = (0.2, 1.0, 0.6), 0.4
    arm = ArmConfig(
        weight=weights, outside=outside, schedule=SCHEDULE, drop_rate=0.0, merge_with=anchor
    )
    merged = merge(arm, t, base, Later(lambda: current), tuned, jax.random.key(0))
    factor = {1: 1.0, 2: 0.5}.get(t, 0.25)
    start = jax.tree.map(np.float64, base if anchor == "base" else current)
    move = lambda a, b, w: a + w * (np.float64(b) - a)
    by_layer = factor * np.array(weights)[:, None, None]
    expected = {
        "embed": move(start["embed"], tuned["embed"], factor * outside),
        "layers": {"kernel": move(start["layers"]["kernel"], tuned["layers"]["kernel"], by_layer)},
    }
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), merged, expected)
