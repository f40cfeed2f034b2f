"""Every named method against its oracle, in both layouts; and where mergekit 0.1.5 is wrong."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging, tree
from imm_jax.errors import InputError
from tests.merging import merge_oracles as oracle

KEY = jax.random.key(5)


def model(seed, base=None, spread=1.0):
    rng = np.random.default_rng(seed)
    draw = lambda shape: spread * rng.normal(size=shape).astype(np.float32)
    new = {"embed": {"embedding": draw((9, 6))}, "layers": {"q": {"kernel": draw((3, 6, 8))}}}
    if base is not None:
        new = jax.tree.map(np.add, base, new)
    return jax.tree.map(jnp.asarray, new)


BASE = model(0)
MODELS = [model(i, BASE, 0.3) for i in (1, 2, 3)]
W = [0.5, 0.3, 0.4]


def kept(path, layer, shape, chance, number):
    key = jax.random.fold_in(KEY, zlib.crc32(path.encode()))
    for n in ([] if layer is None else [layer]) + [0, number]:
        key = jax.random.fold_in(key, n)
    return np.asarray(jax.random.bits(key, shape, "uint32")) < chance * 2**32


def dare(where, deltas, density):
    return [kept(*where, d.shape, density, i) * d / density for i, d in enumerate(deltas)]


def della(where, deltas, density, epsilon):
    axis = 0 if where[0].endswith("kernel") else 1
    chances = [oracle.della_chance(d, density, epsilon, axis) for d in deltas]
    return [kept(*where, d.shape, c, i) * d / c for i, (d, c) in enumerate(zip(deltas, chances))]


def crumbs(deltas, density, gamma):
    return [d * oracle.breadcrumbs_mask(d, density, gamma) for d in deltas]


def added(base, deltas):
    return base + sum(w * d for w, d in zip(W, deltas))


def rows(where):
    return 0 if where[0].endswith("kernel") else 1


D = oracle.deltas_of
# name: (models, arguments, oracle of (place, base, models))
CASES = {
    "linear": (3, {"weight": W}, lambda at, b, m: oracle.linear(b, m, W)),
    "task_arithmetic": (
        3,
        {"weight": W, "lambda": 0.7},
        lambda at, b, m: oracle.task_arithmetic(b, m, W, 0.7),
    ),
    "ties": (3, {"weight": W, "density": 0.3}, lambda at, b, m: oracle.ties(b, m, W, 0.3)),
    "dare_linear": (
        3,
        {"weight": W, "density": 0.6},
        lambda at, b, m: added(b, dare(at, D(b, m), 0.6)),
    ),
    "dare_ties": (
        3,
        {"weight": W, "density": 0.6},
        lambda at, b, m: b + oracle.elect(dare(at, D(b, m), 0.6), W, normalize=False),
    ),
    "della": (
        3,
        {"weight": W, "density": 0.6, "epsilon": 0.2},
        lambda at, b, m: b + oracle.elect(della(at, D(b, m), 0.6, 0.2), W),
    ),
    "della_linear": (
        3,
        {"weight": W, "density": 0.6, "epsilon": 0.2},
        lambda at, b, m: added(b, della(at, D(b, m), 0.6, 0.2)),
    ),
    "breadcrumbs": (
        3,
        {"weight": W, "density": 0.6, "gamma": 0.1},
        lambda at, b, m: added(b, crumbs(D(b, m), 0.6, 0.1)),
    ),
    "breadcrumbs_ties": (
        3,
        {"weight": W, "density": 0.6, "gamma": 0.1},
        lambda at, b, m: b + oracle.elect(crumbs(D(b, m), 0.6, 0.1), W, normalize=False),
    ),
    "slerp": (1, {"t": 0.3}, lambda at, b, m: oracle.arc(b, m[0], 0.3)),
    "nuslerp": (2, {"weight": [1.0, 3.0]}, lambda at, b, m: b + oracle.arc(*D(b, m), 0.75)),
    "multislerp": (3, {"weight": W}, lambda at, b, m: b + oracle.multislerp(D(b, m), W)),
    "karcher": (3, {"tol": 1e-7}, lambda at, b, m: oracle.karcher(m, [1, 1, 1])),
    "model_stock": (3, {}, lambda at, b, m: oracle.model_stock(b, m)),
    "sce": (3, {"select_topk": 0.4}, lambda at, b, m: oracle.sce(b, m, 0.4)),
    "nearswap": (
        1,
        {"t": 0.1},
        lambda at, b, m: b + np.clip(0.1 / np.abs(m[0] - b), 0, 1) * (m[0] - b),
    ),
    "arcee_fusion": (1, {}, lambda at, b, m: oracle.arcee_fusion(b, m[0], rows(at))),
    "passthrough": (1, {"scale": 0.3}, lambda at, b, m: 0.3 * m[0]),
    "wise_ft": (1, {"alpha": 0.3}, lambda at, b, m: 0.7 * b + 0.3 * m[0]),
    "expo": (1, {"alpha": 0.3}, lambda at, b, m: m[0] + 0.3 * (m[0] - b)),
    "ram": (3, {"epsilon": 0.3}, lambda at, b, m: oracle.ram(b, m, 0.3)),
    "ramplus_tl": (
        3,
        {"r": 0.3, "alpha": 1.5, "epsilon": 0.3},
        lambda at, b, m: oracle.ramplus_tl(b, m, 0.3, 1.5, 0.3),
    ),
    "tsv": (3, {"weight": W, "lambda": 0.7}, lambda at, b, m: oracle.tsv(b, m, W, 0.7)),
    "iso_c": (3, {"weight": W, "lambda": 0.7}, lambda at, b, m: oracle.iso_c(b, m, W, 0.7)),
    "fisher": (3, {"weight": [jax.tree.map(jnp.square, model(20 + i)) for i in range(3)]}, None),
}


def expect(fn, models):
    """The oracle's merge, tensor by tensor, as a stacked tree."""
    wide = [jax.tree.map(np.float64, x) for x in (BASE, *models)]
    tensors = lambda i: fn(
        ("layers/q/kernel", i),
        wide[0]["layers"]["q"]["kernel"][i],
        [m["layers"]["q"]["kernel"][i] for m in wide[1:]],
    )
    embed = fn(
        ("embed/embedding", None),
        wide[0]["embed"]["embedding"],
        [m["embed"]["embedding"] for m in wide[1:]],
    )
    kernel = np.stack([tensors(i) for i in range(3)])
    return {"embed": {"embedding": embed}, "layers": {"q": {"kernel": kernel}}}


