"""Methods that draw random numbers, against mergekit: other elements are dropped, so what can be
compared is the share that is kept, the values of what is kept, and means over seeds.
"""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from tests.recipes import tiny_llamas
from tests.recipes.mergekit_merges import BASE, ours, theirs

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity
SEEDS = 12
DENSITY = 0.6
METHODS = ("dare_linear", "dare_ties", "della", "della_linear")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The current directory: a is 0, so that a merge is its task vectors; b and c are not."""
    folder = tmp_path_factory.mktemp("models")
    described = tiny_llamas.config(num_hidden_layers=1)
    for model, seed, size in (("a", 0, 0.0), ("b", 1, 1.0), ("c", 2, 0.5)):
        values = tiny_llamas.weights(described, seed)
        scaled = {name: size * x for name, x in values.items()}
        tiny_llamas.save(folder / model, described, scaled, np.float32)
    with contextlib.chdir(folder):
        yield folder


def flat(tensors: dict) -> np.ndarray:
    return np.concatenate([tensors[name].reshape(-1) for name in sorted(tensors)])


def model(name: str) -> np.ndarray:
    return flat(tiny_llamas.read(Path(name))).astype(np.float64)


def text(method: str, models: str, weight: float = 0.5, rescale: bool = True) -> str:
    return (
        f"merge_method: {method}\n{BASE}models: [{models}]\nparameters: {{density: {DENSITY}, "
        f"weight: {weight}, rescale: {str(rescale).lower()}, normalize: false}}\n"
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_without_rescaling(method):
    """Elements are 0 or exactly weight * delta, in both."""
    recipe, expected = text(method, "{model: b}", rescale=False), 0.5 * model("b")
    shares = []
    for merged in (flat(ours(recipe, seed=3)), flat(theirs(recipe, seed=3))):
        kept = merged != 0
        np.testing.assert_array_equal(merged[kept], expected[kept].astype(np.float32))
        shares.append(kept.mean())
    # Five standard deviations of a share of independent draws.
    np.testing.assert_allclose(shares, DENSITY, atol=5 * (0.24 / expected.size) ** 0.5)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dares_factor(method):
    """Ours is the density's inverse; mergekit's keeps each tensor's sum of magnitudes."""
    recipe = text(method, "{model: b}")
    found, expected = ours(recipe), theirs(recipe, seed=3)
    deltas = tiny_llamas.read(Path("b"))
    for name, delta in deltas.items():
        kept = found[name] != 0
        np.testing.assert_allclose(found[name][kept], 0.5 * delta[kept] / DENSITY, rtol=1e-6)
        kept = expected[name] != 0
        factor = np.abs(delta).sum(dtype=np.float64) / np.abs(delta[kept]).sum(dtype=np.float64)
        np.testing.assert_allclose(expected[name][kept], 0.5 * delta[kept] * factor, rtol=1e-5)
        assert abs(factor * DENSITY - 1) > 1e-4


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_dellas_chances(method):
    """In both, the chance of a row's element goes from 0.45 for the smallest to 0.75."""
    recipe = text(method, "{model: b}", rescale=False)
    delta = tiny_llamas.read(Path("b"))["model.embed_tokens.weight"]
    ranks = np.argsort(np.argsort(np.abs(delta), axis=1), axis=1)
    width = delta.shape[1]
    for run in (ours, theirs):
        kept = np.zeros(width)
        for seed in range(SEEDS):
            found = run(recipe, seed=seed)["model.embed_tokens.weight"]
            np.add.at(kept, ranks, found != 0)
        draws = SEEDS * delta.shape[0]
        chances = DENSITY - 0.15 + 0.3 * np.arange(width) / (width - 1)
        np.testing.assert_allclose(kept / draws, chances, atol=5 * (0.25 / draws) ** 0.5)


def test_dellas_factor():
    """Ours is the inverse of each element's own chance (arXiv 2406.11617, section 3.1)."""
    recipe = text("della_linear", "{model: b}")
    name = "model.embed_tokens.weight"
    delta = tiny_llamas.read(Path("b"))[name]
    ranks = np.argsort(np.argsort(np.abs(delta), axis=1), axis=1)
    chances = DENSITY - 0.15 + 0.3 * ranks / (delta.shape[1] - 1)
    found, expected = ours(recipe)[name], theirs(recipe, seed=3)[name]
    kept = found != 0
    np.testing.assert_allclose(found[kept], (0.5 * delta / chances)[kept], rtol=1e-5)
    kept = expected != 0
    factors = expected[kept] / (0.5 * delta[kept])
    assert np.ptp(factors) < 1e-5 and 1 / 0.75 < factors[0] < 1 / 0.45


@pytest.mark.parametrize("method", METHODS)
def test_means_over_seeds(method):
    """Ours is right on average: without an election, it is the weighted sum of the task vectors.

    mergekit's factors hold for whole tensors. So DARE is off by their noise, and DELLA, where large
    elements are kept more often and raised as much as small ones, by a bias of 3.6 % here.
    """
    recipe = text(method, "{model: b}, {model: c}")
    means, noise = [], []
    for run in (ours, theirs):
        runs = np.stack([flat(run(recipe, seed=seed)) for seed in range(SEEDS)]).astype(float)
        means.append(runs.mean(axis=0))
        noise.append(np.mean(runs.var(axis=0)) / SEEDS)
    total = 0.5 * (model("b") + model("c"))
    scale = np.mean(total**2)
    slopes = [np.mean(mean * total) / scale for mean in means]
    bound = 5 * (max(noise) / scale / total.size) ** 0.5
    assert abs(slopes[0] - slopes[1]) < bound + (0.05 if method.startswith("della") else 0.02)
    if method.endswith("linear"):
        assert abs(slopes[0] - 1) < bound


def test_seeds():
    """Without a seed mergekit drops other elements each time; ours has one from the start."""
    recipe = text("dare_linear", "{model: b}")
    assert not np.array_equal(flat(theirs(recipe)), flat(theirs(recipe)))
    np.testing.assert_array_equal(flat(theirs(recipe, seed=1)), flat(theirs(recipe, seed=1)))
    np.testing.assert_array_equal(flat(ours(recipe)), flat(ours(recipe)))
    assert not np.array_equal(flat(ours(recipe, seed=1)), flat(ours(recipe)))
