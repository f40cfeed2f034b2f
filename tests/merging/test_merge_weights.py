"""Weights: numbers, prefix trees, functions of the path, per layer; in both layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging, tree
from imm_jax.errors import InputError

L = 4
BASE = {
    "embed": {"embedding": jnp.zeros((5, 3))},
    "layers": {
        "attn": {"q": {"kernel": jnp.zeros((L, 3, 2)), "bias": jnp.zeros((L, 2))}},
        "norm": {"scale": jnp.zeros((L, 3))},
    },
    "final_norm": {"scale": jnp.zeros(3)},
}
ONES = jax.tree.map(jnp.ones_like, BASE)


def used(weight, base=BASE, tuned=ONES):
    """The weight that every element got, as the merge of zeros and ones shows it."""
    out = merging.merge_params(base, tuned, weight=weight)
    return {tree.path_str(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(out)}


def per_layer(weight):
    """The weights of the layers' kernels, after checking that both layouts agree exactly."""
    stacked = merging.merge_params(BASE, ONES, weight=weight)
    listed = merging.merge_params(*map(tree.unstack_layers, (BASE, ONES)), weight=weight)
    for a, b in zip(jax.tree.leaves(tree.unstack_layers(stacked)), jax.tree.leaves(listed)):
        assert np.array_equal(a, b)
    kernel = np.asarray(stacked["layers"]["attn"]["q"]["kernel"])
    assert all(np.all(layer == layer[0, 0]) for layer in kernel)
    return kernel[:, 0, 0]


def test_prefix_tree():
    got = used({"embed": 0.1, "layers": {"attn": 0.2, "norm": jnp.arange(4.0)}, "final_norm": 0.0})
    assert np.all(got["embed/embedding"] == np.float32(0.1))
    assert np.all(got["layers/attn/q/bias"] == np.float32(0.2))
    assert got["layers/norm/scale"].tolist() == [[i] * 3 for i in range(4)]
    assert np.all(got["final_norm/scale"] == 0)


def test_function_of_the_path():
    got = used(lambda path: 1.0 if path.endswith("kernel") else 0.25)
    assert np.all(got["layers/attn/q/kernel"] == 1) and np.all(got["layers/attn/q/bias"] == 0.25)


def test_arrays_broadcast_to_the_leaf():
    columns = jnp.array([[0.0, 0.5, 1.0]])
    got = used({"embed": columns, "layers": 0.5, "final_norm": jnp.array([1.0, 2.0, 3.0])})
    assert np.all(got["embed/embedding"] == columns)
    assert got["final_norm/scale"].tolist() == [1, 2, 3]


def test_one_weight_for_each_element():
    weights = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), BASE)
    assert all(
        np.array_equal(v, np.arange(v.size).reshape(v.shape)) for v in used(weights).values()
    )
    listed = [tree.unstack_layers(x) for x in (BASE, ONES, weights)]
    out = merging.merge_params(listed[0], listed[1], weight=listed[2])
    assert jax.tree.all(jax.tree.map(np.array_equal, out, listed[2]))


def test_several_models_have_their_own_weights():
    models = [ONES, jax.tree.map(lambda x: 10 * x, ONES)]
    layered = merging.LayerWeights(jnp.arange(4.0), default=1.0)
    got = used([layered, {"embed": 0.0, "layers": 0.5, "final_norm": 2.0}], tuned=models)
    assert np.all(got["embed/embedding"] == 1) and np.all(got["final_norm/scale"] == 21)
    assert got["layers/norm/scale"][:, 0].tolist() == [5, 6, 7, 8]
    assert np.all(used(jnp.array([1.0, 2.0]), tuned=models)["final_norm/scale"] == 21)
    assert np.all(used(0.5, tuned=models)["final_norm/scale"] == 5.5)


