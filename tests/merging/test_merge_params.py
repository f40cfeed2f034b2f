"""merge_params: which trees it takes, what it keeps, and that it traces."""

from fractions import Fraction
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax import merging, tree
from imm_jax.errors import InputError
from imm_jax.merging import layout, program

KEY = jax.random.key(7)


class Pair(NamedTuple):
    a: Any
    b: Any


@flax.struct.dataclass
class State:
    params: Any
    step: int
    name: str = flax.struct.field(pytree_node=False, default="x")


def model(seed, layers=3, width=4):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {
        "embed": {"embedding": draw(7, width)},
        "layers": {"q": {"kernel": draw(layers, width, 5)}, "norm": {"scale": draw(layers, width)}},
        "final_norm": {"scale": draw(width)},
    }


def assert_same(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y)):
        assert a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


def test_any_pytree():
    base = Pair(State({"w": jnp.zeros(3)}, step=4), [jnp.ones(2), (jnp.ones((2, 2)),)])
    tuned = jax.tree.map(lambda x: x + 2, base)
    out = merging.merge_params(base, tuned)
    assert isinstance(out, Pair) and isinstance(out.a, State)
    assert out.a.params["w"].tolist() == [1, 1, 1] and out.a.step == 4
    assert out.b[1][0].tolist() == [[2, 2], [2, 2]]


def test_what_is_not_floating_passes_through_from_base():
    base = {"w": jnp.ones(2), "n": jnp.arange(2), "none": None, "k": KEY, "s": "text", "f": 1.5}
    tuned = {"w": jnp.zeros(2), "n": jnp.zeros(2, int), "none": None, "k": KEY, "s": "b", "f": 2.0}
    out = merging.merge_params(base, tuned)
    assert out["w"].tolist() == [0.5, 0.5]
    for name in ("n", "none", "k", "s", "f"):
        assert out[name] is base[name]


def test_none_in_tuned_keeps_the_base():
    base = {"a": jnp.ones(2), "b": jnp.ones(2)}
    out = merging.merge_params(base, {"a": None, "b": jnp.zeros(2)}, weight=1.0)
    assert out["a"].tolist() == [1, 1] and out["b"].tolist() == [0, 0]


def test_one_tree_or_several_is_told_by_structure():
    base = [jnp.zeros(2), jnp.zeros(3)]
    one = [jnp.ones(2), jnp.ones(3)]
    assert merging.merge_params(base, one, weight=1.0)[1].tolist() == [1, 1, 1]
    two = merging.merge_params(base, [one, one], weight=1.0)
    assert two[1].tolist() == [2, 2, 2]
    single = merging.merge_params(jnp.zeros(2), (jnp.ones(2), jnp.ones(2)), weight=(0.5, 0.25))
    assert single.tolist() == [0.75, 0.75]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_of_base_is_kept(dtype):
    out = merging.merge_params({"w": jnp.ones(3, dtype)}, {"w": np.zeros(3, np.float32)})
    assert out["w"].dtype == dtype


def test_empty_and_scalar_leaves():
    base = {"e": jnp.zeros((0, 4)), "s": jnp.float32(1.0), "layers": {"w": jnp.zeros((2, 0))}}
    tuned = jax.tree.map(lambda x: x + 1, base)
    for transform in (None, merging.ties(0.5), merging.slerp(), merging.drop_outliers(0.5)):
        out = merging.merge_params(base, tuned, transform=transform)
        assert out["e"].shape == (0, 4) and np.isfinite(out["s"])
    assert merging.merge_params({}, {}) == {}


def test_traces_in_jit_vmap_scan_and_grad():
    base, tuned = model(0), model(1)
    chain = merging.chain(merging.drop_and_rescale(0.3), merging.scale(0.5))
    eager = merging.merge_params(base, tuned, weight=0.25, transform=chain, key=KEY)
    jitted = jax.jit(lambda b, t, w: merging.merge_params(b, t, weight=w, transform=chain, key=KEY))
    assert_same(jitted(base, tuned, 0.25), eager)

    weights = jnp.linspace(-0.5, 1.5, 16)
    sweep = jax.vmap(lambda w: merging.merge_params(base, tuned, weight=w))(weights)
    for i in (0, 7, 15):
        one = merging.merge_params(base, tuned, weight=weights[i])
        assert_same(jax.tree.map(lambda x, i=i: x[i], sweep), one)

    def step(params, w):
        return merging.merge_params(base, params, weight=w), None

    scanned, _ = jax.lax.scan(step, tuned, jnp.array([0.5, 0.5]))
    halves = merging.merge_params(base, merging.merge_params(base, tuned))
    assert_same(scanned, halves)


