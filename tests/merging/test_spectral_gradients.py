"""TSV-M and Iso-C: gradients against float64 finite differences, where matrices lack rank too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imm_jax import merging, tree
from imm_jax.errors import InputError
from tests.merging import merge_oracles as oracle

RNG = np.random.default_rng(0)
LAYERS, ROWS, COLUMNS = 2, 8, 12
PROBE = RNG.normal(size=(LAYERS, ROWS, COLUMNS))
METHODS = {"tsv": merging.tsv(0.7), "iso_c": merging.iso_c(0.7)}


def draw(*shape):
    """Small whole numbers, so that products of them are exact and a low rank is one."""
    return RNG.integers(-3, 4, shape).astype(np.float32)


def low_rank():
    return draw(LAYERS, ROWS, 2) @ draw(LAYERS, 2, COLUMNS)


BASE = draw(LAYERS, ROWS, COLUMNS)
FULL = [RNG.normal(size=BASE.shape).astype(np.float32) for _ in range(3)]
KINDS = {
    "full rank": [BASE + FULL[0], BASE + FULL[1]],
    "low rank": [BASE + low_rank(), BASE + low_rank()],
    "equal": [BASE + FULL[2]] * 2,
    "one unchanged": [BASE, BASE + FULL[0]],
    "one layer unchanged": [BASE + FULL[0] * np.float32([[[0]], [[1]]]), BASE + low_rank()],
    "none changed": [BASE, BASE],
}
WEIGHTS = np.array([[0.3, 0.75], [-0.5, 0.875]])


def real_parts(x):
    """The singular components of ``x`` in float64 that are not 0."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    real = s > 1e-9 * s[0]
    return u * real, s * real, vt * real[:, None]


def polar(x):
    u, _, vt = real_parts(x)
    return u @ vt


def wide_tsv(deltas):
    keep = ROWS // len(deltas)
    us, ss, vts = zip(*[real_parts(d) for d in deltas])
    left = polar(np.concatenate([u[:, :keep] for u in us], axis=1))
    right = polar(np.concatenate([vt[:keep] for vt in vts], axis=0))
    return left @ np.diag(np.concatenate([s[:keep] for s in ss])) @ right


def wide_iso_c(deltas):
    u, s, vt = real_parts(sum(deltas))
    return s.sum() / max(np.count_nonzero(s), 1) * u @ vt


WIDE = {"tsv": wide_tsv, "iso_c": wide_iso_c}


def wide_merge(name, base, models, weights):
    """The merge in float64, at weights ``[models, layers]``."""
    base, models = np.float64(base), np.float64(models)
    layers = [
        WIDE[name]([w * (m[i] - base[i]) for w, m in zip(weights[:, i], models)])
        for i in range(LAYERS)
    ]
    return base + 0.7 * np.stack(layers)


def slopes(fn, x, step=1e-5):
    found = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        found[at] = (fn(up) - fn(down)) / (2 * step)
    return found


def probed(name, base, models, weights):
    """A number made of the merge, at weights ``[models, layers]``."""
    weights = [merging.LayerWeights(w) for w in weights]
    as_tree = lambda x: {"layers": {"q": x}}
    out = merging.merge_params(
        as_tree(base), list(map(as_tree, models)), weight=weights, transform=METHODS[name]
    )
    return jnp.sum(out["layers"]["q"] * PROBE.astype(np.float32))


@functools.partial(jax.jit, static_argnums=0)
def gradient(name, base, models, weights):
    return jax.grad(probed, argnums=3)(name, base, models, weights)


def expected(name, models, weights):
    return slopes(lambda w: np.sum(PROBE * wide_merge(name, BASE, models, w)), weights)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_model_and_layer(name, kind):
    found = gradient(name, BASE, KINDS[kind], WEIGHTS)
    want = expected(name, KINDS[kind], WEIGHTS)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_the_other_weight_where_one_is_0(name, kind):
    weights = np.array([[0.0, 0.0], [0.5, 0.875]])
    found = gradient(name, BASE, KINDS[kind], weights)
    other = lambda w: np.sum(PROBE * wide_merge(name, BASE, KINDS[kind], np.stack([0 * w, w])))
    want = slopes(other, weights[1])
    np.testing.assert_allclose(found[1], want, rtol=1e-4, atol=1e-5 * max(1, np.abs(want).max()))
    assert np.all(np.isfinite(found[0])) and (name == "iso_c" or np.all(found[0] == 0))
    assert np.all(gradient(name, BASE, KINDS[kind], 0 * weights) == 0)


