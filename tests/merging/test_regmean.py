"""RegMean: its formula in float64, the minimum it stands for, and Gram matrices of activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging, tree
from imm_jax.errors import InputError
from tests.merging import merge_oracles as oracle


def activations(seed, shape):
    """Correlated features, one of them a thousand times the others, as language models have."""
    rng = np.random.default_rng(seed)
    features = shape[-1]
    x = rng.normal(size=shape) + 2 * rng.normal(size=(*shape[:-1], 1))
    x = x @ (np.eye(features) + 0.3 * rng.normal(size=(features, features)))
    return (x * np.where(np.arange(features) == 3, 1000, 1)).astype(np.float32)


def model(seed, near=None):
    draw = np.random.default_rng(seed).normal
    new = {
        "embed": draw(size=(9, 16)),
        "layers": {"q": {"kernel": draw(size=(3, 16, 8)), "bias": draw(size=(3, 8))}},
        "head": {"kernel": draw(size=(16, 5))},
    }
    near = jax.tree.map(np.zeros_like, new) if near is None else near
    return jax.tree.map(lambda a, b: np.float32(a + 0.1 * b), near, new)


BASE = model(0)
MODELS = [model(i, BASE) for i in (1, 2, 3)]


def grams_of(seed):
    inputs = {
        "layers": {"q": {"kernel": activations(seed, (3, 50, 16)), "bias": None}},
        "head": {"kernel": activations(seed + 100, (50, 16))},
    }
    return merging.gram_sums(inputs)[0]


GRAMS = [grams_of(i) for i in (1, 2, 3)]


def expected_kernel(pick, alpha):
    kernels, grams = [[np.float64(pick(t)) for t in trees] for trees in (MODELS, GRAMS)]
    return oracle.regmean(kernels, grams, alpha)


def near(found, expected):
    return np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("alpha", [0.9, 0.0])
def test_regmean_in_both_layouts(alpha):
    out = merging.regmean(MODELS, GRAMS, alpha=alpha)
    mean = jax.tree.map(lambda *xs: np.mean(np.float64(xs), axis=0), *MODELS)
    np.testing.assert_allclose(out["embed"], mean["embed"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        out["layers"]["q"]["bias"], mean["layers"]["q"]["bias"], rtol=1e-6, atol=1e-7
    )
    for layer in range(3):
        expected = expected_kernel(lambda t, i=layer: t["layers"]["q"]["kernel"][i], alpha)
        assert near(out["layers"]["q"]["kernel"][layer], expected)
    expected = expected_kernel(lambda t: t["head"]["kernel"], alpha)
    assert near(out["head"]["kernel"], expected)

    merge = jax.jit(lambda models, grams: merging.regmean(models, grams, alpha=alpha))
    listed = merge(*[[tree.unstack_layers(t) for t in trees] for trees in (MODELS, GRAMS)])
    same = jax.tree.map(np.array_equal, tree.unstack_layers(merge(MODELS, GRAMS)), listed)
    assert jax.tree.all(same)


def test_with_alpha_1_outputs_are_the_least_squares_fit():
    rng = np.random.default_rng(5)
    inputs = [rng.normal(size=(30, 6)).astype(np.float32) for _ in range(2)]
    kernels = [rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2)]
    grams = [merging.gram(x) for x in inputs]
    found = merging.regmean(kernels, grams, alpha=1.0, ridge=0.0)
    target = np.concatenate([np.float64(x) @ w for x, w in zip(inputs, kernels)])
    fit = np.linalg.lstsq(np.float64(np.concatenate(inputs)), target, rcond=None)[0]
    np.testing.assert_allclose(found, fit, atol=2e-6)


def test_inputs_that_no_model_uses_keep_the_mean():
    x = activations(0, (40, 16))
    x[:, 7] = 0
    grams = [{"head": {"kernel": merging.gram(x)}}] * 3
    out = merging.regmean(MODELS, grams)["head"]["kernel"]
    mean = np.mean([m["head"]["kernel"] for m in MODELS], axis=0)
    np.testing.assert_allclose(out[7], mean[7], rtol=1e-6)


def test_a_model_without_inputs_for_a_feature_has_no_say_in_it():
    grams = [np.diag([1.0, 0.0]).astype(np.float32), np.diag([1.0, 1.0]).astype(np.float32)]
    kernels = [np.array([[2.0], [5.0]], np.float32), np.array([[4.0], [7.0]], np.float32)]
    np.testing.assert_allclose(merging.regmean(kernels, grams), [[3], [7]], rtol=1e-5)


def test_bfloat16_models_keep_their_dtype_and_without_grams_are_averaged():
    models = [jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), m) for m in MODELS]
    out = merging.regmean(models, [{}] * 3)
    mean = merging.merge_models("linear", models)
    assert jax.tree.all(jax.tree.map(np.array_equal, out, mean))
    solved = merging.regmean(models, GRAMS)["head"]["kernel"]
    assert solved.dtype == jnp.bfloat16
    kernels = [np.float64(m["head"]["kernel"]) for m in models]
    expected = oracle.regmean(kernels, [np.float64(g["head"]["kernel"]) for g in GRAMS], 0.9)
    np.testing.assert_allclose(np.float64(solved), expected, rtol=2**-8, atol=1e-3)


def test_grams_leave_masked_rows_out():
    x = activations(2, (3, 4, 16))
    mask = np.random.default_rng(0).random((3, 4)) < 0.5
    rows = np.float64(x[mask])
    x[~mask] = np.nan
    grams, count = merging.gram_sums({"head": {"kernel": x}}, jnp.asarray(mask))
    np.testing.assert_allclose(grams["head"]["kernel"], rows.T @ rows, rtol=1e-5)
    assert count == len(rows)


def test_collected_grams_are_means_over_rows():
    x, w = activations(3, (4, 7, 16)), MODELS[0]["head"]["kernel"]
    sums = lambda params, batch: merging.gram_sums({"a": batch, "b": {"c": batch @ params}})
    grams = merging.collect_grams(sums, w, x)
    rows = np.float64(x).reshape(-1, 16)
    for found, reads in ((grams["a"], rows), (grams["b"]["c"], rows @ np.float64(w))):
        expected = reads.T @ reads / 28
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_rows_of_stacked_activations_are_counted_without_the_layers():
    grams, count = merging.gram_sums({"layers": {"q": {"kernel": jnp.ones((3, 5, 2))}}})
    assert count == 5 and grams["layers"]["q"]["kernel"].tolist() == [[[5, 5], [5, 5]]] * 3


ONE = {"k": jnp.ones((4, 2))}
BAD = {
    "count": (lambda: merging.regmean([ONE], []), "0 trees of Gram matrices for 1 models"),
    "path": (
        lambda: merging.regmean([ONE], [{"kk": jnp.eye(4)}]),
        "grams.0. has 'kk', which is no parameter .did you mean 'k'",
    ),
    "shape": (
        lambda: merging.regmean([ONE], [{"k": jnp.eye(2)}]),
        r"grams.0. k has shape \(2, 2\); the parameter has \(4, 2\)",
    ),
    "no kernel": (lambda: merging.regmean([jnp.ones(4)], [jnp.eye(4)]), r"expected a kernel \[in"),
    "one model only": (
        lambda: merging.regmean([ONE, ONE], [{"k": jnp.eye(4)}, {}]),
        "grams.1. has no Gram matrix for k",
    ),
    "singular": (
        lambda: merging.regmean([ONE], [{"k": jnp.ones((4, 4))}], alpha=1.0, ridge=0.0),
        "no solution for k in float32 with alpha=1.0",
    ),
    "alpha": (lambda: merging.regmean([ONE], [{}], alpha=2.0), "alpha is 2.0"),
    "ridge": (lambda: merging.regmean([ONE], [{}], ridge=-1.0), "ridge is -1.0"),
    "structure": (lambda: merging.regmean([ONE, {"q": 1.0}], [{}, {}]), "has no leaf 'k'"),
    "no activations": (lambda: merging.gram_sums({"k": None}), "without activations"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_calls(call, message):
    with pytest.raises(InputError, match=message):
        call()
