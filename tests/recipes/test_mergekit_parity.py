"""Merges of files equal mergekit's, for every method that both have. Differences on purpose: see
test_mergekit_differences.py; methods that draw random numbers: test_mergekit_random.py.
"""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from tests.merging.merge_oracles import fusion_scores
from tests.recipes import tiny_llamas
from tests.recipes.mergekit_merges import (
    BASE,
    BFLOAT16,
    CUTS,
    RECIPES,
    models,
    ours,
    recipe,
    save_models,
    theirs,
)
from tests.recipes.mergekit_vocabularies import FOLDERS, save_folders

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity
MANTISSA = 7  # bits of bfloat16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of models for each type."""
    found = {}
    for dtype in (np.dtype(np.float32), BFLOAT16):
        found[dtype] = tmp_path_factory.mktemp(dtype.name)
        save_models(found[dtype], tiny_llamas.config(), dtype)
    return found


@pytest.fixture
def float32_models(folders):
    """The current directory holds float32 models."""
    with contextlib.chdir(folders[np.dtype(np.float32)]):
        yield


@pytest.fixture
def bfloat16_models(folders):
    """The current directory holds bfloat16 models."""
    with contextlib.chdir(folders[BFLOAT16]):
        yield


def assert_equal(found: dict, expected: dict, error: float = 1e-6) -> None:
    """The same tensors, up to ``error`` of each tensor's largest element."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype, name
        np.testing.assert_allclose(
            found[name], x, rtol=0, atol=error * np.abs(x).max(), err_msg=name
        )


@pytest.mark.parametrize("name", RECIPES)
def test_float32(name, float32_models):
    assert_equal(ours(recipe(name)), theirs(recipe(name)))


# An element more or less that is selected changes what all others are weighed or scaled by.
@pytest.mark.parametrize(
    "name", [name for name in RECIPES if not name.endswith(("selected", "rescaled"))]
)
def test_bfloat16(name, bfloat16_models):
    """Ours is what mergekit makes of the same models in float32, rounded once.

    And no further from it than what mergekit makes of them in their own type.
    """
    exact = theirs(recipe(name) + "dtype: float32\n")
    found, native = ours(recipe(name)), theirs(recipe(name))
    inputs = {model: tiny_llamas.read(Path(model)) for model in "abcd"}
    errors, native_errors = [], []
    for tensor, x in exact.items():
        assert found[tensor].dtype == BFLOAT16
        use = ~equally_large(name, {m: t[tensor] for m, t in inputs.items()})
        x = x[use].astype(np.float64)
        step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(x), 1e-30))) - MANTISSA)
        error = np.abs(found[tensor][use].astype(np.float64) - x)
        assert (error <= 0.5 * step + 1e-6 * np.abs(x).max(initial=0)).all(), tensor
        errors.append(error)
        native_errors.append(np.abs(native[tensor][use].astype(np.float64) - x))
    errors, native_errors = np.concatenate(errors), np.concatenate(native_errors)
    assert errors.size > 0.7 * sum(x.size for x in exact.values())
    if native[tensor].dtype == BFLOAT16:  # arcee_fusion and ramplus_tl give float32 there
        assert np.mean(errors**2) <= 1.001 * np.mean(native_errors**2)


def equally_large(name: str, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Elements that tie with the last one that is kept: mergekit drops some of them, ours none.

    Of arcee_fusion, those at the threshold up to float32's rounding.
    """
    base = tensors["a"].astype(np.float64)
    tied = np.zeros(base.shape, bool)
    if name == "arcee_fusion":
        score, threshold = fusion_scores(base, tensors["b"].astype(np.float64), -1)
        return np.abs(score - threshold) < 1e-5 * threshold
    if not name.startswith(CUTS):
        return tied
    kept = int(0.6 * base.size)
    above = int(0.01 * base.size) if name.startswith("breadcrumbs") else 0
    for model in "bcd":
        size = np.abs(tensors[model].astype(np.float64) - base)
        falling = np.sort(size, axis=None)[::-1]
        for place in (above, above + kept):
            if place and falling[place - 1] == falling[place]:
                tied |= size == falling[place]
    return tied


