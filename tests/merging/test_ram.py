"""Reinforced Agent Merging against mergekit's numbers, its formula and its corner cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.errors import InputError
from tests.merging import merge_oracles as oracle


def sparse_models():
    """A base of 40 elements and three models that change a part of them each."""
    j = np.arange(40)
    base = (j % 7 - 3) / 4
    deltas = [
        np.where(j % step == rest, (j * (i + 3) % 11 - 5) / 16, 0)
        for i, (step, rest) in enumerate([(2, 0), (12, 3), (5, 1)])
    ]
    return [x.astype(np.float32) for x in (base, *[base + d for d in deltas])]


# fmt: off
MERGEKIT = [
    (("ram", {}), [
        -1.0625, -0.5, -0.1875, -0.25, 0, 0.5, 0.90625, -0.75, -0.6875, -0.25, 0.1875, -0.0625,
        0.375, 0.75, -0.5, -0.5, -0.34375, 0, 0.5625, 0.5, 0.75, -0.6875, -0.8125, -0.25, 0.0625,
        0.25, 0.5, 1, -0.625, -0.5, -0.4375, -0.25, 0.4375, 0.5, 0.625, -0.75, -0.40625, -0.25,
        -0.0625, 0.0625]),
    (("ramplus_tl", {}), [
        -1.06875, -0.5, -0.18625, -0.25, -0.005, 0.5, 0.90625, -0.75, -0.69125, -0.25, 0.19125,
        -0.06875, 0.3725, 0.75, -0.495, -0.5, -0.34375, 0, 0.56875, 0.5, 0.75, -0.68625, -0.81875,
        -0.25, 0.06375, 0.25, 0.5, 1, -0.6225, -0.5, -0.44125, -0.255, 0.44125, 0.5, 0.6225, -0.75,
        -0.40625, -0.25, -0.06375, 0.0625]),
    (("ramplus_tl", {"r": 0.5, "alpha": 2.0, "epsilon": 0.1}), [
        -1.0865386, -0.5, -0.25, -0.25, -0.0192308, 0.5, 0.90625, -0.75, -0.7019231, -0.25,
        0.2019231, -0.1666667, 0.3653846, 0.75, -0.4807692, -0.5, -0.4166667, 0, 0.5865385, 0.5,
        0.75, -0.75, -0.8365385, -0.25, 0, 0.25, 0.5, 1, -0.6153846, -0.5, -0.4519231, -0.3333333,
        0.4519231, 0.5, 0.6153846, -0.75, -0.2307692, -0.25, 0, 0.0625]),
]
# fmt: on


@pytest.mark.parametrize("call, expected", MERGEKIT, ids=["ram", "ramplus_tl", "parameters"])
def test_the_numbers_of_mergekit(call, expected):
    """Made by mergekit 0.1.5, rounded to 7 digits, with::

    from mergekit.merge_methods import base, ram
    tensors = [torch.tensor(x) for x in sparse_models()]
    group = base.TensorGroup.from_tensors(tensors, base_index=0)
    ram.ram_merge.merge_group(group)  # and ram.ramplus_tl_merge with the parameters
    """
    (name, parameters), (base, *models) = call, sparse_models()
    out = merging.merge_models(name, models, base=base, **parameters)
    np.testing.assert_allclose(out, expected, atol=1e-7)


def test_what_one_model_alone_changed_is_that_models_bits():
    rng = np.random.default_rng(0)
    base = jnp.asarray(rng.normal(size=4000), jnp.bfloat16)
    moved = base + jnp.asarray(
        rng.normal(size=4000) * 10.0 ** rng.integers(-6, 4, 4000), base.dtype
    )
    mine = rng.random(4000) < 0.5
    models = [jnp.where(mine, moved, base), jnp.where(mine, base, moved)]
    out = merging.merge_models("ram", models, base=base, epsilon=0.0)
    assert np.array_equal(out, moved)


def test_deltas_up_to_epsilon_are_dropped():
    base, tuned = np.zeros(3, np.float32), np.array([0.25, -0.25, 0.5], np.float32)
    for name in ("ram", "ramplus_tl"):
        out = merging.merge_models(name, [tuned, 0 * tuned], base=base, epsilon=0.25)
        assert out.tolist() == [0, 0, 0.5]


def test_layers_of_a_stack_are_counted_apart_also_under_jit():
    rng = np.random.default_rng(1)
    base = {"layers": {"w": rng.normal(size=(3, 20, 10)).astype(np.float32)}}
    shares = np.array([0.05, 0.3, 0.9]).reshape(3, 1, 1)
    models = [
        {"layers": {"w": base["layers"]["w"] + (rng.random((3, 20, 10)) < shares) * np.float32(s)}}
        for s in (0.5, 0.25)
    ]
    arguments = {"r": 0.5, "alpha": 3.0}
    merge = lambda base, models: merging.merge_models("ramplus_tl", models, base=base, **arguments)
    out, jitted = merge(base, models), jax.jit(merge)(base, models)
    assert np.array_equal(out["layers"]["w"], jitted["layers"]["w"])
    for layer in range(3):
        wide = [np.float64(m["layers"]["w"][layer]) for m in (base, *models)]
        expected = oracle.ramplus_tl(wide[0], wide[1:], 0.5, 3.0, 1e-5)
        np.testing.assert_allclose(out["layers"]["w"][layer], expected, atol=5e-7)


BAD = {
    "epsilon": (lambda: merging.ram(-1.0), "epsilon is -1.0; expected a number >= 0"),
    "r": (lambda: merging.ramplus_tl(r=-0.1), "r is -0.1"),
    "alpha": (lambda: merging.ramplus_tl(alpha=float("nan")), "alpha is nan"),
    "weight": (
        lambda: merging.merge_models("ram", [jnp.ones(2)], base=jnp.ones(2), weight=0.5),
        "ram has no weight",
    ),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_parameters(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_in_float64():
    """A mean of three is no number of float32."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        base, *models = (rng.normal(size=40) for _ in range(4))
        out = merging.merge_models("ram", models, base=base, epsilon=0.3)
        assert out.dtype == np.float64
        np.testing.assert_allclose(out, oracle.ram(base, models, 0.3), rtol=1e-12)
