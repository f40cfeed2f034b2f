"""Attention by blocks against the formula in float64, its gradient against differences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from imm_jax.models import block_attention
from imm_jax.models.attention import attend, causal_mask
from imm_jax.models.block_attention import attend_in_blocks, block_size

SCALE = 0.3


def draw(length, heads=4, kv_heads=2, size=8, rows=2):
    rng = np.random.default_rng(length)
    shapes = ((rows, length, count, size) for count in (heads, kv_heads, kv_heads))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def packed_mask(length, rows=2, window=None):
    """Rows of three sequences each, whose lengths differ from row to row."""
    cuts = [(length // 3, length // 2 + row) for row in range(rows)]
    segments = np.array([[sum(t >= cut for cut in cuts[row]) for t in range(length)]
                         for row in range(rows)])  # fmt: skip
    starts = np.array([[np.flatnonzero(s == s[t])[0] for t in range(length)] for s in segments])
    positions = jnp.asarray(np.arange(length) - starts)
    same = segments[:, :, None] == segments[:, None, :]
    return causal_mask(positions, positions, window) & same


def formula(q, k, v, mask):
    """Softmax attention, one query at a time."""
    q, k, v, mask = (np.asarray(x, np.float64) for x in (q, k, v, mask))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask[b, t])
        scores = k[b, seen, h // group] @ q[b, t, h] * SCALE
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ v[b, seen, h // group] / weights.sum()
    return out


@pytest.mark.parametrize("length", [1, 9, 100, 200, 260, 800])
def test_a_row_is_cut_into_few_blocks_that_hold_all_of_it(length):
    blocks = block_attention._blocks(length)
    assert len(blocks) <= 8
    assert [a for a, _ in blocks] == [0, *(b for _, b in blocks[:-1])] and blocks[-1][1] == length
    assert all(b - a == block_size(length) for a, b in blocks[:-1])
    assert len(blocks) == 1 or block_size(length) >= 96


@pytest.mark.parametrize("length", [9, 250])
@pytest.mark.parametrize("window", [None, 3])
def test_it_is_the_formula(length, window):
    q, k, v = draw(length)
    mask = packed_mask(length, window=window)
    found = jax.jit(lambda *x: attend_in_blocks(*x, mask, scale=SCALE, dtype=jnp.float32))(q, k, v)
    np.testing.assert_allclose(found, formula(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize("length", [9, 250])
@pytest.mark.parametrize("window", [None, 3])
def test_its_gradient_is_that_of_plain_attention(length, window):
    q, k, v = draw(length)
    mask = packed_mask(length, window=window)
    turn = np.cos(np.arange(q.size, dtype=np.float32)).reshape(q.shape)

    def plain(q, k, v):
        return attend(q, [(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), mask)], scale=SCALE)

    def blocks(q, k, v):
        return attend_in_blocks(q, k, v, mask, scale=SCALE, dtype=jnp.float32)

    grad = lambda f: jax.jit(jax.grad(lambda *x: jnp.sum(turn * f(*x)), (0, 1, 2)))(q, k, v)
    grads = [grad(f) for f in (blocks, plain)]
    for ours, want in zip(*grads):
        np.testing.assert_allclose(ours, want, atol=2e-5)


def test_its_gradient_is_that_of_differences():
    q, k, v = draw(6, heads=2, kv_heads=1, size=4, rows=1)
    mask = packed_mask(6, rows=1)
    of = lambda *x: attend_in_blocks(*x, mask, scale=SCALE, dtype=jnp.float32)
    check_grads(of, (q, k, v), order=1, modes=("rev",), atol=1e-2, rtol=1e-2)


def test_narrow_factors_change_it_by_their_rounding():
    q, k, v = draw(250)
    mask = packed_mask(250)
    loss = lambda dtype: lambda *x: attend_in_blocks(*x, mask, scale=SCALE, dtype=dtype)
    squares = lambda dtype: jax.grad(lambda *x: jnp.sum(loss(dtype)(*x) ** 2), (0, 1, 2))
    for of in (loss, squares):
        exact, rounded = (jax.tree.leaves(jax.jit(of(d))(q, k, v)) for d in ("float32", "bfloat16"))
        for one, two in zip(exact, rounded):
            assert two.dtype == jnp.float32
            assert 1e-4 < jnp.linalg.norm(two - one) / jnp.linalg.norm(one) < 0.01


def test_it_works_under_vmap():
    q, k, v = (np.stack([x, 2 * x]) for x in draw(9))
    mask = packed_mask(9)
    grad = jax.grad(
        lambda *x: jnp.sum(attend_in_blocks(*x, mask, scale=SCALE, dtype=jnp.float32) ** 2),
        (0, 1, 2),
    )
    for both, *alone in zip(jax.vmap(grad)(q, k, v), *(grad(*x) for x in zip(q, k, v))):
        np.testing.assert_allclose(both, np.stack(alone), atol=2e-5)


def test_scores_of_keys_that_no_query_of_a_block_sees_never_exist():
    """Four blocks of 400: at most 100 x 400 scores a head, where all would be 400 x 400."""
    q, k, v = draw(400, rows=1)
    mask = packed_mask(400, rows=1)
    grad = jax.grad(
        lambda *x: jnp.sum(attend_in_blocks(*x, mask, scale=SCALE, dtype="float32")), (0, 1, 2)
    )
    text = jax.jit(grad).lower(q, k, v).as_text()
    shapes = set(re.findall(r"tensor<((?:\d+x)+)", text))
    sizes = [np.prod([int(n) for n in shape.split("x")[:-1]]) for shape in shapes]
    assert max(sizes) == 4 * 100 * 400