def unstacked(x):
    if isinstance(x, list):
        return [unstacked(item) for item in x]
    return tree.unstack_layers(x) if isinstance(x, dict) else x


def test_every_method_has_a_case():
    assert set(CASES) == set(merging.METHODS)


@pytest.mark.every_case
@pytest.mark.parametrize("name", CASES)
def test_method_against_its_oracle_in_both_layouts(name):
    count, arguments, fn = CASES[name]
    models = MODELS[:count]
    base = {} if merging.METHODS[name].base == "unused" else {"base": BASE}
    out = merging.merge_models(name, models, key=KEY, **base, **arguments)
    if fn is None:
        weights = [jax.tree.map(np.float64, f) for f in arguments["weight"]]
        wide = [jax.tree.map(np.float64, m) for m in models]
        expected = jax.tree.map(
            lambda *x: sum(a * b for a, b in zip(x[:3], x[3:])) / sum(x[3:]), *wide, *weights
        )
    else:
        expected = expect(fn, models)
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(expected)):
        assert np.mean(np.abs(np.float64(a) - b) > 3e-6 * (1 + np.abs(b))) < 0.003
    listed = {k: unstacked(v) for k, v in (*arguments.items(), *base.items())}
    apart = merging.merge_models(name, unstacked(models), key=KEY, **listed)
    assert jax.tree.all(jax.tree.map(np.array_equal, tree.unstack_layers(out), apart))


@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_row_by_row(row_wise):
    axes = {"embed/embedding": 0 if row_wise else 1, "layers/q/kernel": 1 if row_wise else 0}
    out = merging.merge_models(
        "nuslerp", MODELS[:2], nuslerp_flatten=False, nuslerp_row_wise=row_wise
    )
    half = lambda a, b: oracle.arc(a, b, 0.5)
    expected = expect(lambda at, b, m: oracle.by_rows(half, axes[at[0]], *m), MODELS[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), out, expected)


def test_linear_without_normalising():
    out = merging.merge_models("linear", MODELS, weight=W, normalize=False)
    expected = expect(lambda at, b, m: sum(w * x for w, x in zip(W, m)), MODELS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), out, expected)


def test_ties_over_the_whole_model_as_in_the_papers_code():
    flat = lambda t: np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(t)])
    deltas = np.stack([flat(m) - flat(BASE) for m in MODELS])
    trimmed = np.stack([d * oracle.top_k(d, int(0.2 * d.size)) for d in deltas])
    sign = np.sign(trimmed.sum(0))
    sign[sign == 0] = np.sign(sign.sum())
    agree = np.where(sign > 0, trimmed > 0, trimmed < 0)
    mean = (trimmed * agree).sum(0) / np.maximum(agree.sum(0), 1)
    transform = merging.ties(density=0.2, scope="model")
    out = merging.merge_params(BASE, MODELS, weight=1.0, transform=transform)
    np.testing.assert_allclose(flat(out), flat(BASE) + mean, atol=1e-6)


def one(base, models, name, **kwargs):
    out = merging.merge_models(name, [{"w": m} for m in models], base={"w": base}, **kwargs)
    return np.asarray(out["w"], np.float64)


