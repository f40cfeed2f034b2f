"""Whole fine-tunes with adapters: what moves, what is saved, what is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.checkpoints import restore
from imm_jax.errors import InputError, Interrupted
from imm_jax.training import fit as fit_module
from imm_jax.training.batching import Batches
from imm_jax.training.config import LoraConfig
from imm_jax.training.fit import fit
from imm_jax.training.lora import init_adapters
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import init_state, make_train_step
from imm_jax.tree import map_with_path, num_bytes

LORA = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture(scope="module")
def config(small_config):
    return dataclasses.replace(small_config, lora=LORA, save_every_steps=2)


@pytest.fixture(scope="module")
def sequences(make_sequences):
    return make_sequences(20)


def leaf(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return np.asarray(tree, np.float64)


@pytest.fixture(scope="module")
def whole(tiny, sequences, config):
    return fit(*tiny, sequences, config, seed=0)


def test_what_adapters_stand_beside_is_not_given_away(tiny, sequences, config, whole):
    model, params = tiny
    params = jax.tree.map(jnp.array, params)
    new, _ = fit(model, params, sequences, config, seed=0, donate=True)
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, new, whole[0])


def test_a_fit_learns_in_the_layers_alone(tiny, sequences, config):
    model, params = tiny
    before = jax.tree.map(np.array, params)
    config = dataclasses.replace(
        config, epochs=25, learning_rate=3e-2, lora=LoraConfig(rank=8, targets=("layers/attn",))
    )
    new, stats = fit(model, params, sequences, config, seed=0)
    assert stats["last_loss"] < 0.9 * stats["first_loss"] and stats["skipped"] == 0

    def check(path, new, old):
        change = np.float64(new) - old
        if "attn/" not in path or not path.endswith("kernel"):
            return np.testing.assert_array_equal(new, old)
        for layer in change:
            values = np.linalg.svd(layer, compute_uv=False)
            assert values[7] > 1e-3 > 1e-5 > values[8:].max(initial=0)  # of rank 8, no more

    map_with_path(check, new, params)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_half_precision_base_stays_one_and_comes_back_as_one(tiny, sequences, config):
    model, params = tiny
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    new, _ = fit(model, half, sequences, config, seed=0)
    assert {x.dtype for x in jax.tree.leaves((half, new))} == {jnp.dtype("bfloat16")}
    fresh = init_adapters(half, LORA, jax.random.key(0))
    state = init_state(fresh, make_optimizer(config), 1)
    jaxpr = jax.make_jaxpr(make_train_step(model, make_optimizer(config), config))(
        state, Batches(sequences, config, seed=0)[0], half
    )
    # The step hands out nothing but the adapters, their state and scalars.
    out = [x for x in jaxpr.out_avals if x.ndim]
    assert sum(x.size for x in out) == 3 * sum(x.size for x in jax.tree.leaves(fresh))


@pytest.mark.parametrize("stop_after", [0, 3])
def test_a_stopped_fit_goes_on_to_the_same_bits(
    tiny, sequences, config, tmp_path, stop_after, whole
):
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        fit(*tiny, sequences, config, seed=0, checkpoints=tmp_path,
            should_stop=lambda: next(asked) == stop_after)  # fmt: skip
    resumed, stats = fit(*tiny, sequences, config, seed=0, checkpoints=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, whole[0], resumed)
    assert stats["history"] == whole[1]["history"]


def test_another_seed_draws_other_adapters(tiny, sequences, config):
    """With one sequence its order cannot matter."""
    first, same, other = (fit(*tiny, sequences[:1], config, seed=seed)[0] for seed in (0, 0, 1))
    up = lambda tree: leaf(tree, "layers/mlp/up/kernel")
    assert np.array_equal(up(first), up(same)) and not np.array_equal(up(first), up(other))


def test_checkpoints_hold_adapters_and_their_state_alone(tiny, sequences, config, tmp_path):
    model, params = tiny
    config = dataclasses.replace(config, lora=LoraConfig(rank=1))
    fit(model, params, sequences, config, seed=0, checkpoints=tmp_path)
    folder = tmp_path / "step_00000004"
    held = num_bytes(restore(folder))
    size = 4 * sum(
        3 * sum(leaf(params, path).shape[1:])
        for path in init_adapters(params, config.lora, jax.random.key(0))
    )
    # Adapters and two moments of each; beside them the history (6 x 6) and three counts.
    assert held == 3 * size + 4 * (6 * 6 + 3)
    on_disk = sum(path.stat().st_size for path in folder.rglob("d/*"))
    # Orbax needs 20 to 70 kB for itself, the more the longer writing takes.
    assert on_disk < num_bytes(params)


def test_checkpoints_belong_to_the_parameters_they_were_made_with(
    tiny, sequences, config, tmp_path
):
    model, params = tiny
    fit(model, params, sequences, config, seed=0, checkpoints=tmp_path)
    other = jax.tree.map(lambda x: x * np.float32(1.001), params)
    with pytest.raises(InputError, match="differs in parameters;"):
        fit(model, other, sequences, config, seed=0, checkpoints=tmp_path)
    more = dataclasses.replace(config, lora=LoraConfig(rank=5, alpha=6.0))
    with pytest.raises(InputError, match="differs in lora;"):
        fit(model, params, sequences, more, seed=0, checkpoints=tmp_path)


def test_a_second_fit_compiles_nothing(tiny, make_sequences, sequences, config, whole):
    model, params = tiny
    names, step = [], fit_module._train_step(model, config)
    before = step._cache_size()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **about: names.append((name, about.get("fun_name")))
    )
    params = jax.device_put(params, jax.devices()[0])  # as a round's are
    longer = dataclasses.replace(config, epochs=3, save_every_steps=1)
    fit(model, params, sequences, longer, seed=1)
    assert not [name for event, name in names if event.endswith("backend_compile_duration")]
    assert step._cache_size() == before
