"""Greedy soup: recipe 1 by hand, rounding, and how many models it holds."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax import merging
from imm_jax.errors import InputError


def by_hand(values, target):
    """Recipe 1 on numbers, scored by their distance to a target, in float64."""
    score = lambda x: -abs(np.mean(x) - target)
    order = sorted(range(len(values)), key=lambda i: -score([values[i]]))
    chosen = order[:1]
    for i in order[1:]:
        if score([values[j] for j in (*chosen, i)]) >= score([values[j] for j in chosen]):
            chosen.append(i)
    return chosen


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=4), st.integers(-8, 8))
def test_recipe_1(values, target):
    # scaled so that means of up to 4 are exact in float32, and ties are ties
    models = [{"w": jnp.full(2, 12.0 * v)} for v in values]
    soup = merging.greedy_soup(models, lambda m: -abs(float(m["w"][0]) - 12 * target))
    chosen = by_hand([12.0 * v for v in values], 12 * target)
    assert soup.chosen == chosen
    assert np.all(np.asarray(soup.params["w"]) == np.mean([12.0 * values[i] for i in chosen]))
    assert soup.scores[-1] == -abs(float(soup.params["w"][0]) - 12 * target)
    assert soup.scores == sorted(soup.scores) and len(soup.scores) == len(chosen)


def test_a_model_that_does_not_help_or_harm_is_added_and_known_scores_are_not_asked_for():
    models, calls = [{"w": jnp.full(1, float(i))} for i in range(3)], []
    params, chosen, scores = merging.greedy_soup(
        models, lambda m: calls.append(float(m["w"][0])) or 7, alone=[7, 7, 9]
    )
    assert chosen == [2] and scores == [9] and calls == [1, 1.5]
    assert params is models[2]
    assert merging.greedy_soup(models, lambda m: 7).chosen == [0, 1, 2]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_soup_is_the_mean_rounded_once(dtype):
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(size=(3, 200)) * 10.0 ** rng.integers(-3, 3, (3, 200))
    models = [{"layers": {"w": jnp.asarray(draw(), dtype)}} for _ in range(7)]
    soup = merging.greedy_soup(models, lambda m: 0.0)
    assert soup.chosen == list(range(7))
    mean = np.mean([np.float64(m["layers"]["w"]) for m in models], axis=0)
    assert np.array_equal(soup.params["layers"]["w"], jnp.asarray(mean.astype(dtype)))


def test_beside_the_models_there_are_a_soup_and_a_candidate():
    shape, seen = (331, 7), []
    models = [{"w": jnp.full(shape, float(i))} for i in range(5)]

    def score(model):
        gc.collect()
        seen.append(sum(x.shape == shape for x in jax.live_arrays()) - len(models))
        return 0.0

    assert merging.greedy_soup(models, score).chosen == [0, 1, 2, 3, 4]
    assert max(seen) == 2


BAD = {
    "none": (lambda: merging.greedy_soup([], lambda m: 0), "got no models"),
    "nan": (
        lambda: merging.greedy_soup([jnp.ones(1)], lambda m: float("nan")),
        "score of models.0. is not a number",
    ),
    "alone": (
        lambda: merging.greedy_soup([jnp.ones(1)], lambda m: 0, alone=[]),
        "alone has 0 scores for 1 models",
    ),
    "structure": (
        lambda: merging.greedy_soup([{"a": jnp.ones(1)}, {"b": jnp.ones(1)}], lambda m: 0),
        "no leaf 'a'",
    ),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_calls(call, message):
    with pytest.raises(InputError, match=message):
        call()
