"""Importance of layers against plain formulas on single sequences, models rebuilt without a layer,
and layers run one by one.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.analysis.importance import (
    _add_gradients,
    ablation_importance,
    block_influence,
    mean_loss,
    solution_batches,
    taylor_importance,
    without_layer,
)
from imm_jax.errors import InputError, Interrupted
from imm_jax.models.decoder import Block, Decoder
from imm_jax.models.tables import layer_kinds, make_tables, rotary
from imm_jax.training.batching import Sequence
from imm_jax.training.config import TrainingConfig
from imm_jax.training.loss import LossSums
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import init_state, make_train_step
from imm_jax.tree import num_bytes, path_str


@partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens):
    return model.apply({"params": params}, tokens[None])[0]


def loss_of_one(model, params, tokens, counts):
    logprobs = jax.nn.log_softmax(logits_of(model, params, tokens[:-1]))
    picked = jnp.take_along_axis(logprobs, tokens[1:, None], axis=1)[:, 0]
    return -jnp.sum(jnp.where(counts, picked, 0.0))


loss_alone = jax.jit(loss_of_one, static_argnums=0)
loss_and_grads = jax.jit(jax.value_and_grad(loss_of_one, argnums=1), static_argnums=0)


def mean_over(fn, model, params, sequences):
    """The sum of ``fn`` over single sequences, divided by their response tokens."""
    found, count = [], 0
    for sequence in sequences:
        places = np.arange(1, len(sequence.tokens)) >= sequence.prompt_length
        found.append(fn(model, params, jnp.asarray(sequence.tokens), places))
        count += places.sum()
    return jax.tree.map(lambda *parts: np.sum(np.asarray(parts, np.float64), 0) / count, *found)


def batches_of(params, solutions, **sizes):
    return solution_batches(solutions, params, **({"batch_size": 3, "micro_batch_size": 2} | sizes))


@pytest.fixture(scope="module")
def batches(tiny, solutions):
    return batches_of(tiny[1], solutions)


MODULES = {
    "attn/q": r"attn/q/", "attn/k": r"attn/k/", "attn/v": r"attn/v/", "attn/o": r"attn/o/",
    "mlp/gate": r"gate", "mlp/up": r"up/", "mlp/down": r"down", "norms": r"norm/",
}  # fmt: skip


def test_taylor_is_the_formula(tiny, solutions, batches):
    model, params = tiny
    found = taylor_importance(model, params, batches)
    loss, grads = mean_over(loss_and_grads, model, params, solutions)
    products = {
        path_str(path): np.abs(np.float64(w) * np.float64(g))
        for (path, w), g in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(grads))
    }
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.sums.modules.keys() == MODULES.keys()
    by_hand = np.zeros((len(MODULES), 3))
    for row, part in enumerate(MODULES.values()):
        inside = [x for path, x in products.items() if part in path and path.startswith("layers")]
        for layer in range(3):
            by_hand[row, layer] = sum(x[layer].sum() for x in inside)
    for row, name in enumerate(MODULES):
        np.testing.assert_allclose(found.sums.modules[name], by_hand[row], rtol=2e-4)
    shares = by_hand.sum(axis=0) / by_hand.sum()
    np.testing.assert_allclose(found.layers, shares, rtol=2e-4)
    whole = taylor_importance(model, params, batches_of(params, solutions, batch_size=5))
    np.testing.assert_allclose(whole.layers, shares, rtol=2e-4)  # the split does not show
    outside = {path.split("/")[0]: x.sum() for path, x in products.items() if path[:6] != "layers"}
    assert found.sums.outside == pytest.approx(outside, rel=2e-4)


def rebuilt_without(model, params, layer):
    c = model.config
    rest = [i for i in range(c.num_hidden_layers) if i != layer]
    types = tuple(c.layer_types[i] for i in rest) if c.layer_types else c.layer_types
    config = dataclasses.replace(c, num_hidden_layers=len(rest), layer_types=types)
    layers = jax.tree.map(lambda x: x[np.array(rest)], params["layers"])
    return Decoder(config), {**params, "layers": layers}


def test_ablation_is_the_model_without_the_layer(tiny, solutions, batches):
    model, params = tiny
    found = ablation_importance(model, params, batches)
    assert found.loss == pytest.approx(mean_over(loss_alone, model, params, solutions), rel=1e-5)
    tokens = jnp.asarray(solutions[1].tokens)
    for layer in range(3):
        smaller, rest = rebuilt_without(model, params, layer)
        if layer == 1:
            np.testing.assert_array_equal(
                logits_of(model, without_layer(params, layer), tokens),
                logits_of(smaller, rest, tokens),
            )
        expected = mean_over(loss_alone, smaller, rest, solutions)
        assert found.losses[layer] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found.layers, found.losses - found.loss)


def test_influence_is_one_minus_the_cosine(tiny, solutions, batches):
    """Blocks applied one by one to single sequences."""
    model, params = tiny
    c = model.config
    sums, count = np.zeros(3), 0
    block = Block(c, jnp.float32)
    run = jax.jit(lambda own, x, tables, kind: block.apply({"params": own}, x, tables, kind)[0])
    for sequence in solutions:
        tokens = jnp.asarray([sequence.tokens[:-1]])
        positions = jnp.arange(tokens.shape[1])[None]
        tables = make_tables(c, rotary(c, positions), positions, [(positions, True)])
        x = jnp.asarray(params["embed"]["embedding"])[tokens] * c.embed_scale
        for layer in range(3):
            own = jax.tree.map(lambda leaf, i=layer: leaf[i], params["layers"])
            out = run(own, x, tables, int(layer_kinds(c)[1][layer]))
            a, b = (np.float64(y)[0, sequence.prompt_length - 1 :] for y in (x, out))
            cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
            sums[layer] += (1 - cosines).sum()
            x = out
        count += len(sequence.tokens) - sequence.prompt_length
    np.testing.assert_allclose(block_influence(model, params, batches), sums / count, rtol=1e-4)


def test_a_layer_that_does_nothing_does_not_matter(llama, solutions):
    model, params = llama
    batches = batches_of(params, solutions)
    idle = without_layer(params, 1)
    assert taylor_importance(model, idle, batches).sums.modules["attn/o"][1] == 0
    assert ablation_importance(model, idle, batches).layers[1] == 0
    assert block_influence(model, idle, batches)[1] == pytest.approx(0, abs=1e-6)


def test_memory_is_no_more_than_in_training(llama, solutions):
    model, params = llama
    config = TrainingConfig(batch_size=3, micro_batch_size=2)
    optimizer = make_optimizer(config)
    batch = batches_of(params, solutions)[0]
    state = jax.eval_shape(lambda p: init_state(p, optimizer, 1), params)
    step = make_train_step(model, optimizer, config)
    training = step.lower(state, batch).compile().memory_analysis()
    total = jax.eval_shape(lambda p: (p, LossSums(*jnp.zeros(3))), params)
    ours = _add_gradients.lower(model.clone(remat=True), params, batch, total).compile()
    ours = ours.memory_analysis()
    held = lambda found: found.argument_size_in_bytes + found.temp_size_in_bytes
    assert held(ours) <= held(training)
    # The sum of gradients is given back in its own memory: no second one.
    assert ours.alias_size_in_bytes >= num_bytes(params)


def test_stopping_and_nothing_to_look_at(llama, solutions):
    model, params = llama
    batches = batches_of(params, solutions)
    with pytest.raises(Interrupted, match="Taylor"):
        taylor_importance(model, params, batches, should_stop=lambda: True)
    with pytest.raises(InputError, match="no sequence with a response"):
        solution_batches([Sequence((3, 4, 5), 3)], params)


def test_one_program_for_all_batches_and_layers(llama, solutions):
    from imm_jax.analysis.importance import _add_loss

    model, params = llama
    batches = batches_of(params, solutions)
    _add_loss.clear_cache()
    ablation_importance(model, params, batches)
    mean_loss(model, params, batches)
    assert _add_loss._cache_size() == 2  # the whole model, and one for whatever layer is left out
