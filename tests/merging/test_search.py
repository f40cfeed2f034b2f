"""search: known optima, bounds, both modes, one compilation, scores that are no numbers."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.errors import InputError
from imm_jax.merging import Interval, LayerWeights, merge_objective, search

L = 4
BEST = {"layers": np.array([0.9, 0.15, 0.55, 0.3]), "default": 0.7}


def model(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        "embed": {"embedding": draw(7, 3)},
        "layers": {"q": {"kernel": draw(L, 3, 5)}, "norm": {"scale": draw(L, 3)}},
        "final_norm": {"scale": draw(3)},
    }


BASE, TUNED = model(0), model(1)


def target():
    """What BEST merges to, by hand in float64."""

    def merge(path, base, tuned):
        weight = BEST["default"]
        if path[0].key == "layers":
            weight = BEST["layers"].reshape(L, *[1] * (base.ndim - 1))
        return base + weight * (tuned.astype(np.float64) - base)

    return jax.tree_util.tree_map_with_path(merge, BASE, TUNED)


@jax.jit
def closeness(target, params):
    apart = jax.tree.map(lambda x, y: jnp.sum(jnp.square(x - y)), params, target)
    return -sum(jax.tree.leaves(apart))


SCORE = jax.tree_util.Partial(closeness, jax.tree.map(np.float32, target()))
OBJECTIVE = merge_objective(SCORE, BASE, TUNED)
SPACE = LayerWeights(Interval(0, 1, shape=(L,)), default=Interval(0, 1))


def parabola(x):
    return -((x - 0.3) ** 2)


def test_finds_the_weights_of_each_layer_that_a_model_was_merged_with():
    found = search(OBJECTIVE, SPACE, budget=800, batched=True)
    np.testing.assert_allclose(found.weights.layers, BEST["layers"], atol=1e-3)
    np.testing.assert_allclose(found.weights.default, BEST["default"], atol=1e-3)
    assert isinstance(found.weights, LayerWeights) and found.weights.layers.dtype == jnp.float32
    assert found.score == found.scores.max() and -1e-3 < found.score <= 0
    merged = merging.merge_params(BASE, TUNED, weight=found.weights)
    np.testing.assert_allclose(SCORE(merged), found.score, rtol=1e-3, atol=1e-7)
    # an interpolation of the whole model is far from it
    assert found.score > 100 * SCORE(merging.merge_params(BASE, TUNED, weight=0.5))


def test_both_modes_score_the_same_candidates_alike():
    space = LayerWeights([Interval(0, 1)] * 3, default=0.5)
    one, all_at_once = (
        search(OBJECTIVE, space, budget=40, population=8, seed=3, batched=mode)
        for mode in (False, True)
    )
    np.testing.assert_array_equal(one.candidates, all_at_once.candidates)
    np.testing.assert_allclose(one.scores, all_at_once.scores, rtol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, one.weights, all_at_once.weights))
    assert one.weights.default == 0.5 and one.candidates.shape == (40, 3)


def test_a_batched_search_compiles_one_program():
    compiled, traced = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )

    def score(params):
        traced.append(None)
        return jnp.sum(params["layers"]["norm"]["scale"])

    objective = merge_objective(score, BASE, TUNED, transform=merging.scale(0.5))
    found = search(objective, SPACE, budget=60, population=10, batched=True)
    assert len(found.scores) == 60 and len(compiled) == len(traced) == 1


def test_arrays_that_an_objective_holds_are_arguments_of_the_program():
    held = []

    def score(own, params):
        held.append(isinstance(own, jax.core.Tracer))
        return jnp.sum(own) + jnp.sum(params["final_norm"]["scale"])

    objective = merge_objective(jax.tree_util.Partial(score, np.ones(2)), BASE, TUNED)
    search(objective, SPACE, budget=8, batched=True)
    assert held == [True]


def test_an_objective_is_the_score_of_the_merge():
    options = {"transform": merging.drop_and_rescale(0.5), "key": jax.random.key(5)}
    objective = merge_objective(SCORE, BASE, [TUNED, BASE], **options)
    merged = merging.merge_params(BASE, [TUNED, BASE], weight=[0.25, 1.0], **options)
    assert objective([0.25, 1.0]) == SCORE(merged)
    found = search(objective, [Interval(0, 1), 1.0], budget=8, population=4, batched=True)
    weight = [jnp.float32(found.candidates[0, 0]), 1.0]
    merged = merging.merge_params(BASE, [TUNED, BASE], weight=weight, **options)
    np.testing.assert_allclose(found.scores[0], SCORE(merged), rtol=1e-5)


@pytest.mark.parametrize("initial", [None, {"x": 0.3, "y": np.full(2, 0.1)}])
def test_bounds_hold_even_after_rounding_to_float32(initial):
    seen = []

    def objective(w):
        assert w["x"].dtype == w["y"].dtype == jnp.float32
        seen.append([float(w["x"]), *map(float, w["y"])])
        return w["x"] + w["y"][0] - w["y"][1]

    space = {"x": Interval(0.1, 0.3), "y": Interval(-0.7, 0.1, shape=(2,))}
    assert float(np.float32(0.3)) > 0.3 and float(np.float32(0.1)) > 0.1
    found = search(objective, space, budget=240, seed=1, initial=initial)
    seen = np.array(seen)
    assert np.all((seen >= [0.1, -0.7, -0.7]) & (seen <= [0.3, 0.1, 0.1]))
    inner = [*(np.nextafter(np.float32(x), np.float32(0)) for x in (0.3, 0.1)), np.float32(-0.7)]
    np.testing.assert_array_equal([found.weights["x"], *found.weights["y"]], inner)


def test_a_space_without_bounds_is_left_in_neither_scale_nor_place():
    aim = np.array([250.0, -4.0])
    space = [Interval(spread=100.0), Interval(high=0.0, spread=1.0)]
    objective = lambda w: -((w[0] - aim[0]) ** 2) / 1e4 - (w[1] - aim[1]) ** 2
    found = search(objective, space, budget=400, initial=[-300, 0.0])
    np.testing.assert_allclose(found.weights, aim, rtol=1e-2)


def test_seeds():
    runs = [search(parabola, Interval(), budget=24, seed=seed) for seed in (7, 7, 8)]
    np.testing.assert_array_equal(runs[0].candidates, runs[1].candidates)
    assert runs[0].weights == runs[1].weights
    assert not np.any(runs[0].candidates == runs[2].candidates)


def test_the_budget_counts_evaluations_and_ends_early_where_nothing_differs():
    assert len(search(parabola, Interval(), budget=23, population=5).scores) == 20
    assert len(search(parabola, Interval(), budget=5, population=5).scores) == 5
    flat = search(lambda x: 1.0, Interval(0, 1), budget=4000)
    assert len(flat.scores) < 400 and flat.score == 1.0


def test_scores_that_are_not_finite_are_the_worst():
    bad = {0: np.nan, 1: np.inf, 2: -np.inf}
    objective = lambda x: parabola(x) if x < 0.5 else bad[int(x * 1000) % 3]
    found = search(objective, Interval(0, 1, spread=0.5), budget=120, population=8, seed=2)
    over = found.candidates[:, 0] >= 0.5
    assert over.sum() > 5 and np.all(found.scores[over] == -np.inf)
    assert np.all(np.isfinite(found.scores[~over])) and abs(found.weights - 0.3) < 1e-2
    mostly = lambda x: parabola(x) if x < 0.45 else np.nan
    with np.errstate(invalid="raise"):
        found = search(mostly, Interval(0, 1, spread=0.1), budget=120, population=6)
    assert abs(found.weights - 0.3) < 1e-2 and np.sum(found.scores[:6] == -np.inf) >= 3
    with pytest.raises(InputError, match="none of the first 4 scores is finite"):
        search(lambda x: jnp.nan * x, Interval(0, 1), budget=400)


@pytest.mark.parametrize("score", ["high", None, np.zeros(3), [[1.0]], [1, [2]]], ids=str)
def test_a_score_is_a_number(score):
    with pytest.raises(InputError, match=r"objective gave .*expected a number") as error:
        search(lambda x: score, Interval(), budget=9)
    assert "\n" not in str(error.value)


def test_a_batched_score_is_a_number():
    with pytest.raises(InputError, match=r"objective gave .*expected a number"):
        search(lambda x: jnp.zeros((2, 9)) + x, Interval(), budget=9, batched=True)


UNIT = Interval(0, 1)
BAD = {
    "population": ({"population": 3}, "population is 3, expected a whole number from 4"),
    "half": ({"population": 4.5}, "population is 4.5"),
    "budget": ({"budget": 7, "population": 8}, r"budget is 7, .* from 8 \(a generation\)"),
    "true budget": ({"budget": True}, "budget is True"),
    "seed": ({"seed": -1}, "seed is -1, expected a whole number from 0 to 4294967295"),
    "no interval": ({"space": {"a": 0.5}}, "space has no Interval"),
    "empty": ({"space": Interval(shape=(0,))}, "space has no Interval"),
    "order": ({"space": {"a": Interval(1, 0)}}, "space a is from 1 to 0, expected low below high"),
    "nan": ({"space": Interval(0, np.nan)}, "space is from 0 to nan"),
    "gap": ({"space": Interval(0.1, 0.1 + 1e-12)}, "no float32 number is from 0.1 to"),
    "far": ({"space": Interval(1e300, 2e300)}, "no float32 number"),
    "shape": ({"space": [Interval(shape=3)]}, "space 0 has shape 3, expected a tuple"),
    "spread": ({"space": Interval(spread=0)}, "spread 0, expected a number above 0"),
    "text": ({"space": {"a": "0.5", "b": UNIT}}, "space a is '0.5', expected an Interval or"),
    "initial shape": ({"initial": [0.5]}, "expected the structure of space"),
    "initial bound": ({"initial": 1.5}, "initial.* is 1.5, expected from 0 to 1"),
    "initial nan": ({"initial": np.nan}, "is nan, expected from 0 to 1"),
    "initial size": ({"initial": np.zeros(2)}, r"expected shape \(\)"),
    "objective": ({"objective": 0.5}, "objective is 0.5, expected a function"),
    "about": ({"path": "new.jsonl", "about": {1j}}, "about: .*expected plain data"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_before_anything_is_scored(change, message, tmp_path):
    def objective(w):
        raise AssertionError("scored")

    if "path" in change:
        change = change | {"path": tmp_path / change["path"]}
    with pytest.raises(InputError, match=message) as error:
        search(**{"objective": objective, "space": UNIT, "budget": 20} | change)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_without_cmaes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(InputError, match=r"search needs cmaes: pip install 'imm-jax\[search\]'"):
        search(parabola, Interval(), budget=20)