def test_layer_vectors_ramps_and_gradients():
    weights = lambda layers: per_layer(merging.LayerWeights(layers, default=0.0))
    np.testing.assert_array_equal(weights(np.array([3.0, 1, 2, 0])), [3, 1, 2, 0])
    np.testing.assert_allclose(weights(merging.ramp(0.0, 1.5)), [0, 0.5, 1, 1.5], rtol=1e-7)
    cosine = [0.5 - 0.5 * np.cos(np.pi * i / 3) for i in range(4)]
    np.testing.assert_allclose(weights(merging.ramp(0, 1, "cosine")), cosine, rtol=1e-7)
    # by hand from mergekit's rule: layer i is at t = i/3, which is 2t between three points
    np.testing.assert_allclose(weights([0.0, 0.6, 0.0]), [0, 0.4, 0.4, 0], rtol=1e-7)
    np.testing.assert_allclose(weights(merging.gradient([0.7])), [0.7] * 4, rtol=1e-7)


def test_patterns_in_order_with_and_without_layer_numbers():
    patterns = {"layers/2/*": 0.5, "*/bias": 0.0, "layers/attn": merging.ramp(1, 4), "embed": 0.25}
    weight = merging.LayerWeights(9.0, default=7.0, patterns=patterns)
    np.testing.assert_array_equal(per_layer(weight), [1, 2, 0.5, 4])
    got = used(weight)
    assert got["layers/attn/q/bias"][:, 0].tolist() == [0, 0, 0.5, 0]
    assert got["layers/norm/scale"][:, 0].tolist() == [9, 9, 0.5, 9]
    assert np.all(got["embed/embedding"] == 0.25) and np.all(got["final_norm/scale"] == 7)


def test_layer_weights_are_differentiable_and_batched():
    def total(layers):
        out = merging.merge_params(BASE, ONES, weight=merging.LayerWeights(layers, default=0.0))
        return sum(jnp.sum(x) for x in jax.tree.leaves(out))

    per = 3 * 2 + 2 + 3  # elements of a layer
    assert jax.grad(total)(jnp.arange(4.0)).tolist() == [per] * 4
    candidates = jnp.stack([jnp.zeros(4), jnp.ones(4)])
    assert jax.vmap(total)(candidates).tolist() == [0, 4 * per]
    through = jax.jit(lambda w: merging.merge_params(BASE, ONES, weight=w))
    out = through(merging.LayerWeights(merging.ramp(0.0, 3.0), default=1.0))
    assert out["layers"]["norm"]["scale"][:, 0].tolist() == [0, 1, 2, 3]


WEIGHTS = {
    "vector": merging.LayerWeights(np.array([0.0, 0.5, 1.0, 0.25]), default=0.125),
    "ramp": merging.LayerWeights(merging.ramp(0.0, 1.0), default=0.5),
    "patterns": merging.LayerWeights(0.5, patterns={"*layers/2/*": 1.0, "*/bias": 0.0}),
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_layers_are_found_below_other_names(weight):
    """``model.init`` of Flax gives ``{"params": ...}``; its lists of layers are numbered names."""
    expected = used(weight)
    wrapped = used(weight, {"params": BASE}, {"params": ONES})
    assert {f"params/{path}" for path in expected} == wrapped.keys()
    for path, values in expected.items():
        np.testing.assert_array_equal(wrapped[f"params/{path}"], values)
    listed = [tree.unstack_layers(x) for x in (BASE, ONES)]
    below = used(weight, *({"a": {"b": x}} for x in listed))
    names = [
        {**{k: v for k, v in x.items() if k != "layers"},
         **{f"layers_{i}": layer for i, layer in enumerate(x["layers"])}}
        for x in listed
    ]  # fmt: skip
    named = used(weight, *names)
    for path, values in used(weight, *listed).items():
        np.testing.assert_array_equal(below[f"a/b/{path}"], values)
        np.testing.assert_array_equal(named[path.replace("layers/", "layers_")], values)


def test_methods_take_each_layer_for_a_tensor_below_other_names():
    rng = np.random.default_rng(0)
    base, tuned = (
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), BASE)
        for _ in range(2)
    )
    how = {"weight": 1.0, "key": jax.random.key(0)}
    how["transform"] = merging.chain(merging.drop_and_rescale(0.2), merging.trim(0.5))
    inside = merging.merge_params({"params": base}, {"params": tuned}, **how)
    layers = merging.merge_params(
        {"params": tree.unstack_layers(base)}, {"params": tree.unstack_layers(tuned)}, **how
    )
    jax.tree.map(
        np.testing.assert_array_equal, tree.unstack_layers(inside["params"]), layers["params"]
    )
    kernel = np.asarray(inside["params"]["layers"]["attn"]["q"]["kernel"])
    changed = kernel != np.asarray(base["layers"]["attn"]["q"]["kernel"])
    assert changed.sum(axis=(1, 2)).tolist() == [3] * L