def test_iso_c_at_weight_0_of_a_model_that_adds_no_rank():
    weights = np.array([[0.0, 0.3], [0.5, 0.0]])
    found = gradient("iso_c", BASE, KINDS["full rank"], weights)
    np.testing.assert_allclose(found, expected("iso_c", KINDS["full rank"], weights), rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_one_weight_a_model_in_both_layouts_and_turned(name):
    """Summed over layers; the matrix turned, so that its rows are more than its columns."""
    base = {"layers": {"q": np.swapaxes(BASE, 1, 2)}}
    models = [{"layers": {"q": np.swapaxes(m, 1, 2)}} for m in KINDS["low rank"]]
    probe = np.swapaxes(PROBE, 1, 2).astype(np.float32)

    def loss(weights, base, models):
        weights = [weights[0], weights[1]]
        out = merging.merge_params(base, models, weight=weights, transform=METHODS[name])
        each = [x["q"] for x in out["layers"]] if type(out["layers"]) is list else None
        return jnp.sum((out["layers"]["q"] if each is None else jnp.stack(each)) * probe)

    weights = np.array([0.3, 0.8])
    want = expected(name, KINDS["low rank"], np.stack([weights, weights], axis=1)).sum(axis=1)
    listed = tree.unstack_layers(base), [tree.unstack_layers(m) for m in models]
    for trees in ((base, models), listed):
        found = jax.grad(loss)(jnp.asarray(weights, jnp.float32), *trees)
        np.testing.assert_allclose(found, want, rtol=1e-4)


def test_iso_c_is_differentiable_in_the_models_too():
    models, weights = np.stack(KINDS["full rank"]), np.float32(WEIGHTS)
    direction = RNG.normal(size=models.shape)
    wide = lambda t: np.sum(PROBE * wide_merge("iso_c", BASE, models + t * direction, WEIGHTS))
    found = jax.jit(jax.grad(lambda m: probed("iso_c", BASE, list(m), weights)))(models)
    want = slopes(lambda t: wide(t[0]), np.zeros(1))[0]
    np.testing.assert_allclose(np.sum(found * direction), want, rtol=1e-4)


def test_tsv_after_other_transforms():
    transform = merging.chain(merging.trim(0.5), merging.normalize_weights(), merging.tsv())
    base, *models = BASE[0], *(m[0] for m in KINDS["full rank"])

    @jax.jit
    def loss(weights):
        weights = [weights[0], weights[1]]
        out = merging.merge_params(base, models, weight=weights, transform=transform)
        return jnp.sum(out * PROBE[0].astype(np.float32))

    def wide(weights):
        deltas = [np.float64(m) - base for m in models]
        return np.sum(
            PROBE[0] * wide_tsv([w * d * oracle.top_k(d, 48) for w, d in zip(weights, deltas)])
        )

    start = np.array([0.3, 0.9])
    want = slopes(lambda w: wide(w / w.sum()), start)
    np.testing.assert_allclose(jax.grad(loss)(np.float32(start)), want, rtol=1e-4)


def test_tsv_says_what_it_has_no_derivative_in():
    base, *models = BASE[0], *(m[0] for m in KINDS["full rank"])
    merge = lambda base, weight: merging.merge_params(
        base, models, weight=weight, transform=merging.tsv()
    ).sum()
    for wrong in (lambda b: merge(b, 0.5), lambda w: merge(base, [w, 0.5])):
        with pytest.raises(InputError, match="tsv has a derivative in weights alone"):
            jax.grad(wrong)(jnp.asarray(base))
    with pytest.raises(InputError, match="tsv has a derivative in weights alone"):
        jax.jit(jax.grad(probed, argnums=1), static_argnums=0)(
            "tsv", jnp.asarray(BASE), KINDS["equal"], WEIGHTS
        )
    assert np.isfinite(merge(base, [jnp.ones_like(base), 0.5]))


@pytest.mark.parametrize("name", METHODS)
def test_adamerging_of_low_rank_models(name):
    """A step of plain gradient descent at rate 1: the weights' change is the gradient."""
    inputs = 0.1 * RNG.normal(size=(1, 5, ROWS)).astype(np.float32)
    as_tree = lambda x: {"layers": {"q": x}}
    _, weights, history = merging.adamerging(
        lambda params, x: x @ params["layers"]["q"].sum(axis=0),
        as_tree(BASE),
        list(map(as_tree, KINDS["low rank"])),
        inputs,
        steps=1,
        bounds=None,
        optimizer=optax.sgd(1.0),
        transform=METHODS[name],
    )
    merged = lambda w: wide_merge(name, BASE, KINDS["low rank"], w).sum(axis=0)
    wide = lambda w: oracle.entropy(np.float64(inputs[0]) @ merged(w))
    start = np.full((2, LAYERS), 0.3)
    np.testing.assert_allclose(history, [wide(start)], rtol=1e-5)
    want = start - slopes(wide, start)
    np.testing.assert_allclose([w.layers for w in weights], want, atol=1e-5)
