"""Arguments of methods that cannot be meant: one line each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.errors import InputError

W = {"w": jnp.ones((2, 3))}
FLAGS = {
    "linear": ["normalize"],
    "task_arithmetic": ["normalize"],
    "ties": ["normalize"],
    "dare_linear": ["normalize", "rescale"],
    "della": ["normalize", "rescale"],
    "breadcrumbs_ties": ["normalize"],
    "nuslerp": ["nuslerp_flatten", "nuslerp_row_wise"],
    "multislerp": ["normalize_weights"],
    "model_stock": ["filter_wise"],
}


@pytest.mark.parametrize("name, flag", [(name, f) for name, fs in FLAGS.items() for f in fs])
@pytest.mark.parametrize("value", ["no", 0.5, None])
def test_flags_are_true_or_false(name, flag, value):
    base = {"base": W} if merging.METHODS[name].base == "required" else {}
    with pytest.raises(InputError, match=f"{flag} is {value!r}; expected True or False"):
        merging.merge_models(name, [W, W], key=jax.random.key(0), **base, **{flag: value})


@pytest.mark.parametrize("count", [1.5, -1, "many"])
def test_iterations_are_a_whole_number(count):
    with pytest.raises(InputError, match=f"max_iter is {count!r}; expected a whole number >= 0"):
        merging.karcher(max_iter=count)


def test_fisher_information_is_of_floating_numbers():
    loss = lambda params, x: jnp.sum(params["w"]) * x
    with pytest.raises(InputError, match="n is int32; expected floating numbers"):
        merging.diagonal_fisher(loss, {**W, "n": jnp.arange(2)}, jnp.ones(3))
    with pytest.raises(InputError, match="there are no examples"):
        merging.diagonal_fisher(loss, W, jnp.ones(0))
    found = merging.diagonal_fisher(loss, {**W, "none": None}, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found["w"], np.full((2, 3), 2.5))
