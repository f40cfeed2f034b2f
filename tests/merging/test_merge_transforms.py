"""Transforms one by one, their random numbers, and the k-th magnitude."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax import merging, tree
from imm_jax.errors import InputError
from imm_jax.merging import kth
from imm_jax.merging.random_bits import random_bits
from tests.merging import merge_oracles as oracle

KEY = jax.random.key(11)


def changes(seed=0, shape=(30, 40)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def transformed(delta, transform, path="w", **kwargs):
    """What a transform makes of a delta: merged at weight 1 into zeros."""
    base = {path: jnp.zeros_like(delta)}
    out = merging.merge_params(base, {path: delta}, weight=1.0, transform=transform, **kwargs)
    return np.asarray(out[path])


def test_random_bits_are_those_of_jax():
    for shape in ((), (7,), (3, 5, 4)):
        for key in (KEY, jax.random.PRNGKey(3)):
            assert np.array_equal(random_bits(key, shape), jax.random.bits(key, shape, "uint32"))
    other = jax.random.key(1, impl="rbg")
    assert np.array_equal(random_bits(other, (4,)), jax.random.bits(other, (4,), "uint32"))


def kept(path, layer, shape, probability, model=0, position=0):
    """The documented stream of random numbers, from jax.random alone."""
    key = jax.random.fold_in(KEY, zlib.crc32(path.encode()))
    for number in ([] if layer is None else [layer]) + [position, model]:
        key = jax.random.fold_in(key, number)
    return np.asarray(jax.random.bits(key, shape, "uint32")) < probability * 2**32


def test_drop_and_rescale_in_both_layouts():
    base = {"embed": jnp.ones((6, 5)), "layers": {"w": jnp.ones((3, 4, 5))}}
    tuned = {
        "embed": jnp.asarray(changes(1, (6, 5))),
        "layers": {"w": jnp.asarray(changes(2, (3, 4, 5)))},
    }
    drop = merging.chain(merging.scale(1.0), merging.drop_and_rescale(0.4))
    out = merging.merge_params(base, tuned, weight=1.0, transform=drop, key=KEY)
    listed = merging.merge_params(
        *map(tree.unstack_layers, (base, tuned)), weight=1.0, transform=drop, key=KEY
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, tree.unstack_layers(out), listed))
    for layer in range(3):
        keep = kept("layers/w", layer, (4, 5), 0.6, position=1)
        delta = np.float64(tuned["layers"]["w"][layer]) - 1
        np.testing.assert_allclose(out["layers"]["w"][layer], 1 + keep * delta / 0.6, rtol=2e-7)
    keep = kept("embed", None, (6, 5), 0.6, position=1)
    np.testing.assert_allclose(
        out["embed"], 1 + keep * (np.float64(tuned["embed"]) - 1) / 0.6, rtol=2e-7
    )


def test_a_leaf_is_dropped_the_same_whatever_else_is_merged():
    delta, drop = jnp.asarray(changes()), merging.drop_and_rescale(0.5)
    alone = merging.merge_params({"b": 0 * delta}, {"b": delta}, transform=drop, key=KEY)
    both = merging.merge_params(
        {"a": 0 * delta, "b": 0 * delta}, {"a": delta, "b": delta}, transform=drop, key=KEY
    )
    assert np.array_equal(alone["b"], both["b"]) and not np.array_equal(both["a"], both["b"])


def test_dropping_is_unbiased_and_independent_between_models():
    delta = np.ones((300, 400), np.float32)
    base, models = {"w": 0 * delta}, [{"w": delta}, {"w": delta}]
    out = merging.merge_params(
        base,
        models,
        weight=[1.0, 10.0],
        key=KEY,
        transform=merging.drop_and_rescale(0.2, rescale=False),
    )["w"]
    values, counts = np.unique(np.asarray(out), return_counts=True)
    assert values.tolist() == [0, 1, 10, 11]
    shares = np.array([0.04, 0.16, 0.16, 0.64])
    assert np.all(np.abs(counts / delta.size - shares) < 5 * np.sqrt(shares / delta.size))
    mean = transformed(delta, merging.drop_and_rescale(0.2), key=KEY).mean()
    assert abs(mean - 1) < 5 * np.sqrt(0.25 / delta.size)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=40),
    st.data(),
)
def test_kth_largest_is_exact(values, data):
    x = np.array(values, np.float32)
    x[x < 1.2e-38] = 0  # XLA on CPU flushes subnormal numbers
    k = data.draw(st.integers(1, len(values)))
    padded = np.concatenate([x, np.zeros(40 - len(x), np.float32)])
    found = KTH(padded, np.uint32(k))
    assert np.asarray(found, np.int32).view(np.float32) == np.sort(padded)[::-1][k - 1]


KTH = jax.jit(lambda x, k: kth.kth_largest([lambda after: [x]], [k])[0])


def test_counts_beyond_32_bits_compare_right():
    # ten thousand times the same tensor of a million: count = 10^10 for everything >= 1
    big = [lambda after: [jnp.ones((1000, 1000)) * 2] for _ in range(2)]
    assert kth.kth_largest(big, [2_000_000])[0] == np.float32(2).view(np.int32)
    assert kth.kth_largest(big, [5_000_000_000])[0] == 0
    assert kth._limbs(5_000_000_000) == (5_000_000_000 >> 16, 5_000_000_000 & 0xFFFF)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.2, 0.5, 1.0])
def test_trim_keeps_the_largest(density):
    delta = changes()
    count = max(1, int(density * delta.size)) if density else 0
    assert np.array_equal(
        transformed(delta, merging.trim(density)), delta * oracle.top_k(delta, count)
    )


def test_trim_keeps_all_that_tie_with_the_last():
    delta = np.array([3.0, -2, 2, 2, 1, 0], np.float32)
    assert transformed(delta, merging.trim(0.34)).tolist() == [3, -2, 2, 2, 0, 0]


def test_trim_over_the_whole_model():
    deltas = {"a": changes(1, (20, 8)), "layers": {"w": 10 * changes(2, (3, 6, 5))}}
    base = jax.tree.map(jnp.zeros_like, deltas)
    trimmed = merging.merge_params(base, deltas, weight=1.0, transform=merging.trim(0.3, "model"))
    flat = np.concatenate([x.ravel() for x in jax.tree.leaves(deltas)])
    limit = np.sort(np.abs(flat))[::-1][int(0.3 * flat.size) - 1]
    expected = jax.tree.map(lambda x: x * (np.abs(x) >= limit), deltas)
    assert jax.tree.all(jax.tree.map(np.array_equal, trimmed, expected))
    listed = merging.merge_params(
        *map(tree.unstack_layers, (base, deltas)), weight=1.0, transform=merging.trim(0.3, "model")
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, tree.stack_layers(listed), trimmed))


def test_trim_sees_what_came_before_it():
    delta = changes()
    once = transformed(delta, merging.drop_and_rescale(0.5), key=KEY)
    for scope in ("tensor", "model"):
        both = merging.chain(merging.drop_and_rescale(0.5), merging.trim(0.1, scope))
        keep = oracle.top_k(once, int(0.1 * delta.size))
        assert np.array_equal(transformed(delta, both, key=KEY), once * keep)


def test_densities_of_each_model():
    models = [{"w": changes(i)} for i in (1, 2)]
    base = {"w": np.zeros((30, 40), np.float32)}
    out = merging.merge_params(base, models, weight=1.0, transform=merging.trim((0.1, 0.6)))["w"]
    parts = [m["w"] * oracle.top_k(m["w"], k) for m, k in zip(models, (120, 720))]
    np.testing.assert_allclose(out, np.float64(parts[0]) + parts[1], rtol=1e-6)
    with pytest.raises(InputError, match="density has 2 values for 1 tuned models"):
        transformed(changes(), merging.trim((0.1, 0.6)))


@pytest.mark.parametrize("density, gamma", [(0.7, 0.1), (0.95, 0.1), (0.0, 0.1), (1.0, 0.5)])
def test_drop_outliers(density, gamma):
    delta = changes()
    expected = delta * (oracle.breadcrumbs_mask(delta, density, gamma))
    assert np.array_equal(transformed(delta, merging.drop_outliers(density, gamma)), expected)


@pytest.mark.parametrize("path, axis", [("layer/kernel", 0), ("embedding", 1)])
def test_drop_by_magnitude(path, axis):
    delta = changes(3, (25, 32))
    chance = oracle.della_chance(delta, 0.6, 0.2, axis)
    out = transformed(delta, merging.drop_by_magnitude(0.6, 0.2), path, key=KEY)
    bits = kept(path, None, delta.shape, 1.0)
    assert bits.all()
    keep = kept(path, None, delta.shape, chance)
    assert np.mean((out != 0) != keep) < 1e-3  # probabilities are float32
    both = keep & (out != 0)
    np.testing.assert_allclose(out[both], (delta / chance)[both], rtol=1e-5)


@pytest.mark.parametrize("shape", [(50, 1), (1,), ()])
def test_drop_by_magnitude_on_rows_of_one(shape):
    out = transformed(np.ones(shape, np.float32), merging.drop_by_magnitude(0.5, 0.1), key=KEY)
    assert set(np.unique(out)) <= {0, 2}


def test_weights_that_cancel_where_models_agree_leave_the_sum():
    """One skill added, another taken away: 1 and -1 on opposite changes vote alike."""
    base = {"w": jnp.zeros(4)}
    models = [{"w": jnp.array([2.0, 1.0, 3.0, 0.0])}, {"w": jnp.array([-1.0, 2.0, -3.0, 0.0])}]
    out = merging.merge_params(base, models, weight=[1.0, -1.0], transform=merging.elect_sign())
    deltas = [np.asarray(m["w"], np.float64) for m in models]
    expected = oracle.elect(deltas, [1.0, -1.0])
    assert expected[0] == 3 and expected[2] == 6  # by hand
    np.testing.assert_array_equal(out["w"], expected)


def test_elect_sign_by_sum_and_by_count():
    deltas = np.array([[3.0, 1, 0, 2], [-1, -1, 0, 2], [-1, 5, 1, -4]], np.float32)
    models, base = [{"w": d} for d in deltas], {"w": np.zeros(4, np.float32)}
    for method in ("sum", "count"):
        for normalize in (True, False):
            transform = merging.elect_sign(method, normalize)
            out = merging.merge_params(base, models, weight=[0.5, 1.0, 1.5], transform=transform)
            expected = oracle.elect(list(np.float64(deltas)), [0.5, 1, 1.5], normalize, method)
            np.testing.assert_allclose(out["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("weight", [0.7, -2.0, 0.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_model_alone_is_elected(weight, normalize):
    delta, base = np.array([3.0, -1e-3, 0, 0.3], np.float32), {"w": np.zeros(4, np.float32)}
    transform = merging.elect_sign(normalize=normalize)
    out = merging.merge_params(base, [{"w": delta}], weight=[weight], transform=transform)
    expected = oracle.elect([np.float64(delta)], [weight], normalize)
    np.testing.assert_allclose(out["w"], expected, rtol=1e-7)


def test_elections_that_tie_follow_the_majority_of_the_model():
    up, down = np.array([1.0, -5, -6, -7], np.float32), np.array([-1.0, -5, -6, 2], np.float32)
    models, base = [{"w": up}, {"w": down}], {"w": np.zeros(4, np.float32)}
    outs = {
        zeros: merging.merge_params(
            base, models, weight=1.0, transform=merging.elect_sign(zeros=zeros)
        )["w"].tolist()
        for zeros in ("positive", "majority")
    }
    assert outs == {"positive": [1, -5, -6, -7], "majority": [-1, -5, -6, -7]}


def test_scale_clip_and_cast():
    delta = changes()
    assert np.array_equal(
        transformed(delta, merging.scale(3.0)), (3 * np.float64(delta)).astype("f4")
    )
    assert np.array_equal(transformed(delta, merging.clip(0.5)), np.clip(delta, -0.5, 0.5))
    rounded = np.asarray(jnp.asarray(delta, jnp.bfloat16).astype(jnp.float32))
    assert np.array_equal(transformed(delta, merging.cast(jnp.bfloat16)), rounded)


@merging.transform
def shrink(amount):
    """The ten-line transform of the documentation."""
    return merging.map_deltas(lambda d, tensor: jnp.sign(d) * jnp.maximum(jnp.abs(d) - amount, 0))


def test_a_transform_of_ones_own():
    delta = changes()
    expected = np.sign(delta) * np.maximum(np.abs(delta) - np.float32(0.5), 0)
    np.testing.assert_allclose(transformed(delta, shrink(0.5)), expected, rtol=1e-6)
    assert shrink(0.5) is shrink(amount=0.5) and repr(shrink(0.5)) == "shrink(amount=0.5)"
    slope = jax.grad(
        lambda a: jnp.sum(
            merging.merge_params(
                jnp.zeros(3), jnp.array([1.0, 2, 0.1]), weight=1.0, transform=shrink(a)
            )
        )
    )(0.5)
    assert slope == -2  # a traced parameter works, and is not remembered


def test_chains_are_flat_and_equal_by_value():
    trim, elect, scale = merging.trim(0.2), merging.elect_sign(), merging.scale(1.0)
    assert merging.ties(density=0.2) == merging.chain(trim, elect, scale)
    assert merging.chain(trim, merging.chain(elect, None, [scale])) == (trim, elect, scale)


BAD = {
    "rate": (lambda: merging.drop_and_rescale(1.1), "rate is 1.1; expected 0 <= rate <= 1"),
    "density": (lambda: merging.trim(20), "density is 20"),
    "scope": (lambda: merging.trim(0.2, "layer"), "scope is 'layer'"),
    "gamma": (lambda: merging.drop_outliers(0.5, -0.1), "gamma is -0.1"),
    "epsilon": (lambda: merging.drop_by_magnitude(0.5, 0.5), r"density \+- epsilon"),
    "epsilon of one model": (lambda: merging.drop_by_magnitude((0.5, 0.9), 0.15), "density 0.9"),
    "method": (lambda: merging.elect_sign("mean"), "method is 'mean'"),
    "limit": (lambda: merging.clip(-1.0), "limit is -1.0"),
    "dare": (lambda: merging.dare_linear(-0.1), "density is -0.1; expected 0 <= density <= 1"),
    "dare of one": (lambda: merging.dare_ties((0.5, 1.1)), "density is 1.1; expected 0 <= density"),
    "integers": (lambda: merging.cast(jnp.int8), "dtype is .*int8.*; expected one of floating"),
    "no dtype": (lambda: merging.cast("nope"), "dtype is 'nope'; expected one of floating"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_parameters(call, message):
    with pytest.raises(InputError, match=message):
        call()
