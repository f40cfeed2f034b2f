"""Random bits of a part of a tensor are those of the whole; paths that stand for others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax import tree
from imm_jax.errors import InputError
from imm_jax.merging import bernoulli, drop_and_rescale, fold_path, merge_params, random_bits
from imm_jax.merging.protocol import fan_in_axis, rows_like

KEY = jax.random.key(7, impl="threefry2x32")
SIZE, PART = 96, 8
WHOLE = np.asarray(jax.random.bits(KEY, (SIZE,), "uint32"))
# One program for every start, as a merge in blocks has it.
bits_from = jax.jit(lambda start: random_bits(KEY, (PART,), start))
drawn_from = jax.jit(lambda p, start: bernoulli(KEY, p, (PART,), start))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, SIZE - PART))
def test_a_part_has_the_bits_of_the_whole(start):
    np.testing.assert_array_equal(bits_from(np.uint32(start)), WHOLE[start : start + PART])


def test_a_part_of_rows():
    rows = jax.random.bits(KEY, (12, 8), "uint32")
    np.testing.assert_array_equal(random_bits(KEY, (5, 8), 3 * 8), rows[3:8])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, SIZE - PART), st.floats(0, 1, width=32))
def test_a_part_is_drawn_as_the_whole(start, p):
    whole = np.asarray(bernoulli(KEY, p, (SIZE,)))
    np.testing.assert_array_equal(whole, (p * 2**32 > WHOLE) | (p == 1))
    part = drawn_from(np.float32(p), np.uint32(start))
    np.testing.assert_array_equal(part, whole[start : start + PART])


def test_positions_go_round_after_2_to_the_32():
    """As ``jax.random.bits`` of more elements would repeat: no jump, no error."""
    start = 2**32 - 3
    bits = random_bits(KEY, (PART,), np.uint32(start))
    np.testing.assert_array_equal(bits[3:], WHOLE[: PART - 3])


def test_other_generators_have_no_parts():
    key = jax.random.key(0, impl="rbg")
    assert random_bits(key, (4,)).shape == (4,)
    for start in (4, np.uint32(0), jnp.uint32(0)):
        with pytest.raises(InputError, match="a part of a tensor needs a threefry2x32 key"):
            random_bits(key, (4,), start)


def seeded_by(key):
    """The documented threefry key of another generator's key: its words, folded in."""
    seeded = jax.random.key(0, impl="threefry2x32")
    for word in np.asarray(jax.random.key_data(key)).ravel():
        seeded = jax.random.fold_in(seeded, word)
    return seeded


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_a_merge_takes_keys_of_any_generator(impl):
    """As drawn by ``jax.random``, and the same in both layouts and in a batch of keys."""
    base = {"layers": {"w": jnp.zeros((3, 20, 4))}, "b": jnp.zeros(9)}
    ones = jax.tree.map(jnp.ones_like, base)
    drop = drop_and_rescale(0.5)
    merge = lambda b, t, key: merge_params(b, t, weight=1.0, transform=drop, key=key)
    keys = [jax.random.key(seed, impl=impl) for seed in (0, 1)]
    for key in keys:
        out = merge(base, ones, key)
        listed = merge(*map(tree.unstack_layers, (base, ones)), key)
        jax.tree.map(np.testing.assert_array_equal, tree.unstack_layers(out), listed)
        for path, layer, x in [("b", None, out["b"]), *(
            ("layers/w", i, out["layers"]["w"][i]) for i in range(3)
        )]:  # fmt: skip
            own = fold_path(seeded_by(key), path, layer)
            for number in (0, 0):  # of the transform, and of the model
                own = jax.random.fold_in(own, number)
            kept = jax.random.bits(own, x.shape, "uint32") < np.uint32(2**31)
            np.testing.assert_array_equal(x, 2 * kept)
    batch = jax.vmap(lambda key: merge(base, ones, key))(jnp.stack(keys))
    for i, key in enumerate(keys):
        alone = merge(base, ones, key)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), batch, alone)


def test_a_merge_takes_keys_of_the_default_generator():
    base, ones = {"b": jnp.zeros(40)}, {"b": jnp.ones(40)}
    merge = lambda key: merge_params(base, ones, transform=drop_and_rescale(0.5), key=key)["b"]
    old = merge(jax.random.PRNGKey(3))
    with jax.default_prng_impl("rbg"):
        assert jax.random.PRNGKey(3).shape == (4,)
        np.testing.assert_array_equal(
            merge(jax.random.PRNGKey(3)), merge(jax.random.key(3, impl="rbg"))
        )
        np.testing.assert_array_equal(merge(jax.random.key(3)), merge(jax.random.PRNGKey(3)))
        drawn = merge(jax.random.key(3, impl="threefry2x32"))
    np.testing.assert_array_equal(drawn, old)


@given(st.lists(st.sampled_from(["kernel", "weight", "layers", "3", "kernel.x"]), max_size=4))
def test_a_path_stands_for_all_with_the_same_rows(names):
    path = "/".join(names)
    assert fan_in_axis(rows_like(path)) == fan_in_axis(path)
    assert rows_like(path) == rows_like("kernel" if names[-1:] == ["kernel"] else "other")
