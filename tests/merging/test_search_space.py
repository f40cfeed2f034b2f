"""Trees of intervals as vectors: order, shapes, bounds, rounding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imm_jax.errors import InputError
from imm_jax.merging import Interval, LayerWeights, gradient
from imm_jax.merging.search_space import read_space

numbers = st.floats(-1e6, 1e6)
shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@st.composite
def intervals(draw):
    low = draw(st.just(-math.inf) | numbers)
    least = draw(numbers) if math.isinf(low) else low + draw(st.floats(1e-3, 1e3)) * (1 + abs(low))
    return Interval(low, draw(st.just(math.inf) | st.just(least)), draw(shapes))


spaces = st.recursive(
    intervals() | numbers,
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), children, max_size=3)
        | st.builds(LayerWeights, children, st.none() | children)
    ),
    max_leaves=6,
).filter(lambda space: any(isinstance(x, Interval) for x in jax.tree.leaves(space)))


@st.composite
def spaces_with_values(draw):
    """A space and a tree like it, with float64 arrays within bounds."""
    space = draw(spaces)

    def value(leaf):
        if not isinstance(leaf, Interval):
            return leaf
        low, high = max(leaf.low, -1e12), min(leaf.high, 1e12)
        size = math.prod(leaf.shape)
        flat = draw(st.lists(st.floats(low, high), min_size=size, max_size=size))
        return np.array(flat, np.float64).reshape(leaf.shape)

    return space, jax.tree.map(value, space)


@given(spaces_with_values())
def test_a_tree_and_its_vector_stand_for_each_other(drawn):
    space, values = drawn
    known = read_space(space)
    vector = known.ravel(values)
    searched = [
        np.ravel(value)
        for leaf, value in zip(jax.tree.leaves(space), jax.tree.leaves(values))
        if isinstance(leaf, Interval)
    ]
    np.testing.assert_array_equal(vector, np.concatenate(searched))
    tree = known.unravel(known.to_float32(vector))
    assert jax.tree.structure(tree) == jax.tree.structure(values)
    for leaf, value, got in zip(*map(jax.tree.leaves, (space, values, tree))):
        if not isinstance(leaf, Interval):
            assert got is leaf
            continue
        assert got.shape == leaf.shape and got.dtype == jnp.float32
        wide = np.asarray(got, np.float64)
        assert np.all((leaf.low <= wide) & (wide <= leaf.high))
        np.testing.assert_allclose(wide, value, rtol=2.0**-23, atol=1e-44)
    # and so does the rounded tree, exactly
    np.testing.assert_array_equal(known.ravel(tree), known.to_float32(vector))


@given(spaces)
def test_a_search_starts_inside_and_its_spread_is_positive(space):
    known = read_space(space)
    assert np.all((known.low <= known.start) & (known.start <= known.high))
    assert np.all(known.spread > 0) and np.all(np.isfinite(known.spread))
    assert known.start.shape == known.low.shape == known.high.shape == known.spread.shape


def test_where_a_search_starts():
    space = [Interval(0, 1), Interval(2.0), Interval(high=2.0, spread=3.0), Interval()]
    known = read_space(space)
    np.testing.assert_array_equal(known.start, [0.5, 2.25, -1, 0])
    np.testing.assert_array_equal(known.spread, [0.25, 0.25, 3, 0.25])
    np.testing.assert_array_equal(read_space(space, [1, 2, 2.0, -9]).start, [1, 2, 2, -9])


def test_weights_over_depth_are_searched_through_their_points():
    space = LayerWeights(gradient([Interval(0, 1), 0.5, Interval(0, 2)]), patterns={"*/bias": 0.0})
    known = read_space(space)
    np.testing.assert_array_equal(known.high, [1, 2])
    tree = known.unravel(np.array([0.25, 1.5], np.float32))
    np.testing.assert_array_equal(tree.layers.at_layers(3), [0.25, 0.5, 1.5])
    assert tree.patterns == (("*/bias", 0.0),) and tree.default is None


def test_a_vector_is_unravelled_under_jit_and_vmap():
    known = read_space({"a": Interval(shape=(2, 2)), "b": 3.0, "c": Interval()})
    rows = np.arange(10, dtype=np.float32).reshape(2, 5)
    out = jax.jit(jax.vmap(known.unravel, out_axes={"a": 0, "b": None, "c": 0}))(rows)
    assert out["a"].tolist() == [[[0, 1], [2, 3]], [[5, 6], [7, 8]]]
    assert out["c"].tolist() == [4, 9] and out["b"] == 3


def test_numbers_that_stay_are_part_of_the_description():
    (first, second) = read_space([Interval(0), np.array([1, 2])]).describe()
    assert first == {"path": "0", "bounds": [0.0, None], "shape": [], "spread": 0.25}
    assert second == {"path": "1", "value": [1.0, 2.0]}


def test_initial_values_must_be_numbers_of_the_right_shape():
    known = read_space({"a": Interval(shape=(2,))})
    for wrong in ({"a": [0.1, 0.2]}, {"a": np.array(["x", "y"])}, {"b": np.zeros(2)}, np.zeros(2)):
        with pytest.raises(InputError, match=r"initial .*expected"):
            known.ravel(wrong)
