"""What is left after a drop has the L1 norm of before, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging, tree
from tests.merging import merge_oracles as oracle
from tests.merging.test_merge_methods import BASE, MODELS, W, added, crumbs, expect

D = oracle.deltas_of


def trimmed(deltas, density):
    return [d * oracle.top_k(d, int(density * d.size)) for d in deltas]


def all_rescaled(left, deltas):
    return [oracle.rescale(x, d) for x, d in zip(left, deltas, strict=True)]


ARGUMENTS = {
    "ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.6, "gamma": 0.1},
}
ORACLES = {
    "ties": lambda at, b, m: b + oracle.elect(all_rescaled(trimmed(D(b, m), 0.3), D(b, m)), W),
    "breadcrumbs": lambda at, b, m: added(b, all_rescaled(crumbs(D(b, m), 0.6, 0.1), D(b, m))),
    "breadcrumbs_ties": lambda at, b, m: (
        b + oracle.elect(all_rescaled(crumbs(D(b, m), 0.6, 0.1), D(b, m)), W, normalize=False)
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_method_against_its_oracle_in_both_layouts(name):
    how = {"weight": W, "rescale": True, **ARGUMENTS[name]}
    out = merging.merge_models(name, MODELS, base=BASE, **how)
    expected = expect(ORACLES[name], MODELS)
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())
    apart = [tree.unstack_layers(m) for m in MODELS]
    listed = merging.merge_models(name, apart, base=tree.unstack_layers(BASE), **how)
    assert jax.tree.all(jax.tree.map(np.array_equal, tree.unstack_layers(out), listed))


def test_over_the_whole_model():
    flat = lambda t: np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(t)])
    transform = merging.rescaled(merging.trim(0.2, "model"))
    out = merging.merge_params(BASE, MODELS[0], weight=1.0, transform=transform)
    delta = flat(MODELS[0]) - flat(BASE)
    left = delta * oracle.top_k(delta, int(0.2 * delta.size))
    np.testing.assert_allclose(flat(out), flat(BASE) + oracle.rescale(left, delta), atol=5e-6)


def merged(base, tuned, transform, **how):
    return merging.merge_params({"w": base}, {"w": tuned}, weight=1.0, transform=transform, **how)[
        "w"
    ]


def test_where_nothing_is_dropped_nothing_changes():
    base, tuned = (jnp.asarray(np.random.default_rng(i).normal(size=99), "float32") for i in (0, 1))
    out = merged(base, tuned, merging.rescaled(merging.trim(1.0)))
    np.testing.assert_array_equal(out, tuned)


@pytest.mark.parametrize("density", [0.0, 0.5])
def test_nothing_left_and_nothing_changed_stay_so(density):
    base = jnp.arange(8.0)
    transform = merging.rescaled(merging.trim(density))
    np.testing.assert_array_equal(merged(base, base, transform), base)
    if density == 0:
        np.testing.assert_array_equal(merged(base, base + 1, transform), base)


def test_equal_arguments_give_the_same_transform():
    """So that a merge is compiled once."""
    assert merging.ties(0.3, rescale=True) == merging.ties(0.3, rescale=True)
    assert merging.ties(0.3, rescale=True) != merging.ties(0.3)


def test_in_a_mask():
    base, tuned = (
        {"a": jnp.zeros(4), "b": jnp.zeros(4)},
        {"a": jnp.arange(4.0), "b": jnp.arange(4.0)},
    )
    transform = merging.masked(merging.rescaled(merging.trim(0.25)), {"a": True, "b": False})
    out = merging.merge_params(base, tuned, weight=1.0, transform=transform)
    np.testing.assert_allclose(out["a"], [0, 0, 0, 6])
    np.testing.assert_array_equal(out["b"], tuned["b"])


def test_a_drop_at_random():
    rng = np.random.default_rng(0)
    tuned = jnp.asarray(rng.normal(size=1000), "float32")
    drop = merging.rescaled(merging.drop_and_rescale(0.4, rescale=False))
    out = merged(jnp.zeros(1000), tuned, drop, key=jax.random.key(0))
    assert 0.3 < np.mean(np.asarray(out) == 0) < 0.5
    np.testing.assert_allclose(np.abs(out).sum(), np.abs(tuned).sum(), rtol=1e-5)