SLICED = {
    "frankenmerge": """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3]}]
  - sources:
      - model: c
        layer_range: [0, 3]
        parameters: {scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: 0.5}]}
""",
    "slerp with gradients": """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 3]}, {model: far, layer_range: [0, 3]}]
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.5}
""",
    "slices with their own base": """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]
    parameters: {t: [0.2, 0.9]}
  - sources: [{model: c, layer_range: [0, 1]}, {model: d, layer_range: [2, 3]}]
    base_model: d
parameters: {t: 0.4}
""",
    "ties with gradients": """
merge_method: ties
base_model: a
models:
  - {model: a}
  - {model: b, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
  - model: c
    parameters:
      density: 0.33
      weight: [{filter: mlp, value: 0.5}, {value: 0}]
parameters: {normalize: true, int8_mask: true}
""",
    "linear of slices": """
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: [0.2, 0.8]}}
      - {model: far, layer_range: [1, 3], parameters: {weight: 0.6}}
""",
    "one module": """
merge_method: task_arithmetic
base_model: a
modules: {default: {models: [{model: b, parameters: {weight: [0, 1]}}]}}
""",
}  # fmt: skip


@pytest.mark.parametrize("name", SLICED)
def test_slices_gradients_and_filters(name, float32_models):
    assert_equal(ours(SLICED[name]), theirs(SLICED[name]))


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "slerp"])
def test_tied_embeddings(name, with_head, tmp_path):
    """The merged model is tied as well, whether or not the files hold a copy as the head.

    mergekit writes the copy's merge; ours leaves the head out, which is loaded as the embedding.
    """
    described = tiny_llamas.config(tie_word_embeddings=True)
    for model, values in models(described).items():
        head = {"lm_head.weight": values["model.embed_tokens.weight"]} if with_head else {}
        tiny_llamas.save(tmp_path / model, described, values | head, np.float32)
    with contextlib.chdir(tmp_path):
        found, expected = ours(recipe(name)), theirs(recipe(name))
    head = expected.pop("lm_head.weight", None)
    assert (head is not None) <= with_head
    assert_equal(found, expected)
    if head is not None:
        np.testing.assert_array_equal(head, expected["model.embed_tokens.weight"])


@pytest.mark.parametrize("settings", [
    "tokenizer_source: base",
    "tokenizer_source: union",
    "tokenizer_source: b",
    "tokenizer: {source: union, pad_to_multiple_of: 8}",
    "tokenizer: {source: union, tokens: {w: {source: b, force: true}, v: {source: {kind: zero}}}}",
])  # fmt: skip
@pytest.mark.parametrize("text", [
    f"merge_method: task_arithmetic\n{BASE}models: [{{model: b}}, {{model: c}}]\n"
    "parameters: {weight: 0.4}\n",
    "merge_method: linear\nbase_model: a\nmodels: [{model: b}, {model: c}]\n"
    "parameters: {weight: 1}\n",
], ids=["task_arithmetic", "linear"])  # fmt: skip
def test_vocabularies(settings, text, tmp_path):
    """Tokenizers differ. Rows are compared by their tokens, which mergekit orders at random."""
    from imm_jax.models.tokenizer import load_tokenizer

    save_folders(tmp_path)
    for i, model in enumerate("abc"):
        described = tiny_llamas.config(vocab_size=FOLDERS[model][-1])
        values = tiny_llamas.weights(described, i)
        tiny_llamas.save(tmp_path / model, described, values, np.float32)
    with contextlib.chdir(tmp_path):
        found = ours(text + settings, keep=tmp_path / "ours")
        expected = theirs(text + settings, keep=tmp_path / "theirs")
    ids, their_ids = (load_tokenizer(tmp_path / w).get_vocab() for w in ("ours", "theirs"))
    assert ids.keys() == their_ids.keys()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        one, two = found.pop(name), expected.pop(name)
        assert one.shape == two.shape
        rows, their_rows = ([which[token] for token in ids] for which in (ids, their_ids))
        np.testing.assert_allclose(one[rows], two[their_rows], rtol=0, atol=1e-6)
        padding = one.shape[0] - len(ids)
        np.testing.assert_allclose(one[len(ids) :], two[len(ids) :], rtol=0, atol=1e-6)
        assert padding == ("pad" in settings) * (-len(ids) % 8)
    assert_equal(found, expected)
