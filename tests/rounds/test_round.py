import jax
import numpy as np
import pytest

from imm_jax.config import ArmConfig
from imm_jax.evaluation import Answer
from imm_jax.rounds.round import Tools, improve, merge
from imm_jax.rounds.stages import Later, Stages

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
    merged = merge(arm, t, Later(lambda: base), Later(lambda: current), tuned, jax.random.key(0))
    factor = {1: 1.0, 2: 0.5}.get(t, 0.25)
    start = jax.tree.map(np.float64, base if anchor == "base" else current)
    move = lambda a, b, w: a + w * (np.float64(b) - a)
    by_layer = factor * np.array(weights)[:, None, None]
    expected = {
        "embed": move(start["embed"], tuned["embed"], factor * outside),
        "layers": {"kernel": move(start["layers"]["kernel"], tuned["layers"]["kernel"], by_layer)},
    }
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), merged, expected)


def memory_kinds(params) -> set[str]:
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(params)}


@pytest.mark.parametrize("start_from", ["merged", "base"])
def test_models_that_wait_are_in_the_hosts_memory_while_one_is_trained(start_from, tmp_path):
    """Two rounds come to the same, and what is trained alone is on the device."""
    answer = Answer(
        id="a", sample=0, text="7", answer="7", correct=True, tokens=1, logprob=0.0,
        finish_reason="stop",
    )  # fmt: skip
    arm = ArmConfig(weight=0.5, start_from=start_from)
    original = jax.tree.map(jax.numpy.asarray, tree(0))

    def rounds(folder, put_aside: bool):
        base = Later(lambda: jax.tree.map(jax.numpy.array, original))
        current = Later(base)

        def fit(params, selected, t, stages, donate):
            assert donate == put_aside and memory_kinds(params) == {"device"}
            if put_aside:
                assert memory_kinds(base.value) == memory_kinds(current.value) == {"pinned_host"}
            tuned = jax.tree.map(lambda x: x * 1.5 + t, params)
            if donate:
                jax.tree.map(lambda x: x.delete(), params)
            return tuned

        tools = Tools(
            sample=lambda current, t, stages: current() and [answer],
            select=lambda current, samples, t, stages: list(samples),
            fit=fit,
            evaluate=lambda params, stages: {},
            describe=lambda current, samples, t, stages: {},
        )
        for t in (1, 2):
            place = Stages(folder / f"round-{t}")
            current, _ = improve(
                t, arm, base, current, tools, jax.random.key(0), place, place, put_aside=put_aside
            )
        assert memory_kinds(base()) == memory_kinds(current()) == {"device"}
        jax.tree.map(np.testing.assert_array_equal, base(), original)
        return current()

    found = [rounds(tmp_path / str(put_aside), put_aside) for put_aside in (False, True)]
    jax.tree.map(np.testing.assert_array_equal, *found)