class TestWhereMergekitIsWrong:
    def test_sce_weighs_small_task_vectors_by_their_energy(self):
        base = np.zeros(400, np.float32)
        signs = np.sign(np.random.default_rng(0).normal(size=400)).astype(np.float32)
        out = one(base, [3e-4 * signs, 1e-4 * signs], "sce")
        np.testing.assert_allclose(out, (0.9 * 3e-4 + 0.1 * 1e-4) * signs, rtol=1e-5)

    def test_sce_in_float16_does_not_overflow(self):
        base = np.zeros(50, np.float16)
        out = one(base, [np.full(50, 300, np.float16), np.full(50, 500, np.float16)], "sce")
        np.testing.assert_allclose(out, (300**3 + 500**3) / (300**2 + 500**2), rtol=1e-3)

    def test_a_linear_merge_whose_weights_sum_to_0_is_refused(self):
        with pytest.raises(InputError, match="sum to 0"):
            merging.merge_models("linear", MODELS[:2], weight=[0.5, -0.5])

    def test_della_takes_a_last_dimension_of_1(self):
        out = one(
            np.zeros((40, 1), np.float32), [np.ones((40, 1), np.float32)], "della_linear", key=KEY
        )
        assert set(np.unique(out)) == {0.0, 2.0}

    def test_model_stock_stays_between_base_and_mean(self):
        rng = np.random.default_rng(0)
        shared, apart = rng.normal(size=(2, 100)).astype(np.float32)
        base = np.zeros(100, np.float32)
        out = one(base, [0.3 * shared + apart, 0.3 * shared - apart], "model_stock")
        assert np.linalg.norm(out) <= np.linalg.norm(0.3 * shared) * (1 + 1e-6)
        assert np.all(one(base, [apart, -apart], "model_stock") == 0)

    def test_dares_factor_is_the_inverse_of_the_density(self):
        ones = np.ones((100, 100), np.float32)
        out = one(0 * ones, [ones], "dare_linear", density=0.8, key=KEY)
        assert set(np.unique(out)) == {0, 1.25}

    @pytest.mark.parametrize(
        "name", [name for name, row in merging.METHODS.items() if "density" in row.parameters]
    )
    def test_a_density_of_0_leaves_the_base_and_one_of_1_the_model(self, name):
        base, deltas = np.arange(8, dtype=np.float32), (np.ones(8), 1 + np.arange(8))
        models = [(base + delta).astype(np.float32) for delta in deltas]
        gamma = {"gamma": 0.0} if name.startswith("breadcrumbs") else {}
        given = {"weight": 1.0, "key": KEY} | gamma
        merge = lambda density: one(base, models, name, density=density, **given)
        for nothing in (0, 0.0, jnp.float32(0), (0.0, 0.0)):
            np.testing.assert_array_equal(merge(nothing), base)
        np.testing.assert_array_equal(merge((0.0, 1.0)), models[1])

    def test_a_traced_density_of_0_has_gradients(self):
        base = jnp.ones(4)
        total = lambda density, model: jnp.sum(
            merging.merge_models("dare_linear", [model], base=base, density=density, key=KEY)
        )
        value, slope = jax.jit(jax.value_and_grad(total, 1))(0.0, base + 1)
        assert value == 4 and np.all(slope == 0)

    def test_random_methods_are_seeded(self):
        for name in ("dare_linear", "dare_ties", "della", "della_linear"):
            with pytest.raises(InputError, match="key="):
                merging.merge_models(name, MODELS, base=BASE)


def test_fisher_where_no_model_has_information_is_the_mean():
    fishers = [{"w": jnp.array([0.0, 1e-12])}, {"w": jnp.array([0.0, 3e-12])}]
    models = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([3.0, 4.0])}]
    out = merging.merge_models("fisher", models, weight=fishers)
    np.testing.assert_allclose(out["w"], [2, 3], rtol=1e-6)


def test_diagonal_fisher_of_a_gaussian():
    # loss = (y - x.w)^2 / 2: the squared gradient is (y - x.w)^2 x^2
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(20, 3)), rng.normal(size=20), rng.normal(size=3)
    loss = lambda p, e: 0.5 * jnp.square(e["y"] - e["x"] @ p["w"])
    found = merging.diagonal_fisher(
        loss, {"w": jnp.asarray(w)}, {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    )
    expected = np.mean(np.square((y - x @ w)[:, None] * x), axis=0)
    np.testing.assert_allclose(found["w"], expected, rtol=1e-4)


BAD = {
    "name": (lambda: merging.merge_models("tie", MODELS, base=BASE), "did you mean 'ties'"),
    "parameter": (
        lambda: merging.merge_models("ties", MODELS, base=BASE, densty=0.5),
        "ties has no parameter 'densty' .did you mean 'density'",
    ),
    "base missing": (lambda: merging.merge_models("ties", MODELS), "needs a base"),
    "base unused": (lambda: merging.merge_models("linear", MODELS, base=BASE), "without a base"),
    "too many": (
        lambda: merging.merge_models("slerp", MODELS, base=BASE, t=0.5),
        "merges 1 models",
    ),
    "too few": (lambda: merging.merge_models("model_stock", MODELS[:1], base=BASE), "at least 2"),
    "no t": (lambda: merging.merge_models("slerp", MODELS[:1], base=BASE), "slerp needs t="),
    "weight": (
        lambda: merging.merge_models("sce", MODELS, base=BASE, weight=0.5),
        "sce has no weight",
    ),
    "slerp of two": (
        lambda: merging.merge_params(BASE, MODELS, transform=merging.slerp()),
        "slerp merges 1",
    ),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_calls(call, message):
    with pytest.raises(InputError, match=message):
        call()
