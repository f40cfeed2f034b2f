"""Transforms as a user writes them: in memory and in blocks, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.merging import outofcore, streaming
from imm_jax.merging.streaming import Part, measure_model, merge_part


@merging.transform
def equal_energy():
    """Scales every model's delta to a root mean square of 1."""

    def mean_squares(sums, size):
        return [s / size for s in sums]

    def apply(vectors, tensor, squares):
        return vectors.with_deltas(d.hi / jnp.sqrt(s) for d, s in zip(vectors.deltas, squares))

    squares = lambda vectors, tensor: [d.hi**2 for d in vectors.deltas]
    return merging.Transform(apply, merging.Totals(squares, mean_squares), reach="element")


@merging.transform
def only_the_top(count, scope="tensor"):
    """Keeps the ``count`` largest deltas."""

    def apply(vectors, tensor, limits):
        bits = lambda d: jax.lax.bitcast_convert_type(jnp.abs(d.hi), jnp.int32)
        return vectors.with_deltas(
            jnp.where(bits(d) >= limit[0], d.hi, 0) for d, limit in zip(vectors.deltas, limits)
        )

    sizes = lambda vectors, tensor: [jnp.abs(d.hi) for d in vectors.deltas]
    ranks = lambda size, models: [[min(count, size)]] * models
    return merging.Transform(apply, merging.Largest(sizes, ranks), scope)


@merging.transform
def by_rank():
    """Multiplies every delta by its rank among its column's."""

    def apply(vectors, tensor, ranks):
        return vectors.with_deltas(d.hi * r for d, r in zip(vectors.deltas, ranks))

    sizes = lambda vectors, tensor: [jnp.abs(d.hi) for d in vectors.deltas]
    return merging.Transform(apply, merging.Ranks(sizes, lambda tensor: 0))


@merging.transform
def centred(scope="tensor"):
    """Takes the mean off the deltas."""

    def apply(vectors, tensor, means):
        return vectors.with_deltas(d.hi - m for d, m in zip(vectors.deltas, means))

    values = lambda vectors, tensor: [d.hi for d in vectors.deltas]
    means = lambda sums, size: [s / size for s in sums]
    return merging.Transform(apply, merging.Totals(values, means), scope, reach="element")


@merging.transform
def by_small_share():
    """Multiplies the deltas by the share of them that is below 0.5, as what fills a block is."""

    def apply(vectors, tensor, shares):
        return vectors.with_deltas(d.hi * s for d, s in zip(vectors.deltas, shares))

    small = lambda vectors, tensor: [jnp.abs(d.hi) < 0.5 for d in vectors.deltas]
    shares = lambda counts, size: [c / size for c in counts]
    return merging.Transform(apply, merging.Totals(small, shares), reach="element")


def energy_formula(delta):
    return delta / np.sqrt(np.mean(delta**2))


def top_formula(delta, count):
    return np.where(np.abs(delta) >= np.sort(np.abs(delta), axis=None)[-count], delta, 0)


def rank_formula(delta):
    if delta.ndim < 2:
        order = np.argsort(np.argsort(np.abs(delta)))
        return delta * order / (delta.size - 1)
    order = np.argsort(np.argsort(np.abs(delta), axis=0), axis=0)
    return delta * order / (delta.shape[0] - 1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 64)
    monkeypatch.setattr(streaming, "SMALL", 32)
    monkeypatch.setattr(outofcore, "HELD", 20)


SHAPES = {"a": (30, 9), "b": (40,), "c": (50,)}


def models():
    rng = np.random.default_rng(0)
    return [{k: np.float32(rng.normal(size=s)) for k, s in SHAPES.items()} for _ in range(3)]


def both_ways(transform, weights=(0.5, 2.0)):
    """The merge in memory, and in blocks."""
    base, *tuned = models()
    yield merging.merge_params(base, tuned, weight=list(weights), transform=transform)
    read = lambda x: lambda start, stop: x.reshape(-1)[start:stop]
    parts = [
        Part(k, x.shape, read(x), tuple(read(t[k]) for t in tuned), weights, x.dtype)
        for k, x in base.items()
    ]
    shared = measure_model(parts, transform)
    pieces = {p.name: np.concatenate(list(merge_part(p, transform, None, shared))) for p in parts}
    yield {k: x.reshape(SHAPES[k]) for k, x in pieces.items()}


def assert_is(merged, formulas, weights=(0.5, 2.0)):
    """``formulas[name](deltas)``: of the models' deltas in float64, each model's new one."""
    base, *tuned = models()
    for name, x in base.items():
        deltas = [t[name].astype(np.float64) - x for t in tuned]
        expected = x + sum(w * d for w, d in zip(weights, formulas(name, deltas)))
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("transform", "formula"),
    [
        (equal_energy(), energy_formula),
        (by_small_share(), lambda delta: delta * np.mean(np.abs(delta) < 0.5)),
        (only_the_top(7), lambda delta: top_formula(delta, 7)),
        (by_rank(), rank_formula),
        (merging.chain(centred(), by_rank()), lambda d: rank_formula(d - d.mean())),
        (merging.chain(only_the_top(7), equal_energy()),
         lambda d: energy_formula(top_formula(d, 7))),
    ],
    ids=["totals", "counts", "largest", "ranks", "totals then ranks", "largest then totals"],
)  # fmt: skip
def test_a_tensor_at_a_time(transform, formula):
    for merged in both_ways(transform):
        assert_is(merged, lambda name, deltas: [formula(d) for d in deltas])


def joined(names):
    """Each model's deltas of these tensors, in one array."""
    base, *tuned = models()
    return [
        np.concatenate([(t[n].astype(np.float64) - base[n]).reshape(-1) for n in names])
        for t in tuned
    ]


def mean_off(names):
    means = [deltas.mean() for deltas in joined(names)]
    return lambda deltas: [d - m for d, m in zip(deltas, means)]


def top_of(names):
    limits = [np.sort(np.abs(deltas))[-40] for deltas in joined(names)]
    return lambda deltas: [np.where(np.abs(d) >= t, d, 0) for d, t in zip(deltas, limits)]


@pytest.mark.parametrize(
    ("inner", "formula"), [(centred("model"), mean_off), (only_the_top(40, "model"), top_of)]
)
@pytest.mark.parametrize("mask", [None, {"a": True, "b": False, "c": True}, lambda p: p > "a"])
def test_over_the_model_without_what_is_masked(inner, formula, mask):
    """What is masked stays as it is, and is not measured."""
    inside = mask if callable(mask) else (mask or dict.fromkeys(SHAPES, True)).get
    names = [n for n in SHAPES if inside(n)]
    transform = merging.chain(inner) if mask is None else merging.masked(inner, mask)
    change = formula(names)
    for merged in both_ways(transform):
        assert_is(merged, lambda name, deltas: change(deltas) if name in names else deltas)


def test_all_is_masked():
    for merged in both_ways(merging.masked(centred("model"), lambda path: False)):
        assert_is(merged, lambda name, deltas: deltas)
