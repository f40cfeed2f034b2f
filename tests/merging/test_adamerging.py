"""AdaMerging: its entropy and gradient against float64 NumPy, and what it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imm_jax import merging, tree
from imm_jax.errors import InputError
from tests.merging import merge_oracles as oracle


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"layers": {"w": (2, 4, 4)}, "head": (4, 3)}
    make = lambda shape: (scale * rng.normal(size=shape)).astype(np.float32)
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))


BASE = draw(0)
MODELS = [jax.tree.map(np.add, BASE, draw(i, 0.5)) for i in (1, 2)]
BATCHES = np.random.default_rng(3).normal(size=(3, 6, 4)).astype(np.float32)


def logits(params, x):
    for w in params["layers"] if isinstance(params["layers"], list) else _each(params["layers"]):
        x = x @ w["w"]
    return x @ params["head"]


def _each(layers):
    return [{"w": layers["w"][i]} for i in range(2)]


def wide_entropy(weights, x):
    """The entropy in float64 at weights ``[models, 2 layers + 1]``."""
    merged = jax.tree.map(np.float64, BASE)
    for row, model in zip(weights, MODELS):
        delta = jax.tree.map(lambda m, b: np.float64(m) - b, model, BASE)
        merged["layers"]["w"] = merged["layers"]["w"] + row[:2, None, None] * delta["layers"]["w"]
        merged["head"] = merged["head"] + row[2] * delta["head"]
    return oracle.entropy(logits(merged, np.float64(x)))


def slopes(weights, x, step=1e-5):
    found = np.zeros_like(weights)
    for at in np.ndindex(weights.shape):
        up, down = weights.copy(), weights.copy()
        up[at] += step
        down[at] -= step
        found[at] = (wide_entropy(up, x) - wide_entropy(down, x)) / (2 * step)
    return found


def one_step(**kwargs):
    """A step of plain gradient descent at rate 1: the weights' change is the gradient."""
    return merging.adamerging(
        logits, BASE, MODELS, BATCHES, steps=1, bounds=None, optimizer=optax.sgd(1.0), **kwargs
    )


def test_gradient_by_layer_is_that_of_finite_differences():
    merged, weights, history = one_step(init=0.4)
    start = np.full((2, 3), 0.4)
    expected = start - slopes(start, BATCHES[0])
    found = [[*w.layers, w.default] for w in weights]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(history, [wide_entropy(start, BATCHES[0])], rtol=1e-5)
    again = merging.merge_params(BASE, MODELS, weight=weights)
    assert jax.tree.all(jax.tree.map(np.array_equal, merged, again))


def test_gradient_by_model_is_the_sum_over_layers():
    _, weights, _ = one_step(per_layer=False)
    start = np.full((2, 3), 0.3)
    expected = 0.3 - slopes(start, BATCHES[0]).sum(1)
    np.testing.assert_allclose(weights, expected, atol=2e-6)


def test_task_vectors_are_transformed():
    _, _, history = one_step(init=0.15, transform=merging.scale(2.0))
    np.testing.assert_allclose(history, [wide_entropy(np.full((2, 3), 0.3), BATCHES[0])], rtol=1e-5)


def test_both_layouts_and_one_batch_after_another():
    arguments = {"steps": 4, "optimizer": optax.sgd(0.1)}
    _, weights, history = merging.adamerging(logits, BASE, MODELS, BATCHES, **arguments)
    listed = [tree.unstack_layers(m) for m in (BASE, *MODELS)]
    _, others, same = merging.adamerging(logits, listed[0], listed[1:], BATCHES, **arguments)
    np.testing.assert_allclose(history, same, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weights, others)
    expected, state = [], np.full((2, 3), 0.3)
    for x in (*BATCHES, BATCHES[0]):
        expected.append(wide_entropy(state, x))
        state = np.clip(state - 0.1 * slopes(state, x), 0, 1)
    np.testing.assert_allclose(history, expected, rtol=1e-5)


def test_steps_are_told_and_can_end_the_search():
    told, arguments = [], {"steps": 3, "optimizer": optax.adam(0.1)}
    after = lambda number, entropy: told.append((number, entropy))
    found = merging.adamerging(logits, BASE, MODELS, BATCHES, after=after, **arguments)
    expected = merging.adamerging(logits, BASE, MODELS, BATCHES, **arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    assert told == list(enumerate(map(float, found[2])))

    def stop(number, entropy):
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merging.adamerging(logits, BASE, MODELS, BATCHES, steps=5, after=stop)


@pytest.mark.parametrize("per_layer", [True, False])
def test_it_finds_the_better_of_two_models(per_layer):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(5, 3)).astype(np.float32)
    base = {"layers": {"w": np.stack([0.2 * truth])}}
    better, worse = ({"layers": {"w": np.stack([s * truth])}} for s in (2.2, -1.8))
    batches = rng.normal(size=(4, 32, 5)).astype(np.float32)
    merged, weights, history = merging.adamerging(
        lambda params, x: x @ params["layers"]["w"][0],
        base,
        [better, worse],
        batches,
        steps=50,
        per_layer=per_layer,
        optimizer=optax.adam(0.05),
    )
    good, bad = (float(w.layers[0] if per_layer else w) for w in weights)
    assert good == 1 and bad == 0 and history.shape == (50,) and history[-1] < history[0] / 2
    np.testing.assert_allclose(merged["layers"]["w"][0], 2.2 * truth, rtol=1e-6)


