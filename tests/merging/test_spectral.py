"""TSV-M and Iso-C: properties their definitions imply, and matrices that lack rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging, tree
from tests.merging import merge_oracles as oracle

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def merged(name, base, models, **kwargs):
    return np.asarray(merging.merge_models(name, models, base=base, **kwargs))


def singular_values(x):
    return np.linalg.svd(np.float64(x), compute_uv=False)


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (31, 31)])
def test_against_float64(name, shape):
    base, models = draw(*shape), [draw(*shape) for _ in range(3)]
    out = merged(name, base, models)
    expected = getattr(oracle, name)(np.float64(base), [np.float64(m) for m in models])
    near = lambda x: np.linalg.norm(x - expected) < 1e-4 * np.linalg.norm(expected - base)
    assert near(out) and near(merged(name, base.T, [m.T for m in models]).T)


def test_tsv_keeps_the_singular_values_of_all_models():
    base, models = draw(24, 40), [draw(24, 40) for _ in range(3)]
    kept = np.concatenate([singular_values(m - base)[:8] for m in models])
    found = singular_values(merged("tsv", base, models) - base)
    np.testing.assert_allclose(found, np.sort(kept)[::-1], rtol=1e-4)


def test_tsv_of_models_that_do_not_interfere_is_their_sum():
    left, right = np.linalg.qr(draw(20, 6))[0], np.linalg.qr(draw(30, 6))[0]
    deltas = [left[:, i : i + 3] @ np.diag([3, 2, 1]) @ right[:, i : i + 3].T for i in (0, 3)]
    out = merged("tsv", np.zeros((20, 30), np.float32), [np.float32(d) for d in deltas])
    np.testing.assert_allclose(out, sum(deltas), atol=3e-6)


def test_tsv_of_equal_models_is_one_of_them_cut_to_its_leading_components():
    delta = draw(24, 40)
    u, s, vt = np.linalg.svd(np.float64(delta), full_matrices=False)
    out = merged("tsv", 0 * delta, [delta, delta])
    np.testing.assert_allclose(out, u[:, :12] * s[:12] @ vt[:12], atol=3e-5)


def test_tsv_of_equal_models_of_any_weights_is_as_if_each_weighed_their_mean():
    delta = draw(24, 40)
    u, s, vt = np.linalg.svd(np.float64(delta), full_matrices=False)
    out = merged("tsv", 0 * delta, [delta] * 3, weight=[0.3, -0.7, 1.1])
    np.testing.assert_allclose(out, 0.7 / 3 * u[:, :8] * s[:8] @ vt[:8], atol=3e-5)


def test_tsv_leaves_out_a_model_of_weight_0():
    base, models = draw(24, 40), [draw(24, 40) for _ in range(2)]
    out = merged("tsv", base, models, weight=[0.0, 0.3])
    u, s, vt = np.linalg.svd(np.float64(models[1] - base), full_matrices=False)
    np.testing.assert_allclose(out - base, 0.3 * u[:, :12] * s[:12] @ vt[:12], atol=3e-5)


def test_iso_c_of_a_low_rank_change_stays_in_its_directions():
    left, right = np.linalg.qr(draw(50, 4))[0], np.linalg.qr(draw(60, 4))[0]
    delta = left * np.array([8, 4, 2, 1]) @ right.T
    out = merged("iso_c", np.zeros((50, 60), np.float32), [np.float32(delta)])
    np.testing.assert_allclose(out, 15 / 4 * left @ right.T, atol=3e-6)


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
def test_no_change_is_no_change(name):
    base = draw(6, 8)
    assert np.array_equal(merged(name, base, [base, base]), base)


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
def test_other_tensors_are_averaged(name):
    base = {"scale": draw(7), "conv": draw(2, 3, 4), "number": draw()}
    models = [jax.tree.map(lambda x: x + draw(*x.shape), base) for _ in range(3)]
    weights = [0.5, 1.0, 2.0]
    out = merging.merge_models(name, models, base=base, weight=weights, **{"lambda": 0.5})
    for key, x in base.items():
        deltas = [w * (np.float64(m[key]) - x) for w, m in zip(weights, models)]
        np.testing.assert_allclose(out[key], x + 0.5 * np.mean(deltas, axis=0), rtol=1e-6)


def test_tsv_averages_a_matrix_without_room_for_a_component_of_each_model():
    base, models = draw(2, 9), [draw(2, 9) for _ in range(3)]
    np.testing.assert_allclose(merged("tsv", base, models), np.mean(models, axis=0), atol=1e-6)


def _not_embed(path):
    return not path.startswith("embed")


def test_embeddings_are_averaged_where_they_are_masked():
    base = {"embed": draw(30, 8), "layers": {"q": draw(2, 8, 12)}}
    models = [jax.tree.map(lambda x: x + draw(*x.shape), base) for _ in range(2)]
    transform = merging.chain(
        merging.masked(merging.tsv(), _not_embed), merging.normalize_weights()
    )
    out = merging.merge_params(base, models, weight=1.0, transform=transform)
    whole = merging.merge_params(base, models, weight=1.0, transform=merging.tsv())
    np.testing.assert_allclose(out["embed"], np.mean([m["embed"] for m in models], 0), atol=1e-6)
    assert np.abs(whole["embed"] - out["embed"]).max() > 0.1
    assert np.array_equal(out["layers"]["q"], whole["layers"]["q"])


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
def test_both_layouts_give_the_same_bits_under_jit(name):
    base = {"layers": {"q": jnp.asarray(draw(3, 40, 56), jnp.bfloat16)}}
    models = [jax.tree.map(lambda x: x + draw(*x.shape).astype(x.dtype), base) for _ in range(2)]
    merge = jax.jit(lambda base, models: merging.merge_models(name, models, base=base))
    stacked = merge(base, models)
    listed = merge(tree.unstack_layers(base), [tree.unstack_layers(m) for m in models])
    assert jax.tree.all(jax.tree.map(np.array_equal, tree.unstack_layers(stacked), listed))


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
def test_in_float64(name):
    with jax.enable_x64(True):
        base, *models = (RNG.normal(size=(7, 5)) for _ in range(3))
        out = merging.merge_models(name, models, base=base)
        expected = getattr(oracle, name)(base, models)
        np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)