def test_gradient_with_respect_to_the_weight():
    base, tuned = model(0), model(1)

    def loss(w):
        out = merging.merge_params(base, tuned, weight=w)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(out))

    slope = jax.jit(jax.grad(loss))
    for weight in (0.0, 0.3, 1.0):
        expected = 0.0
        for b, t in zip(jax.tree.leaves(base), jax.tree.leaves(tuned)):
            delta = np.float64(t) - np.float64(b)
            expected += np.sum(2 * (b + weight * delta) * delta)
        np.testing.assert_allclose(slope(weight), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [merging.slerp(), merging.ties(0.5), merging.multislerp()],
    ids=str,
)
def test_gradients_of_methods_are_those_of_finite_differences(transform):
    base = {"w": model(0)["embed"]["embedding"]}
    models = [{"w": model(i)["embed"]["embedding"]} for i in (1, 2, 3)]
    models = models[:1] if "slerp(dot" in str(transform) else models

    def loss(w):
        weights = [w, *[0.4] * (len(models) - 1)]
        out = merging.merge_params(base, models, weight=weights, transform=transform)
        return jnp.sum(jnp.sin(out["w"]))

    slope = (loss(0.3 + 1e-2) - loss(0.3 - 1e-2)) / 2e-2
    np.testing.assert_allclose(jax.grad(loss)(0.3), slope, rtol=0.02, atol=2e-3)


def test_a_structure_is_compiled_once():
    base, tuned = model(0, layers=2, width=9), model(1, layers=2, width=9)
    for weight in (0.1, 0.2):
        merging.merge_params(
            base, tuned, weight=weight, transform=merging.drop_and_rescale(0.25), key=KEY
        )
        before = program._leaf_once.cache_info().misses
    durations, other = [], jax.random.key(3)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: durations.append(name)
    )
    merging.merge_params(
        base, tuned, weight=0.7, transform=merging.drop_and_rescale(0.25), key=other
    )
    assert program._leaf_once.cache_info().misses == before
    assert not [name for name in durations if "compile" in name]


def test_listed_layers_of_one_shape_share_a_program():
    base = {"layers": [{"w": jnp.full((3, 11), float(i))} for i in range(6)]}
    tuned = jax.tree.map(lambda x: x + 1, base)
    before = program._leaf_once.cache_info().currsize
    merging.merge_params(base, tuned, transform=merging.drop_and_rescale(0.125), key=KEY)
    assert program._leaf_once.cache_info().currsize == before + 1


def test_donation():
    base, tuned = {"w": jnp.ones((64, 64))}, {"w": jnp.zeros((64, 64))}
    merging.merge_params(base, tuned, donate="tuned")
    assert tuned["w"].is_deleted() and not base["w"].is_deleted()
    tuned = {"w": jnp.zeros((64, 64))}
    out = merging.merge_params(base, tuned, donate="base")
    assert base["w"].is_deleted() and float(out["w"][0, 0]) == 0.5


@pytest.mark.parametrize("donate", ["base", "tuned"])
def test_an_array_that_stands_in_two_places_is_not_given_away(donate):
    """One that did not change, one that is tied, one that both models share."""
    new = lambda value: jnp.full((64, 64), value)
    same, tied, alone = new(1.0), new(2.0), new(3.0)
    other = new(5.0)
    base = {"same": same, "none": new(4.0), "tied": [tied, tied], "alone": alone}
    tuned = {"same": same, "none": None, "tied": [other, other], "alone": new(7.0)}
    several = [tuned, {**tuned, "alone": tuned["alone"]}]
    for models, weight in ((tuned, 0.5), (several, 0.25)):
        expected = merging.merge_params(base, models, weight=weight)
        copies = jax.tree.map(jnp.copy, (base, {k: v for k, v in tuned.items() if k != "none"}))
        mine, theirs = copies
        mine["same"] = theirs["same"]  # copies are apart: shared again
        mine["tied"], theirs["tied"] = [mine["tied"][0]] * 2, [theirs["tied"][0]] * 2
        theirs["none"] = None
        given = theirs if models is tuned else [theirs, theirs]
        got = merging.merge_params(mine, given, weight=weight, donate=donate)
        assert_same(got, expected)
        own = mine if donate == "base" else theirs
        assert own["alone"].is_deleted() == (donate == "base" or models is tuned)
        assert not own["same"].is_deleted() and not own["tied"][0].is_deleted()


