"""Order statistics of numbers in blocks, against NumPy's sort, in as little memory as allowed."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imm_jax.merging import Largest, outofcore
from imm_jax.merging.outofcore import row_ranks, select
from imm_jax.merging.statistics import NOTHING

# Ties, both zeros, the smallest and largest numbers there are, neighbours.
SPECIAL = [0.0, -0.0, 1e-45, 1.17549435e-38, 1.0, float(np.nextafter(np.float32(1), 2)), 3e38]
numbers = st.sampled_from([*SPECIAL, np.inf]) | st.floats(0, 2.0**60, width=32)
arrays = st.lists(numbers, max_size=40).map(lambda x: np.array(x, np.float32))


@st.composite
def questions(draw):
    """Arrays of one length, the blocks they come in, and ranks from 0 to their length."""
    count = draw(st.integers(1, 3))
    first = draw(arrays)
    xs = [first, *[draw(st.permutations(first.tolist())) for _ in range(count - 1)]]
    cuts = sorted(draw(st.lists(st.integers(0, first.size), max_size=6)))
    ranks = st.lists(st.integers(0, first.size), min_size=2, max_size=2)
    return [np.float32(x) for x in xs], cuts, [draw(ranks) for _ in range(count)]


def in_blocks(xs, cuts):
    """A function that goes through the blocks, and a list of how often it was called."""
    passes = []

    def blocks(look):
        passes.append(None)
        yield from map(look, zip(*[np.split(x, cuts) for x in xs]))

    return blocks, passes


def by_sorting(x, k):
    """The bits of the k-th largest. -0 is 0 here."""
    return NOTHING if k == 0 else np.sort(np.abs(x))[::-1][k - 1].view(np.int32)


@settings(max_examples=150, deadline=None)
@given(questions(), st.sampled_from([1, 2, 5, 1000]), st.sampled_from([1, 3, 100]))
@example(([np.zeros(9, np.float32)], [0, 0, 4], [[1, 9]]), 1, 1)
@example(([np.float32([-0.0, -0.0, 1])], [1], [[2, 3]]), 1, 1)
def test_select_is_a_sort(question, held, sampled):
    xs, cuts, ranks = question
    blocks, passes = in_blocks(xs, cuts)
    with mock.patch.multiple(outofcore, HELD=held, SAMPLED=sampled, RANKED=held):
        found = select(blocks, xs[0].size, 7, Largest(None, lambda count, models: ranks))
    expected = [[by_sorting(x, k) for k in row] for x, row in zip(xs, ranks)]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32
    assert len(passes) <= 34


@pytest.mark.parametrize("held", [64, 1 << 22])
def test_ranks_may_depend_on_how_many_are_positive(held, monkeypatch):
    monkeypatch.setattr(outofcore, "HELD", held)
    monkeypatch.setattr(outofcore, "RANKED", 64)
    rng = np.random.default_rng(0)
    xs = [np.maximum(rng.normal(size=1000), limit).astype(np.float32) for limit in (0, 1)]
    told = []

    def ranks(counts, models):
        told.append((counts, models))
        return [[n // 3, n] for n in counts]

    blocks, _ = in_blocks(xs, [100, 100, 640])
    found = select(blocks, 1000, 5, Largest(None, ranks, of_positive=True))
    counts = [int((x > 0).sum()) for x in xs]
    assert told == [(counts, 5)] and counts[1] == 1000
    expected = [[by_sorting(x, k) for k in (n // 3, n)] for x, n in zip(xs, counts)]
    np.testing.assert_array_equal(found, expected)


def test_two_passes_suffice_where_an_eighth_can_be_held(monkeypatch):
    monkeypatch.setattr(outofcore, "HELD", 1 << 17)
    monkeypatch.setattr(outofcore, "SAMPLED", 1 << 12)
    x = np.abs(np.random.default_rng(0).normal(size=1 << 20)).astype(np.float32)
    blocks, passes = in_blocks([x], range(1 << 14, 1 << 20, 1 << 14))
    ks = [1, x.size // 5, x.size // 2, x.size]
    found = select(blocks, x.size, 1, Largest(None, lambda count, models: [ks]))
    np.testing.assert_array_equal(found, [[by_sorting(x, k) for k in ks]])
    assert len(passes) == 2


def test_a_block_is_let_go_before_the_next(monkeypatch):
    """What is kept of a block is copied out of it: a view would keep all of it in memory."""
    monkeypatch.setattr(outofcore, "HELD", 100)
    monkeypatch.setattr(outofcore, "RANKED", 100)
    monkeypatch.setattr(outofcore, "SAMPLED", 16)
    alive, most = [], []

    def blocks(look):
        for i in range(20):
            block = np.abs(np.random.default_rng(i).normal(size=1000)).astype(np.float32)
            alive.append(weakref.ref(block))
            yield look([block])
            del block
            most.append(sum(ref() is not None for ref in alive))

    select(blocks, 20_000, 1, Largest(None, lambda count, models: [[5000]]))
    assert max(most) <= 2


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 5),
    st.integers(0, 9),
    st.lists(numbers, min_size=45, max_size=45),
    st.sampled_from([1, 8, 1 << 16]),
)
def test_row_ranks_are_a_stable_argsort(rows, length, values, in_cache):
    x = np.float32(values[: rows * length]).reshape(rows, length)
    with mock.patch.object(outofcore, "IN_CACHE", in_cache):
        found = row_ranks(x)
    assert found.shape == x.shape and found.dtype == np.float32
    if length == 1:
        assert (found == 0.5).all()
        return
    for row, ranks in zip(x.view(np.int32), found):
        expected, shares = np.empty(length, np.float32), np.arange(length) / np.float64(length - 1)
        expected[np.argsort(row, kind="stable")] = shares
        np.testing.assert_array_equal(ranks, expected)


def test_row_ranks_of_a_number_alone():
    assert row_ranks(np.float32(3)).shape == () and row_ranks(np.float32(3)) == 0.5


def test_bounds_are_those_of_one_block_though_blocks_come_from_threads(monkeypatch):
    monkeypatch.setattr(outofcore, "RANKED", 100)
    x = np.abs(np.random.default_rng(0).normal(size=1 << 18)).astype(np.float32)
    x = np.round(x, 2)  # many tie
    pieces, ks = np.split(x, 64), [1, x.size // 3, x.size]

    def blocks(look):
        with ThreadPoolExecutor(4) as threads:
            yield from threads.map(lambda piece: look([piece]), pieces)

    found = select(blocks, x.size, 1, Largest(None, lambda count, models: [ks]))
    np.testing.assert_array_equal(found, [[by_sorting(x, k) for k in ks]])


def test_a_block_that_says_nothing_leaves_no_block_to_other_bounds(monkeypatch):
    """One large number alone, then a block whose sample misses its largest 800 and more: where so
    many lie above its bounds that the k-th is the next, the first number must count above too.
    """
    monkeypatch.setattr(outofcore, "RANKED", 1000)
    monkeypatch.setattr(outofcore, "HELD", 2000)
    monkeypatch.setattr(outofcore, "SAMPLED", 512)
    sampled = np.arange(0, 2047, 3)
    others = np.setdiff1d(np.arange(2047), sampled)
    for large in range(820, 860):
        x = np.zeros(2047, np.float32)
        x[sampled] = np.random.default_rng(2).random(sampled.size)
        x[others[:large]] = 2 + np.arange(large) / 1000
        x = np.float32([9, *x])
        blocks, _ = in_blocks([x], [1])
        found = select(blocks, x.size, 1, Largest(None, lambda count, models: [[1024]]))
        assert found[0, 0] == by_sorting(x, 1024), large
