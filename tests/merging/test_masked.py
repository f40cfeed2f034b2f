"""Transforms of some parameters alone: masks as trees and as functions of the path."""

import jax
import jax.numpy as jnp
import pytest

from imm_jax import merging
from imm_jax.errors import InputError


def test_masked_by_tree_and_by_path():
    base = {"a": jnp.zeros(4), "layers": [{"w": jnp.zeros(2)}, {"w": jnp.zeros(2)}]}
    tuned = jax.tree.map(lambda x: x + 1, base)
    double = merging.scale(2.0)
    by_tree = merging.masked(double, {"a": False, "layers": [True, {"w": False}]})
    out = merging.merge_params(base, tuned, weight=1.0, transform=by_tree)
    assert [float(x[0]) for x in jax.tree.leaves(out)] == [1, 2, 1]
    by_path = merging.masked(double, _in_layers)
    out = merging.merge_params(base, tuned, weight=1.0, transform=by_path)
    assert [float(x[0]) for x in jax.tree.leaves(out)] == [1, 2, 2]
    assert by_path == merging.masked(double, _in_layers)
    with pytest.raises(InputError, match="mask has no value for a"):
        mask = merging.masked(double, {"layers": True})
        merging.merge_params(base, tuned, transform=mask)
    with pytest.raises(InputError, match="mask a is 1; expected True or False"):
        merging.masked(double, {"a": 1})


def _in_layers(path):
    return path.startswith("layers/")


def test_a_mask_has_none_where_parameters_have():
    """As ``jax.tree.map`` over the parameters makes it."""
    base = {"w": jnp.zeros((2, 2)), "none": None, "v": jnp.zeros(2)}
    tuned = jax.tree.map(lambda x: x + 1, base)
    half = merging.masked(merging.scale(0.5), jax.tree.map(lambda x: x.ndim > 1, base))
    out = merging.merge_params(base, tuned, weight=1.0, transform=half)
    assert out["w"].tolist() == [[0.5, 0.5], [0.5, 0.5]] and out["v"].tolist() == [1, 1]
    assert out["none"] is None
    for mask in ({"w": True, "none": None, "v": None}, None):
        with pytest.raises(InputError, match="mask has no value for v"):
            half = merging.masked(merging.scale(0.5), mask)
            merging.merge_params({"v": base["v"]}, {"v": tuned["v"]}, transform=half)


def test_masked_parameters_do_not_count_in_a_measure():
    base = {"a": jnp.zeros(10), "b": jnp.zeros(10)}
    tuned = {"a": jnp.full(10, 100.0), "b": jnp.arange(10.0)}
    trim = merging.masked(merging.trim(0.3, "model"), {"a": False, "b": True})
    out = merging.merge_params(base, tuned, weight=1.0, transform=trim)
    assert out["b"].tolist() == [0, 0, 0, 0, 0, 0, 0, 7, 8, 9] and float(out["a"][0]) == 100


@pytest.mark.parametrize(
    "mask, message",
    [
        ({"a/b": True, "a": {"b": False}}, "2 leaves have the path 'a/b'"),
        ({"a/b": True, "a": False}, "'a/b' lies below 'a' too; rename a key with '/' in it"),
    ],
)
def test_a_mask_with_one_path_for_two_is_refused(mask, message):
    with pytest.raises(InputError, match=message):
        merging.masked(merging.scale(0.5), mask)
