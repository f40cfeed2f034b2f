"""Where merges differ from mergekit 0.1.5's on purpose; both sides are asserted."""

import contextlib
import re
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from imm_jax.errors import InputError
from tests.merging.merge_oracles import fusion_scores
from tests.recipes import tiny_llamas
from tests.recipes.mergekit_merges import BASE, BFLOAT16, ours, theirs

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity

# The test of each row is test_<name>; those of DARE and DELLA are in test_mergekit_random.py.
DIFFERENCES = {
    "sce_of_small_changes": "mergekit weighs all models alike where their mean squares sum to less "
    "than 1e-6, as those of most fine-tuned models do; the paper's formula has no such case",
    "sce_in_float16": "squares above 65504 are infinite in mergekit, and the result is NaN",
    "two_roundings": "mergekit computes in the models' type, or in dtype: it rounds task vectors, "
    "weights and sums to bfloat16; we compute in float32 and round once",
    "dtype_comes_first": "dtype: bfloat16 rounds float32 models before mergekit merges them",
    "float32_out_of_bfloat16": "arcee_fusion and ramplus_tl write float32 for bfloat16 models",
    "arcee_fusion_of_small_changes": "mergekit's divergence is the difference of numbers near 1: "
    "where changes are small it is rounding noise, and so is what is taken over",
    "weights_that_sum_to_0": "linear divides by 0 and writes infinite values; we refuse",
    "rows_of_one_element": "della stops: rank / (n - 1) is 0 / 0; we keep them by the density",
    "model_stock_of_opposite_changes": "the formula holds for angles up to 90 degrees; mergekit "
    "extrapolates away from the models without bound, we stay with the base",
    "model_stock_of_small_changes": "mergekit divides by at least 1e-6, so that small task vectors "
    "count as orthogonal",
    "multislerp_of_unchanged_tensors": "mergekit stops where three models or more left a tensor "
    "as it is",
    "changes_that_tie": "mergekit keeps exactly k elements, in bfloat16 an arbitrary part of those "
    "that tie with the k-th; we keep them all",
}  # fmt: skip


