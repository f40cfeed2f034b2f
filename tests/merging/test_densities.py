"""Densities that are arrays: swept by vmap, equal to the numbers they stand for."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.errors import InputError
from imm_jax.merging.sparsify import share_of
from tests.merging import merge_oracles as oracle

KEY = jax.random.key(3)
DENSITIES = (0.1, 0.25, 0.7, 0.9)  # whole numbers of 600 elements, also where float32 is below


def model(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {
        "embed": draw(20, 30).astype(jnp.bfloat16),
        "layers": {"kernel": draw(2, 30, 20)},
    }


BASE, ONE, TWO = map(model, range(3))


def merged(transform, models=(ONE, TWO)):
    return merging.merge_params(BASE, list(models), weight=0.5, transform=transform, key=KEY)


TRANSFORMS = {
    "trim": merging.trim,
    "trim the model": lambda density: merging.trim(density, "model"),
    "trim each model": lambda density: merging.trim((density, 0.3)),
    "drop_outliers": lambda density: merging.drop_outliers(density, (density, 0.05)),
    "ties of the model": lambda density: merging.ties(density, scope="model"),
    "sce": merging.sce,
}


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_densities_swept_by_vmap_are_those_one_by_one(make):
    swept = jax.vmap(lambda density: merged(make(density)))(jnp.array(DENSITIES))
    for i, density in enumerate(DENSITIES):
        alone = merged(make(density))
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), swept, alone)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_trim_of_a_density_in_an_array_keeps_the_largest(wrap):
    delta = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    trim = lambda d: merging.merge_params(
        jnp.zeros((30, 40)), jnp.asarray(delta), weight=1.0, transform=merging.trim(d)
    )
    for density, count in ((0.0, 0), (1e-6, 1), (0.7, 840), (0.9, 1080), (0.0199, 23), (1.0, 1200)):
        expected = delta * oracle.top_k(delta, count)
        np.testing.assert_array_equal(wrap(trim)(jnp.float32(density)), expected)


def test_magnitudes_are_dropped_by_a_density_in_an_array():
    """Densities and epsilon that float32 holds exactly."""
    densities = (0.0, 0.25, 0.625, 1.0)
    make = lambda density: merging.drop_by_magnitude(density, 0.125)
    swept = jax.vmap(lambda density: merged(make(density)))(jnp.array(densities))
    for i, density in enumerate(densities):
        alone = merged(make(density))
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), swept, alone)


@pytest.mark.parametrize("name", ["dare_linear", "della"])
def test_named_methods_take_densities_in_arrays(name):
    """What is divided by a density is divided by one of float32."""
    densities = (0.25, 0.75)
    merge = lambda density: merging.merge_models(
        name, [ONE, TWO], base=BASE, density=density, key=KEY
    )["layers"]["kernel"]
    swept = jax.vmap(merge)(jnp.array(densities))
    for i, density in enumerate(densities):
        np.testing.assert_allclose(swept[i], merge(density), atol=2e-6)


@pytest.mark.parametrize("size", [1, 10, 1200, 4096, 2**20 + 7, 3 * 2**30 + 1])
def test_a_share_in_an_array_is_the_floor_of_the_product(size):
    """By fractions: of what the decimal says where float32 can tell, else within its rounding."""
    shares = [Fraction(i, 100) for i in range(101)]
    of_size = jax.jit(jax.vmap(lambda share: share_of(size, share)))
    found = np.asarray(of_size(jnp.array(shares, jnp.float32)), np.int64)
    exact = [int(share * size) for share in shares]
    slack = 0 if size < 10**5 else np.ceil(size * 2.0**-25) + 1
    assert np.all(np.abs(found - exact) <= slack)
    assert found[0] == 0 and found[100] == size


BAD = {
    "above 1": (lambda: merging.trim(jnp.float32(20)), "density is 20.0; expected 0 <= density"),
    "a vector": (lambda: merging.trim(jnp.ones(2)), r"density has shape \(2,\); expected a number"),
    "text": (lambda: merging.trim("half"), "density is 'half'; expected a number"),
    "epsilon": (lambda: merging.drop_by_magnitude(jnp.float32(0.5), 0.5), "must be in"),
    "too many": (lambda: share_of(2**32, jnp.float32(0.5)), "4294967296 elements must be a number"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_densities(call, message):
    with pytest.raises(InputError, match=message):
        call()