def test_two_stacks_of_layers():
    """Of an encoder and a decoder; what lies deeper is no stack of the model."""
    sizes = {"encoder": 2, "decoder": 3}
    base = {
        name: {"layers": {"mlp": {"layers": [jnp.zeros((n, 4)), jnp.zeros((n, 5))]}}}
        for name, n in sizes.items()
    }
    tuned = jax.tree.map(jnp.ones_like, base)
    got = used(merging.LayerWeights(merging.ramp(0.0, 1.0)), base, tuned)
    assert got["encoder/layers/mlp/layers/0"][:, 0].tolist() == [0, 1]
    assert got["decoder/layers/mlp/layers/1"][:, 0].tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("values", [[0.0, 0.5, 1.0], merging.ramp(0, 1), jnp.ones(3)])
def test_values_over_depth_need_layers(values):
    trees = [{"Dense_0": {"kernel": make((2, 2))}, "b": make(3)} for make in (jnp.zeros, jnp.ones)]
    message = "LayerWeights: no layers for its values over depth, the first .* is Dense_0/kernel"
    with pytest.raises(InputError, match=message):
        merging.merge_params(*trees, weight=merging.LayerWeights(values, default=0.5))
    patterns = merging.LayerWeights(0.0, default=0.5, patterns={"Dense_0": 1.0})
    assert used(patterns, *trees)["Dense_0/kernel"].tolist() == [[1, 1], [1, 1]]


def test_a_lone_layer_is_the_last_one_and_none_is_no_mistake():
    for count, expected in ((1, [[0.75, 0.75]]), (0, [])):
        base, tuned = ({"layers": {"w": make((count, 2))}} for make in (jnp.zeros, jnp.ones))
        for values in ([0.25, 0.75], merging.ramp(0.25, 0.75), merging.ramp(0.25, 0.75, "cosine")):
            got = used(merging.LayerWeights(values), base, tuned)
            assert got["layers/w"].tolist() == expected


def drawn(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"layers": {"w": draw(2, 4, 3)}, "norm": draw(3)}


LAYERS = np.array([0.25, 0.75])
FORMS = {
    "list": merging.LayerWeights([0.25, 0.75], default=0.5),
    "vector": merging.LayerWeights(jnp.asarray(LAYERS), default=jnp.float32(0.5)),
    "pattern": merging.LayerWeights(0.25, default=0.5, patterns={"layers/1/*": 0.75}),
    "prefix": {"layers": merging.ramp(0.25, 0.75), "norm": 0.5},
    "function": lambda path: merging.ramp(0.25, 0.75) if path == "layers/w" else 0.5,
    "columns": lambda path: np.array([0.25, 0.5, 0.75]),
}


@pytest.mark.parametrize("name", ["expo", "slerp", "nuslerp", "multislerp", "karcher"])
def test_methods_take_weights_in_every_form(name):
    """The oracle is a merge with one number everywhere, of which each weight takes its part."""
    base, one, two = map(drawn, range(3))
    method = merging.METHODS[name]
    models = [one] if method.models == (1, 1) else [one, two]
    origin = {"base": base} if method.base == "required" else {}

    def merge(weight):
        weights = weight if len(models) == 1 else [weight, 0.5]
        return merging.merge_models(name, models, weight=weights, **origin)

    whole = {value: merge(value) for value in (0.25, 0.5, 0.75)}
    pick = lambda value, *at: np.asarray(whole[value]["layers"]["w"])[at]
    for form, weight in FORMS.items():
        out = merge(weight)
        if form == "columns":
            w = np.stack([pick(v, ..., i) for i, v in enumerate(whole)], -1)
            norm = np.array([whole[v]["norm"][i] for i, v in enumerate(whole)])
        else:
            w, norm = np.stack([pick(0.25, 0), pick(0.75, 1)]), whole[0.5]["norm"]
        np.testing.assert_allclose(out["layers"]["w"], w, atol=1e-6, err_msg=form)
        np.testing.assert_allclose(out["norm"], norm, atol=1e-6, err_msg=form)


