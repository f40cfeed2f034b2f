import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.training.batching import Batches, Sequence
from imm_jax.training.config import TrainingConfig
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import init_state, make_train_step

CONFIG = TrainingConfig(
    learning_rate=1e-2, schedule="constant", warmup_ratio=0.0, batch_size=8, micro_batch_size=3,
    max_length=32, bucket=8, loss_chunk=16,
)  # fmt: skip


@cache
def compiled(model, config):
    """One jitted step for all tests that use it, because compiling is what takes the time."""
    return make_train_step(model, make_optimizer(config), config)


def run(tiny, sequences, config=CONFIG, updates=1):
    model, params = tiny
    state = init_state(params, make_optimizer(config), 10)
    batch = Batches(sequences, config, seed=0)[0]
    for _ in range(updates):
        state, metrics = compiled(model, config)(state, batch)
    return state, metrics


@pytest.fixture(scope="module")
def sequences(make_sequences):
    return make_sequences(5)


@pytest.fixture(scope="module")
def reference(tiny, sequences):
    """Loss, its gradient and the right tokens from plain logits of one sequence a row."""
    model, params = tiny
    tokens = np.zeros((5, 24), np.int32)
    response = np.zeros((5, 24))
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence.tokens)] = sequence.tokens
        response[row, sequence.prompt_length : len(sequence.tokens)] = 1

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logp = jax.nn.log_softmax(model.apply({"params": params}, tokens))[:, :-1]
        picked = jnp.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0]
        return -jnp.sum(picked * response[:, 1:]) / response.sum()

    best = np.asarray(jax.jit(model.apply)({"params": params}, tokens).argmax(-1))
    right = ((best[:, :-1] == tokens[:, 1:]) * response[:, 1:]).sum()
    return *loss(params), right, response.sum()


@pytest.mark.parametrize(
    ("packing", "micro", "options"),
    [
        (True, 2, {}),
        (True, 2, {"remat_policy": "minimal"}),
        (True, 8, {"remat": False}),
        (False, 2, {"remat": False}),
    ],
)
def test_accumulation_packing_and_remat_give_the_gradient_of_the_plain_loss(
    tiny, sequences, reference, packing, micro, options
):
    config = dataclasses.replace(CONFIG, packing=packing, micro_batch_size=micro, **options)
    model, params = tiny
    descent = optax.sgd(1.0)  # the update is then the gradient
    step = make_train_step(model, descent, config)
    batch = Batches(sequences, config, seed=0)[0]
    assert (batch.micro_batches == 1) == (micro == 8)
    state, metrics = step(init_state(params, descent, 1), batch)
    loss, grads, right, count = reference
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
    assert float(metrics["tokens"]) == count
    np.testing.assert_allclose(metrics["accuracy"], right / count, rtol=1e-6)
    # Relative too: on one CPU float32 is 1.6e-6 off a float64 element of -0.41111.
    for before, after, grad in zip(*map(jax.tree.leaves, (params, state.params, grads))):
        np.testing.assert_allclose(before - after, grad, rtol=4e-6, atol=1e-6)


@pytest.mark.parametrize("remat", [True, False])
def test_on_cpu_products_alone_are_narrow(tiny, sequences, reference, remat):
    """Their factors are bfloat16 and their sums float32; the rest is not seen to round."""
    model, params = tiny
    config = dataclasses.replace(
        CONFIG, micro_batch_size=8, remat=remat, compute_dtype="bfloat16", packing=False
    )
    descent = optax.sgd(1.0)  # the update is then the gradient
    step, state = make_train_step(model, descent, config), init_state(params, descent, 1)
    batch = Batches(sequences, config, seed=0)[0]
    products = re.findall(r"dot_general.*: (.*)", step.lower(state, batch).as_text())
    narrow = [types for types in products if types.count("bf16") == 2]
    assert all(types.endswith("f32>") for types in products)
    assert len(narrow) == len(products) > 27  # nine a layer, each with two more in its gradient
    state, metrics = step(state, batch)
    ours = jax.tree.map(lambda old, new: old - new, params, state.params)

    loss, exact, *_ = reference
    error = lambda grads: float(
        optax.global_norm(jax.tree.map(jnp.subtract, grads, exact)) / optax.global_norm(exact)
    )
    assert 1e-4 < error(ours) < 0.03
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-3)
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}


