"""Paths, layer stacks, and functions of one tensor over both layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax.tree import (
    find_layers,
    is_stacked,
    map_with_path,
    num_bytes,
    num_layers,
    num_params,
    path_str,
    per_tensor,
    stack_layers,
    unstack_layers,
)

# Functions of one tensor that look at all of it, so that layers must be seen apart.
ONE = {
    "softmax": lambda x: jax.nn.softmax(x.reshape(-1)).reshape(x.shape),
    "norm": lambda x: jnp.linalg.norm(x.reshape(-1)),
    "sorted": lambda x: jnp.sort(x.reshape(-1)),
    "largest": lambda x: jnp.where(x == x.max(), x, 0),
    "transpose": lambda x: x.T,
}
TWO = {
    "projection": lambda x, y: x * jnp.vdot(x, y) / (1 + jnp.vdot(x, x)),
    "larger": lambda x, y: jnp.where(jnp.abs(x).sum() > jnp.abs(y).sum(), x, y),
}


@st.composite
def models(draw):
    """A tree with stacked layers of random depth and shapes beside other leaves."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers, shapes = draw(st.integers(1, 4)), st.lists(st.integers(1, 3), min_size=0, max_size=2)
    array = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return {
        "embed": {"embedding": array(*draw(shapes))},
        "layers": {
            "attn": {"q": {"kernel": array(layers, *draw(shapes))}},
            "norm": {"scale": array(layers, *draw(shapes))},
        },
    }


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), one, other)


@settings(max_examples=8, deadline=None)
@given(models(), st.sampled_from(sorted(ONE)))
def test_per_tensor_is_the_same_in_both_layouts(tree, name):
    stacked = per_tensor(ONE[name], tree)
    assert_same(unstack_layers(stacked), per_tensor(ONE[name], unstack_layers(tree)))
    # ... and it is the function on each tensor.
    expected = ONE[name](tree["layers"]["norm"]["scale"][-1])
    np.testing.assert_allclose(stacked["layers"]["norm"]["scale"][-1], expected, rtol=1e-6)


@settings(max_examples=5, deadline=None)
@given(models(), st.sampled_from(sorted(TWO)))
def test_per_tensor_of_two_trees(tree, name):
    other = jax.tree.map(lambda x: x[::-1] + 1 if x.ndim else x + 1, tree)
    stacked = per_tensor(TWO[name], tree, other)
    apart = per_tensor(TWO[name], unstack_layers(tree), unstack_layers(other))
    assert_same(unstack_layers(stacked), apart)


@settings(max_examples=10, deadline=None)
@given(models())
def test_stacking_is_the_inverse_of_unstacking(tree):
    apart = unstack_layers(tree)
    assert isinstance(apart["layers"], list) and len(apart["layers"]) == num_layers(tree)
    assert num_layers(apart) == num_layers(tree)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(apart), tree)
    assert unstack_layers(apart) is apart and stack_layers(tree) is tree
    assert num_params(apart) == num_params(tree) == sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("path", "stacked"),
    [
        ("layers/attn/q/kernel", True),
        ("layers/norm", True),
        ("layers/3/attn/q/kernel", False),
        ("layers", False),
        ("embed/embedding", False),
        ("head/layers/kernel", True),
        ("params/layers/attn/kernel", True),
        ("params/layers/12/attn/kernel", False),
        ("layers_3/kernel", False),
        ("layers2/kernel", False),
        ("mylayers/kernel", False),
        ("layers/3d/kernel", True),
    ],
)
def test_what_is_stacked(path, stacked):
    assert is_stacked(path) is stacked


@pytest.mark.parametrize("path", ["layers/3/attn/q", "params/layers/3/w", "a/b/layers_3/w"])
def test_the_number_of_a_layer_can_be_taken_out_and_put_back(path):
    place = find_layers(path)
    assert place.number == 3 and "3" not in place.path
    assert place.of_layer(3) == path.replace("layers_3", "layers/3")
    assert find_layers(place.path) == place._replace(number=None)


def test_paths_and_bytes():
    tree = {"a": [{"b": np.zeros((2, 3), np.float16)}, np.zeros(4, np.int8)], "c": (np.float32(1),)}
    assert map_with_path(lambda path, x, y: (path, x.shape == y.shape), tree, tree) == {
        "a": [{"b": ("a/0/b", True)}, ("a/1", True)],
        "c": (("c/0", True),),
    }
    assert path_str(()) == ""
    assert num_params(tree) == 11 and num_bytes(tree) == 12 + 4 + 4