def test_the_gradient_of_the_weights_keeps_the_task_vectors_alone():
    base, *models = [{"w": jnp.full((256, 256), float(i))} for i in range(3)]
    merge = lambda weights, base, models: merging.merge_params(base, models, weight=weights)
    gradient = lambda w, base, models, g: jax.vjp(lambda w: merge(w, base, models), w)[1](g)
    compiled = jax.jit(gradient).lower([0.3, 0.3], base, models, base).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * base["w"].nbytes
    found = compiled([0.3, 0.3], base, models, {"w": jnp.ones((256, 256))})[0]
    assert [float(x) for x in found] == [256 * 256, 2 * 256 * 256]


def test_masked_rows_do_not_count():
    mask = np.random.default_rng(1).random((3, 6)) < 0.5
    x = np.where(mask[..., None], BATCHES, 100)
    inputs = {"x": x, "mask": mask}
    _, _, history = merging.adamerging(
        lambda p, b: logits(p, b["x"]),
        BASE,
        MODELS,
        inputs,
        steps=1,
        mask=lambda b: b["mask"],
    )
    expected = wide_entropy(np.full((2, 3), 0.3), BATCHES[0][mask[0]])
    np.testing.assert_allclose(history, [expected], rtol=1e-5)


def test_a_model_may_give_its_entropy_itself():
    found = one_step()
    ours = lambda params, x: merging.mean_entropy(logits(params, x))
    expected = merging.adamerging(
        ours, BASE, MODELS, BATCHES, steps=1, bounds=None, optimizer=optax.sgd(1.0)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("after", [None, lambda number, entropy: None])
def test_what_is_not_finite_ends_the_search(after):
    spoilt = BATCHES.copy()
    spoilt[2] = np.nan
    arguments = {"steps": 5, "after": after}
    with pytest.raises(InputError, match="adamerging: the entropy before step 2 is nan"):
        merging.adamerging(logits, BASE, MODELS, spoilt, **arguments)
    arguments |= {"steps": 1, "bounds": None, "optimizer": optax.sgd(np.inf)}
    with pytest.raises(InputError, match="adamerging: a weight is not finite after step 0"):
        merging.adamerging(logits, BASE, MODELS, BATCHES, **arguments)


def test_under_jit():
    search = lambda base, models: merging.adamerging(logits, base, models, BATCHES, steps=2)
    found, expected = jax.jit(search)(BASE, MODELS), search(BASE, MODELS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_mean_entropy():
    x = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32) * 5
    assert abs(merging.mean_entropy(x) - oracle.entropy(np.float64(x))) < 1e-6
    half = jnp.asarray(x, jnp.bfloat16)
    assert abs(merging.mean_entropy(half) - oracle.entropy(np.float64(half))) < 1e-6
    np.testing.assert_allclose(merging.mean_entropy(jnp.zeros((3, 8))), np.log(8), rtol=1e-6)
    assert merging.mean_entropy(x, np.zeros((4, 5), bool)) == 0


def test_impossible_tokens_have_no_entropy_and_no_gradient():
    x = jnp.array([[1.0, 2.0, -jnp.inf], [0.0, -jnp.inf, -jnp.inf]])
    p = 1 / (1 + np.e)
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p)) / 2
    value, slope = jax.value_and_grad(merging.mean_entropy)(x)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.all(np.isfinite(slope)) and np.all(slope[jnp.isneginf(x)] == 0)


BAD = {
    "no layers": (
        lambda: merging.adamerging(lambda p, x: x * p, 1.0 * jnp.ones(2), [jnp.ones(2)], BATCHES,
                                   steps=1),
        "no layers; use per_layer=False",
    ),
    "one tree": (
        lambda: merging.adamerging(logits, BASE, MODELS[0], BATCHES, steps=1),
        "takes a list of tuned models",
    ),
    "a mask for a number": (
        lambda: merging.adamerging(lambda p, x: x.sum(), BASE, MODELS, BATCHES, steps=1,
                                   mask=lambda x: x > 0),
        "mask is for logits",
    ),
    "steps": (lambda: merging.adamerging(logits, BASE, MODELS, BATCHES, steps=-1), "steps is -1"),
}  # fmt: skip


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_calls(call, message):
    with pytest.raises(InputError, match=message):
        call()