def test_inputs_are_left_alone():
    base, tuned = model(0), model(1)
    copies = jax.tree.map(np.array, (base, tuned))
    merging.merge_params(base, tuned, transform=merging.ties(0.5))
    assert_same(jax.tree.map(jnp.asarray, copies), (base, tuned))


def test_which_leaves_are_stacks():
    stacks = lambda params, **kw: {
        x.leaf_path
        for x in layout.describe(*layout.flatten(params)[:2], kw.get("stacked"))
        if x.stacked
    }
    assert stacks(model(0)) == {"layers/q/kernel", "layers/norm/scale"}
    assert stacks(tree.unstack_layers(model(0))) == set()
    named = {"layers": {"block_0": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}}}
    assert stacks(named) == set()  # first axes differ: blocks by name, not a stack
    wrapped = {"params": model(0)}
    assert len(stacks(wrapped, stacked=lambda p: p.startswith("params/layers/"))) == 2


shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
trees = st.recursive(
    shapes,
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), children, max_size=3)
        | st.tuples(children, children)
    ),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(trees, st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, -0.7]))
def test_any_tree_of_any_shapes(shape_tree, seed, weight):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)
    draw = lambda s: rng.normal(size=s).astype(np.float32)
    base = jax.tree.map(draw, shape_tree, is_leaf=is_shape)
    tuned = jax.tree.map(draw, shape_tree, is_leaf=is_shape)
    out = merging.merge_params(base, tuned, weight=weight)
    assert jax.tree.structure(out) == jax.tree.structure(base)
    for b, t, o in zip(*map(jax.tree.leaves, (base, tuned, out))):
        for x, y, z in zip(*(np.asarray(a).ravel().tolist() for a in (b, t, o))):
            part = Fraction(weight) * (Fraction(y) - Fraction(x))
            half = Fraction(float(np.spacing(np.float32(abs(z))))) / 2
            # Rounded once, where what is this near to a tie counts as one.
            noise = Fraction(2) ** -46 * (abs(Fraction(x)) + abs(part))
            assert abs(Fraction(z) - Fraction(x) - part) <= half + noise


W = {"w": jnp.ones((2, 3)), "v": jnp.ones(4)}
BAD = {
    "missing leaf": (lambda: merging.merge_params(W, {"w": W["w"]}), "tuned has no leaf 'v'"),
    "extra leaf": (lambda: merging.merge_params(W, {**W, "x": W["v"]}), "has a leaf 'x'"),
    "second model": (
        lambda: merging.merge_params(W, [W, {"w": W["w"]}]),
        r"tuned\[1\] has no leaf",
    ),
    "no model": (lambda: merging.merge_params(W, []), "empty sequence"),
    "shape": (
        lambda: merging.merge_params(W, {**W, "w": jnp.ones((3, 2))}),
        r"tuned w has shape \(3, 2\); base has \(2, 3\)",
    ),
    "dtype": (lambda: merging.merge_params(W, {**W, "v": jnp.ones(4, int)}), "v is int32"),
    "kind": (lambda: merging.merge_params(Pair(1.0, 2.0), (1.0, 2.0)), "structure|no leaf"),
    "key": (
        lambda: merging.merge_params(W, W, transform=merging.drop_and_rescale(0.2)),
        r"drop_and_rescale\(rate=0.2.*key=",
    ),
    **{
        f"key {key!r}": (
            lambda key=key: merging.merge_params(
                W, W, transform=merging.drop_and_rescale(0.2), key=key
            ),
            r"key is .*; expected jax.random.key\(seed\)",
        )
        for key in (0, "a", 1.5, np.zeros(2), jax.random.split(jax.random.key(0)))
    },
    "four bits": (
        lambda: merging.merge_params(*[{"w": jnp.ones(4).astype(jnp.float4_e2m1fn)}] * 2),
        "w is float4_e2m1fn; expected floating numbers of 8 bits or more",
    ),
    "float64": (
        lambda: merging.merge_params(*[{"w": np.ones(4)}] * 2),
        "w is float64; enable jax_enable_x64, or give float32",
    ),
    "one path": (
        lambda: merging.merge_params(*[{"a/b": W["v"], "a": {"b": W["v"]}}] * 2),
        "2 leaves have the path 'a/b'; rename",
    ),
    "transform": (lambda: merging.merge_params(W, W, transform="ties"), "transform was expected"),
    "donate": (lambda: merging.merge_params(W, W, donate="both"), "donate is 'both'"),
    "stacks": (
        lambda: merging.merge_params(W, W, stacked=lambda path: True),
        "must share their first axis",
    ),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