def test_the_callers_parameters_outlive_the_donated_state(tiny, sequences):
    model, params = tiny
    params = jax.tree.map(jnp.asarray, params)
    before = jax.tree.map(np.array, params)
    state, _ = run((model, params), sequences, updates=2)
    jax.tree.map(np.testing.assert_array_equal, before, params)
    assert int(state.step) == 2


def test_the_step_is_pure_and_closes_over_no_arrays(tiny, sequences):
    model, params = tiny
    step = compiled(model, CONFIG)
    state = init_state(params, make_optimizer(CONFIG), 4)
    batch = Batches(sequences, CONFIG, seed=0)[0]
    consts = jax.make_jaxpr(step)(state, batch).consts
    # Arrays closed over would show as constants; only the layers' kinds ([L] integers) may.
    assert sum(np.size(const) for const in consts) <= model.config.num_hidden_layers
    outs = [step(jax.tree.map(jnp.copy, state), batch) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *outs)


def test_loss_falls_on_a_batch_seen_again_and_again(tiny, sequences):
    _, first = run(tiny, sequences)
    _, last = run(tiny, sequences, updates=15)
    assert float(last["loss"]) < 0.3 * float(first["loss"])
    assert float(last["learning_rate"]) == np.float32(CONFIG.learning_rate)


def test_half_precision_products_keep_float32_weights(tiny, sequences, reference):
    model, params = tiny
    state, metrics = run((model.clone(dtype=jnp.bfloat16), params), sequences)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], reference[0], rtol=0.02)


def test_one_program_serves_batches_of_any_filling(tiny, make_sequences):
    model, params = tiny
    run(tiny, make_sequences(5))
    step = compiled(model, CONFIG)
    before = step._cache_size()
    state = init_state(params, make_optimizer(CONFIG), 4)
    longest = [Sequence(tuple(range(20)), 3)]
    filled = set()
    for count in (7, 1, 3):
        batch = Batches(longest + make_sequences(count), CONFIG, seed=0)[0]
        filled.add(int(batch.micro_batches))
        state, _ = step(state, batch)
    assert len(filled) > 1 and step._cache_size() == before == 1


@pytest.mark.parametrize("value", [np.nan, 1e38])
def test_a_step_that_is_not_finite_changes_nothing(tiny, sequences, value):
    """The oracle is a run that never saw the batch; Adam's own count must not see it either."""
    model, params = tiny
    batch = Batches(sequences, CONFIG, seed=0)[0]
    poisoned = batch._replace(mask=np.where(batch.mask > 0, np.float32(value), 0))
    step = compiled(model, CONFIG)

    def run(batches):
        state, skipped = init_state(params, make_optimizer(CONFIG), 4), []
        for batch in batches:
            state, metrics = step(state, batch)
            skipped.append(float(metrics["skipped"]))
            assert np.isfinite(metrics["grad_norm"]) == (not skipped[-1])
        return state, skipped

    state, skipped = run([batch, poisoned, poisoned, batch])
    lacking, none = run([batch, batch])
    assert skipped == [0, 1, 1, 0] and none == [0, 0]
    jax.tree.map(np.testing.assert_array_equal, state[2:], lacking[2:])
    assert (int(state.step), int(lacking.step)) == (4, 2)


def test_a_gradient_that_overflows_is_enough(tiny_config, random_params, sequences):
    """The embedding is so small, and its factor so great, that only its gradient overflows."""
    config = tiny_config("llama", tie_word_embeddings=False, embed_scale=1e25)
    params = random_params(config)
    params["embed"]["embedding"] *= np.float32(1e-25)
    before = init_state(params, make_optimizer(CONFIG), 4)
    state, metrics = run((Decoder(config), params), sequences)
    assert np.isfinite(metrics["loss"]) and np.isinf(metrics["grad_norm"]) and metrics["skipped"]
    jax.tree.map(np.testing.assert_array_equal, state[2:], before[2:])
