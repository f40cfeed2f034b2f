"""Weights of layers that are listed under other names than ``layers``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.errors import InputError


def zeros(*paths):
    """A tree of nested dictionaries with a vector at each path."""
    out = {}
    for path in paths:
        *above, name = path.split("/")
        node = out
        for part in above:
            node = node.setdefault(part, {})
        node[name] = jnp.zeros(2)
    return out


def used(weight, *paths):
    """The weight that each parameter got, as the merge of zeros and ones shows it."""
    base = zeros(*paths)
    out = merging.merge_params(base, jax.tree.map(jnp.ones_like, base), weight=weight)
    return {
        path: float(x[0])
        for path, x in zip(sorted(paths), jax.tree.leaves(out))  # as dictionaries are sorted
    }


NAMES = {
    "Flax": "params/block_{}/attn/kernel",
    "numbers": "h/{}/attn/kernel",
    "flat": "transformer.h.{}.attn.weight",
    "flat name": "transformer/h.{}/w",
    "arrays": "h/{}",
    "numbers inside": "h/{}/mlp/Dense_0/kernel",
}
RAMP = merging.LayerWeights([0.0, 1.0], default=0.25)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_layers_are_what_is_numbered(name):
    paths = [name.format(i) for i in range(3)]
    assert used(RAMP, *paths, "wte/w") == dict(zip(paths, (0, 0.5, 1))) | {"wte/w": 0.25}


def test_what_is_numbered_inside_of_layers_is_none():
    paths = [f"h/{i}/mlp/fc_{j}/w" for i in range(3) for j in range(2)]
    assert list(used(RAMP, *paths).values()) == [0, 0, 0.5, 0.5, 1, 1]


def test_more_than_ten_layers_are_in_order():
    paths = [f"block_{i}/w" for i in range(12)]
    got = used(merging.LayerWeights(np.arange(12.0)), *paths)
    assert got == {path: i for i, path in enumerate(paths)}


def test_an_encoder_and_a_decoder():
    paths = [f"{part}/h_{i}/w" for part, n in (("decoder", 3), ("encoder", 2)) for i in range(n)]
    assert list(used(RAMP, *paths).values()) == [0, 0.5, 1, 0, 1]


def test_single_numbers_and_patterns_of_numbered_layers():
    paths = ["block_0/attn/w", "block_0/mlp/w", "block_1/attn/w", "block_1/mlp/w", "norm/w"]
    patterns = {"block_1/*": 0.5, "block/mlp": 0.75}
    got = used(merging.LayerWeights(1.0, default=0.0, patterns=patterns), *paths)
    assert list(got.values()) == [1, 0.75, 0.5, 0.5, 0]


TWO = ["params/Dense_0/w", "params/Dense_1/w", "params/net/block_0/w", "params/net/block_1/w"]


def test_several_that_could_be_meant_are_told_apart_by_name():
    for values in ([0.0, 1.0], merging.ramp(0, 1), jnp.arange(2.0), 0.5):
        message = (
            "several could be the layers: params/Dense, params/net/block; say which by .*named="
        )
        with pytest.raises(InputError, match=message):
            used(merging.LayerWeights(values, default=0.25), *TWO)
    named = lambda name: merging.LayerWeights([0.0, 1.0], default=0.25, named=name)
    for name in ("block", "net/block", "params/net/block"):
        assert list(used(named(name), *TWO).values()) == [0.25, 0.25, 0, 1]
    assert list(used(named("Dense"), *TWO).values()) == [0, 1, 0.25, 0.25]
    with pytest.raises(InputError, match=r"are named 'blok'.*did you mean"):
        used(named("blok"), *TWO)


def test_a_number_for_all_asks_for_no_layers():
    got = used(merging.LayerWeights(0.5, patterns={"*/block_1/*": 1.0}), *TWO)
    assert list(got.values()) == [0.5, 0.5, 0.5, 1]


def test_a_name_is_kept_by_trees_and_overrides_what_is_called_layers():
    weight = merging.LayerWeights(jnp.arange(2.0), default=0.25, named="block")
    assert jax.tree.map(lambda w: w + 1, weight).named == "block"
    paths = ["block_0/w", "block_1/w", "layers_0/w", "layers_1/w"]
    assert list(used(weight, *paths).values()) == [0, 1, 0.25, 0.25]


@pytest.mark.parametrize(
    "paths",
    [["conv_1/w", "conv_2/w"], ["h_0/w", "h_2/w"], ["h_0/w", "h_1/v"], ["only_0/w"]],
    ids=["from 1", "a gap", "different", "one"],
)
def test_other_numbers_are_no_layers(paths):
    with pytest.raises(InputError, match=r"no layers for its values over depth.*named="):
        used(RAMP, *paths)


def test_random_numbers_are_those_of_the_path_as_it_stands():
    base, drop = zeros("block_0/w", "block_1/w"), merging.drop_and_rescale(0.5)
    tuned = jax.tree.map(jnp.ones_like, base)
    how = {"transform": drop, "key": jax.random.key(0)}
    plain = merging.merge_params(base, tuned, weight=1.0, **how)
    layered = merging.merge_params(base, tuned, weight=merging.LayerWeights(jnp.ones(2)), **how)
    jax.tree.map(np.testing.assert_array_equal, plain, layered)