def test_expo_refuses_what_is_no_weight():
    for weight in (True, "0.3", lambda path: None):
        with pytest.raises(InputError, match=r"weight (is|of layers/w is) (True|'0.3'|None)"):
            merging.merge_models("expo", [drawn(1)], base=drawn(0), alpha=weight)


CANCEL = {
    "numbers": [1.0, -1.0],
    "array": jnp.array([1.0, -1.0]),
    "rounded": np.array([0.3, -0.1 - 0.2], np.float32),
    "layers": [
        merging.LayerWeights([1.0, 0.0], default=1.0),
        merging.LayerWeights([1.0, 0.0], default=2.0),
    ],
    "functions": [lambda path: jnp.float32(path == "norm"), 0.0],
    "elements": [{"layers": 1.0, "norm": np.array([1.0, 2.0, 3.0])}, {"layers": 1.0, "norm": -2.0}],
}


@pytest.mark.parametrize("weight", CANCEL.values(), ids=CANCEL)
def test_a_mean_whose_weights_sum_to_0_is_refused(weight):
    models = [drawn(1), drawn(2)]
    with pytest.raises(InputError, match=r"weights of a linear merge sum to 0 in (layers/w|norm)"):
        merging.merge_models("linear", models, weight=weight)
    merging.merge_models("linear", models, weight=weight, normalize=False)


def test_weights_of_a_mean_inside_jit_are_refused_where_they_are_known():
    models = [drawn(1), drawn(2)]
    merge = lambda *w: merging.merge_models("linear", models, weight=list(w))["norm"]
    for known in (-1.0, jnp.float32(-1)):
        with pytest.raises(InputError, match="sum to 0"):
            jax.jit(lambda known=known: merge(1.0, known))()
    one, two = (np.float64(model["norm"]) for model in models)
    np.testing.assert_allclose(jax.jit(merge)(3.0, -1.0), (3 * one - two) / 2, rtol=1e-6)
    assert np.all(np.isfinite(jax.jit(merge)(1.0, -1.0)))  # which nobody can know beforehand


BAD = {
    "pattern": (merging.LayerWeights(0.5, patterns={"*/kernal": 1.0}), "'\\*/kernal' matches no"),
    "vector length": (merging.LayerWeights(jnp.ones(3), default=0.5), r"\(3,\).*has 4 layers"),
    "no default": (merging.LayerWeights(jnp.ones(4)), "embed/embedding.*outside the layers"),
    "bare ramp": (merging.ramp(0, 1), "embed/embedding.*LayerWeights"),
    "prefix": ({"embed": 0.5, "layers": 0.5}, "not a prefix"),
    "shape": (
        {"embed": jnp.ones(4), "layers": 0.5, "final_norm": 0.5},
        r"\(4,\) does not fit embed",
    ),
    "text": ("0.5", "weight is '0.5'; expected a number"),
    "boolean": ({"embed": True, "layers": 0.5, "final_norm": 0.5}, "weight is True"),
    "function": (lambda path: None, "weight of embed/embedding is None"),
}


@pytest.mark.parametrize("weight, message", BAD.values(), ids=BAD)
def test_bad_weights(weight, message):
    with pytest.raises(InputError, match=message) as error:
        merging.merge_params(BASE, ONES, weight=weight)
    assert "\n" not in str(error.value)


def test_weights_must_be_as_many_as_models():
    with pytest.raises(InputError, match="weight has 3 values for 2 tuned models"):
        merging.merge_params(BASE, [ONES, ONES], weight=[0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="at least one point"):
        merging.gradient([])
    with pytest.raises(InputError, match="expected 'linear' or 'cosine'"):
        merging.ramp(0, 1, "sine")