# What mergekit merges and is refused here: a line of a recipe, what mergekit does, our message.
REFUSED = {
    "unknown keys": (
        "dtpye: bfloat16",
        "passes over them in silence, as over parameters that no method has",
        "unknown key dtpye (did you mean 'dtype'?)",
    ),
    "chat templates by name": (
        "chat_template: chatml",
        "has the texts of five",
        "mergekit's own template 'chatml' is not included",
    ),
    "float64": ("dtype: float64", "writes it", "dtype: 'float64', expected bfloat16"),
    "densities above 1": (
        "parameters: {density: 1.5}",
        "takes them for 1",
        "parameters.density: 1.5, expected at least 0 and at most 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, save, tmp_path):
    line, _, message = REFUSED[name]
    save(b=noise(0.01))
    recipe = f"merge_method: ties\n{BASE}models: [{{model: b, parameters: {{weight: 1}}}}]\n{line}"
    with contextlib.suppress(KeyError):  # float64, which our reader does not have
        theirs(recipe, keep=tmp_path / "theirs")
    assert list((tmp_path / "theirs").glob("*.safetensors"))
    with pytest.raises(InputError, match=re.escape(message)):
        ours(recipe)


def test_every_difference_has_a_test():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert tests >= DIFFERENCES.keys()


Tensors = dict[str, np.ndarray]
Change = Callable[[np.ndarray, np.random.RandomState], np.ndarray]


@pytest.fixture
def save(tmp_path):
    """``save(dtype, b=change, c=change, ...)``: model a, and others made of its tensors.

    The models lie in the current directory; returns them as they are stored, in float64.
    """

    def build(dtype=np.float32, described: Mapping | None = None, **changes: Change) -> dict:
        described = described or tiny_llamas.config(num_hidden_layers=1)
        base = tiny_llamas.weights(described)
        found = {"a": base}
        for i, (model, change) in enumerate(changes.items()):
            random = np.random.RandomState(i + 1)
            found[model] = {name: change(x, random) for name, x in base.items()}
        for model, values in found.items():
            tiny_llamas.save(tmp_path / model, described, values, dtype)
            stored = tiny_llamas.read(tmp_path / model)
            found[model] = {name: x.astype(np.float64) for name, x in stored.items()}
        return found

    with contextlib.chdir(tmp_path):
        yield build


def flat(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[n].reshape(-1) for n in sorted(tensors)]).astype(np.float64)


def text(method: str, models: str = "bc", settings: str = "{}") -> str:
    listed = ", ".join(f"{{model: {model}}}" for model in models)
    base = "" if method == "linear" else BASE
    return f"merge_method: {method}\n{base}models: [{listed}]\nparameters: {settings}\n"


def noise(size: float) -> Change:
    return lambda x, random: x + size * random.standard_normal(x.shape)


def test_sce_of_small_changes(save):
    """c changed a third as much as b: their energies are 9 to 1, so their weights 0.9 and 0.1."""
    step = lambda x: np.random.RandomState(7).choice([-9e-4, 9e-4], x.shape)
    models = save(b=lambda x, _: x + step(x), c=lambda x, _: x + step(x) / 3)
    base, delta = flat(models["a"]), flat(models["b"]) - flat(models["a"])
    for merged, weight in ((ours(text("sce")), 0.9), (theirs(text("sce")), 0.5)):
        share = np.mean((flat(merged) - base) * delta) / np.mean(delta**2)
        assert (share - 1 / 3) / (2 / 3) == pytest.approx(weight, abs=1e-3)


def test_sce_in_float16(save):
    models = save(np.float16, b=noise(300), c=noise(100))
    found, expected = ours(text("sce")), theirs(text("sce"))
    assert np.isnan(flat(expected)).mean() > 0.9
    deltas = [{n: m[n] - models["a"][n] for n in m} for m in (models["b"], models["c"])]
    for name, base in models["a"].items():
        weights = np.array([np.sum(d[name] ** 2) for d in deltas])
        d = np.stack([d[name] for d in deltas])
        agree = np.sign(d) == np.where(d.sum(axis=0) >= 0, 1, -1)
        w = weights.reshape(2, *[1] * base.ndim) * agree
        exact = base + (w * d).sum(axis=0) / np.maximum(w.sum(axis=0), 1e-30)
        np.testing.assert_allclose(found[name], exact, rtol=1e-3, atol=1e-3)


def not_nearest(merged: Mapping[str, np.ndarray], exact: np.ndarray) -> float:
    """The share of elements that are not the bfloat16 number nearest to the exact result."""
    return float(np.mean(flat(merged) != exact.astype(np.float32).astype(BFLOAT16)))


def test_two_roundings(save):
    models = save(BFLOAT16, b=noise(0.01), c=noise(0.02))
    base, b, c = (flat(models[m]) for m in "abc")
    recipe = text("task_arithmetic", settings="{weight: 0.3}")
    exact = base + 0.3 * (b - base) + 0.3 * (c - base)
    assert not_nearest(ours(recipe), exact) == 0
    assert not_nearest(theirs(recipe), exact) > 0.05


def test_dtype_comes_first(save):
    models = save(b=noise(0.01))
    base, b = flat(models["a"]), flat(models["b"])
    recipe = text("task_arithmetic", "b", "{weight: 0.3}") + "dtype: bfloat16\n"
    exact = base + 0.3 * (b - base)
    assert not_nearest(ours(recipe), exact) == 0
    assert not_nearest(theirs(recipe), exact) > 0.05


def test_float32_out_of_bfloat16(save):
    save(BFLOAT16, b=noise(0.01), c=noise(0.02))
    for recipe in (text("arcee_fusion", "b"), text("ramplus_tl")):
        assert {x.dtype for x in ours(recipe).values()} == {BFLOAT16}
        assert {x.dtype for x in theirs(recipe).values()} == {np.dtype(np.float32)}


def test_arcee_fusion_of_small_changes(save):
    """Which elements are b's, against float64, where b changed by 1e-4 and each row otherwise."""

    def change(x, random):
        rows = np.exp(random.standard_normal((*x.shape[:-1], 1)))
        return 0.1 * x + 1e-4 * rows * random.standard_normal(x.shape)

    models = save(b=change, a=lambda x, _: 0.1 * x)
    found, expected = ours(text("arcee_fusion", "b")), theirs(text("arcee_fusion", "b"))
    wrong = wrong_theirs = total = 0
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        base, tuned = models["a"][name], models["b"][name]
        score, threshold = fusion_scores(base, tuned, -1)
        keep = score >= threshold
        assert 0.05 < keep.mean() < 0.3
        wrong += np.sum((found[name] == tuned) != keep)
        wrong_theirs += np.sum((np.abs(expected[name] - tuned) < 1e-8) != keep)
        total += keep.size
    assert wrong == 0
    assert wrong_theirs > 0.05 * total


def test_weights_that_sum_to_0(save):
    save(b=noise(0.01), c=noise(0.02))
    recipe = "merge_method: linear\nmodels: [{model: b, parameters: {weight: 1}}, "
    recipe += "{model: c, parameters: {weight: -1}}]\n"
    assert np.isinf(flat(theirs(recipe))).mean() > 0.9
    with pytest.raises(InputError, match=r"weight: \[1\.0, -1\.0\] sum to 0"):
        ours(recipe)


def test_rows_of_one_element(save):
    narrow = tiny_llamas.config(num_hidden_layers=1, intermediate_size=1)
    models = save(np.float32, narrow, b=noise(0.5))
    recipe = text("della_linear", "b", "{weight: 1, density: 0.6, rescale: false}")
    with pytest.raises(RuntimeError, match="p_in >= 0"):
        theirs(recipe, seed=1)
    name = "model.layers.0.mlp.down_proj.weight"
    base, tuned = models["a"][name], models["b"][name]
    kept = sum(ours(recipe, seed=seed)[name] == tuned for seed in range(20))
    np.testing.assert_allclose(kept.mean() / 20, 0.6, atol=5 * (0.24 / 20 / base.size) ** 0.5)


def test_model_stock_of_opposite_changes(save):
    shared = lambda x: np.random.RandomState(7).standard_normal(x.shape)
    models = save(
        b=lambda x, r: x + 0.1 * shared(x) + 0.02 * r.standard_normal(x.shape),
        c=lambda x, r: x - 0.08 * shared(x) + 0.02 * r.standard_normal(x.shape),
    )
    recipe = text("model_stock")
    found, expected = ours(recipe), theirs(recipe)
    grown = [flat(m) - flat(models["a"]) for m in (expected, models["b"])]
    assert np.linalg.norm(grown[0]) > 2 * np.linalg.norm(grown[1])
    np.testing.assert_array_equal(flat(found), flat(models["a"]))


def test_model_stock_of_small_changes(save):
    """Both models changed alike, so that the angle is 0 and the result their mean."""
    change = lambda x, _: x + 1e-4 * np.random.RandomState(7).standard_normal(x.shape)
    models = save(b=change, c=change)
    found, expected = ours(text("model_stock")), theirs(text("model_stock"))
    name = "model.norm.weight"
    base, tuned = models["a"][name], models["b"][name]
    np.testing.assert_allclose(found[name], tuned, rtol=2e-7)
    moved = np.linalg.norm(expected[name] - base) / np.linalg.norm(tuned - base)
    assert moved < 0.5


def test_multislerp_of_unchanged_tensors(save):
    same = lambda x, _: x
    models = save(b=same, c=same, d=same)
    recipe = text("multislerp", "bcd", "{weight: 1}")
    with pytest.raises(ValueError, match="weighted sum of the input tensors is zero"):
        theirs(recipe)
    np.testing.assert_array_equal(flat(ours(recipe)), flat(models["a"]))


def test_changes_that_tie(save):
    """Half of the elements changed by the same amount; a quarter is to be kept."""
    models = save(b=lambda x, r: x + 0.5 * (r.random_sample(x.shape) < 0.5))
    recipe = text("ties", "b", "{weight: 1, density: 0.25}")
    changed = flat(models["b"]) != flat(models["a"])
    sizes = [np.mean(flat(m) != flat(models["a"])) for m in (ours(recipe), theirs(recipe))]
    assert changed.mean() > 0.45
    assert sizes[1] == pytest.approx(0.25, abs=0.01)
    assert sizes[0] > sizes[1]
