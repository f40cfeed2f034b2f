"""LoRA adapters in recipes, against NumPy in float64, PEFT and mergekit."""

import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from imm_jax import merge_files
from imm_jax.errors import Interrupted
from imm_jax.recipes.adapters import AdaptedReader
from imm_jax.recipes.checkpoint import open_checkpoint
from imm_jax.recipes.names import read_model
from imm_jax.recipes.types import Model
from tests.recipes import tiny_llamas
from tests.recipes.adapter_files import ALPHA, RANK, added, save_adapter
from tests.recipes.mergekit_merges import BFLOAT16, ours, theirs

TASK = """
merge_method: task_arithmetic
base_model: a
models:
  - {model: a+one, parameters: {weight: 0.7}}
  - {model: {model: a, lora: two}, parameters: {weight: -0.4}}
"""
WHOLE = "merge_method: passthrough\nmodels: [{model: a+one}]\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder in which everything is right."""
    folder = tmp_path_factory.mktemp("whole")
    described = tiny_llamas.config()
    weights = tiny_llamas.weights(described, 0)
    tiny_llamas.save(folder / "a", described, weights, np.float32)
    save_adapter(folder / "one", weights, 1)
    (folder / "recipe.yaml").write_text(WHOLE)
    return folder


@pytest.fixture
def adapted(tmp_path, monkeypatch):
    """``adapted(dtype)`` writes a model ``a`` and its adapters; returns weights and updates."""

    def write(dtype=np.float32, **settings) -> tuple[dict, dict, dict]:
        described = tiny_llamas.config()
        tiny_llamas.save(tmp_path / "a", described, tiny_llamas.weights(described, 0), dtype)
        weights = tiny_llamas.read(tmp_path / "a")
        one = save_adapter(tmp_path / "one", weights, 1, **settings)
        two = save_adapter(tmp_path / "two", weights, 2)
        monkeypatch.chdir(tmp_path)
        return weights, one, two

    return write


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_an_adapter_is_added(adapted, dtype, settings):
    weights, one, _ = adapted(dtype, **settings)
    assert len(one) == 3 * tiny_llamas.LAYERS
    assert_same(ours(WHOLE), added(weights, one, dtype))


def test_an_update_is_computed_once(adapted, monkeypatch):
    """It is most of the work; whether all is finite is known without it."""
    _, one, _ = adapted()
    rows = []
    updated = AdaptedReader._updated
    monkeypatch.setattr(
        AdaptedReader, "_updated", lambda *args: rows.append(len(args[2])) or updated(*args)
    )
    ours(WHOLE)
    assert sum(rows) == sum(len(update) for update in one.values())


def test_a_large_update_that_fits_is_merged(adapted):
    weights, _, _ = adapted()
    path = Path("one/adapter_model.safetensors")
    factors = load_file(path)
    for letter in "AB":
        factors[KEY.format(letter)].fill(5e18)
    save_file(factors, path)
    product = ALPHA * np.float64(np.float32(5e18)) ** 2  # of rank 4, divided by 4
    expected = (weights[Q_PROJ] + product).astype(np.float32)
    np.testing.assert_array_equal(ours(WHOLE)[Q_PROJ], expected)


def test_task_vectors_of_adapters_are_not_rounded_to_the_models_type(adapted):
    weights, one, two = adapted(BFLOAT16)
    tuned = [added(weights, updates) for updates in (one, two)]
    expected = {
        name: np.float64(x) + sum(
            w * (np.float64(t[name]) - np.float64(x)) for w, t in zip((0.7, -0.4), tuned)
        )
        for name, x in weights.items()
    }  # fmt: skip
    assert_same(ours(TASK), {n: x.astype(BFLOAT16) for n, x in expected.items()})


def test_alpha_by_pattern_and_tensors_saved_whole(adapted):
    described = tiny_llamas.config()
    head = tiny_llamas.weights(described, 5)["lm_head.weight"].astype(np.float32)
    pattern = {"layers.1.self_attn.q_proj": 2 * ALPHA, r"layers\.\d+\.mlp\.down_proj": ALPHA / 2}
    weights, one, _ = adapted(alpha_pattern=pattern, own={"lm_head.weight": head})
    for name in one:
        if "layers.1.self_attn.q_proj" in name:
            one[name] *= 2
        if "down_proj" in name:
            one[name] /= 2
    assert_same(ours(WHOLE), added(weights, one) | {"lm_head.weight": head})


def test_a_tensor_saved_whole_in_float32_is_rounded_to_the_models_type(adapted):
    """PEFT trains and saves it so, beside a bfloat16 model too."""
    described = tiny_llamas.config()
    name = "model.embed_tokens.weight"
    embedding = tiny_llamas.weights(described, 5)[name].astype(np.float32)
    weights, one, _ = adapted(BFLOAT16, own={name: embedding})
    expected = added(weights, one, BFLOAT16) | {name: embedding.astype(BFLOAT16)}
    assert_same(ours(WHOLE, keep=Path("out")), expected)
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parity
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_peft_gives_the_same(adapted, settings):
    peft = pytest.importorskip("peft")
    import transformers

    pattern = {"layers.1.self_attn.q_proj": 2 * ALPHA, r"layers\.\d+\.mlp\.down_proj": ALPHA / 2}
    own = tiny_llamas.weights(tiny_llamas.config(), 5)["lm_head.weight"].astype(np.float32)
    adapted(alpha_pattern=pattern, own={"lm_head.weight": own}, modules_to_save=["lm_head"],
            **settings)  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained("a", dtype="float32")
    merged = peft.PeftModel.from_pretrained(model, "one").merge_and_unload()
    expected = {n: x.numpy() for n, x in merged.state_dict().items()}
    found = ours(WHOLE)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-6 * np.abs(x).max())


@pytest.mark.parity
def test_mergekit_gives_the_same(adapted):
    pytest.importorskip("mergekit")
    adapted()
    found, expected = ours(TASK), theirs(TASK)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=2e-6 * np.abs(x).max())


@given(st.data())
def test_any_part_is_that_of_the_whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("parts")
    described = tiny_llamas.config()
    tiny_llamas.save(folder / "a", described, tiny_llamas.weights(described, 0), BFLOAT16)
    weights = tiny_llamas.read(folder / "a")
    updates = save_adapter(folder / "one", weights, 1)
    reader = open_checkpoint(Model(str(folder / "a"), None, Model(str(folder / "one")))).reader
    for name in data.draw(st.lists(st.sampled_from(sorted(weights)), min_size=1, max_size=4)):
        whole = added(weights, updates)[name].reshape(-1)
        start = data.draw(st.integers(0, whole.size))
        stop = data.draw(st.integers(start, whole.size))
        part = reader.read(name, start, stop)
        np.testing.assert_array_equal(part.astype(np.float32), whole[start:stop])
        np.testing.assert_array_equal(reader[name].reshape(-1)[start:stop], part)


def test_another_adapter_begins_anew(adapted, tmp_path):
    weights, _, two = adapted()
    (tmp_path / "recipe.yaml").write_text(WHOLE)
    asked = itertools.count()
    small = {"max_shard_bytes": 1000}
    with pytest.raises(Interrupted):
        merge_files("recipe.yaml", "out", should_stop=lambda: next(asked) == 5, **small)
    assert list(tmp_path.glob(".out*/*.safetensors"))
    os.replace(tmp_path / "two/adapter_model.safetensors", "one/adapter_model.safetensors")
    merge_files("recipe.yaml", "out", **small)
    assert_same(tiny_llamas.read(tmp_path / "out"), added(weights, two))


def test_names():
    assert read_model("a@v+o/b@w", "") == Model("a", "v", Model("o/b", "w"))
    assert str(Model("a", "v", Model("o/b", "w"))) == "a@v+o/b@w"


def spoil_weights(change):
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "one/adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "one/adapter_model.safetensors")

    return spoil


def setting(**changes):
    def spoil(folder: Path) -> None:
        path = folder / "one/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def spoil_model(change):
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "a/model.safetensors")
        change(tensors)
        save_file(tensors, folder / "a/model.safetensors")

    return spoil


Q_PROJ, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
WRONG = {
    "nowhere": (
        lambda f: (f / "recipe.yaml").write_text(WHOLE.replace("a+one", "a+none")),
        r"none: no such folder, and not a hub id \(org/name\)",
    ),
    "a revision of a folder": (
        lambda f: (f / "recipe.yaml").write_text(WHOLE.replace("a+one", "a+one@v2")),
        "one: revision 'v2' is for hub ids only",
    ),
    "no adapter": (
        lambda f: (f / "one/adapter_config.json").unlink(),
        "one: has no adapter_config",
    ),
    "a pickle": (
        lambda f: (f / "one/adapter_model.safetensors").rename(f / "one/adapter_model.bin"),
        "one: has no adapter_model.safetensors",
    ),
    "DoRA": (setting(use_dora=True), "use_dora is True, expected False"),
    "PiSSA": (setting(init_lora_weights="pissa"), "init_lora_weights is 'pissa', expected True"),
    "IA3": (setting(peft_type="IA3"), "peft_type is 'IA3', expected 'LORA'"),
    "bias": (setting(bias="all"), "bias is 'all', expected 'none'"),
    "transposed": (setting(fan_in_fan_out=True), "fan_in_fan_out is True, expected False"),
    "experts": (setting(target_parameters=["x"]), r"target_parameters is \['x'\], expected False"),
    "alpha": (setting(lora_alpha="8"), "lora_alpha is '8', expected a number"),
    "pattern": (setting(alpha_pattern={"(": 1}), r"alpha_pattern '\(' is no pattern"),
    "one factor": (
        spoil_weights(lambda t: t.pop(KEY.format("B"))),
        r"q_proj.lora_A.weight has no other factor",
    ),
    "both": (
        spoil_weights(
            lambda t: t.update({KEY.format("A").replace(".lora_A", ""): np.zeros(3, np.float32)})
        ),
        "has model.layers.0.self_attn.q_proj.weight whole and factors for it",
    ),
    "another shape": (
        spoil_weights(lambda t: t.update({KEY.format("A"): np.zeros((RANK, 5), np.float32)})),
        r"the factors of model.layers.0.self_attn.q_proj.weight are \[16, 4\] and \[4, 5\]",
    ),
    "another model's": (
        spoil_weights(lambda t: t.update({"base_model.model.lm.lora_A.weight": np.zeros(3)})),
        "lm.lora_A.weight",
    ),
    "embedding": (
        spoil_weights(
            lambda t: t.update(
                {"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros(3, np.float32)}
            )
        ),
        "embed_tokens.lora_embedding_A belongs to no tensor of",
    ),
    "NaN": (
        spoil_weights(lambda t: t[KEY.format("A")].__setitem__((0, 0), np.nan)),
        "model.safetensors with .*adapter_model.safetensors: tensor model.layers.0.self_attn",
    ),
    "infinity": (
        spoil_weights(lambda t: t[KEY.format("B")].__setitem__((-1, 0), -np.inf)),
        "model.safetensors with .*adapter_model.safetensors: tensor model.layers.0.self_attn",
    ),
    "a sum too large": (
        spoil_weights(lambda t: [t[KEY.format(x)].fill(1e19) for x in "AB"]),
        "tensor model.layers.0.self_attn.q_proj.weight has NaN or infinite values",
    ),
    "NaN in the model": (
        spoil_model(lambda t: t[Q_PROJ].__setitem__((3, 2), np.nan)),
        "model.safetensors with .*adapter_model.safetensors: tensor model.layers.0.self_attn",
    ),
    "infinity in a tensor saved whole": (
        spoil_weights(
            lambda t: t.update({f"base_model.model.{NORM}": np.full(16, np.inf, np.float32)})
        ),
        "adapter_model.safetensors: tensor model.norm.weight has NaN or infinite values",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_adapter_is_one_line(place, refused, name):
    spoil, says = WRONG[name]
    spoil(place)
    message = refused(("merge", "recipe.yaml", "out"))
    assert re.search(says, message), message


def test_a_tokenizer_has_no_adapter(place, refused):
    (place / "recipe.yaml").write_text(f"{WHOLE}tokenizer_source: a+one\n")
    assert "expected a model without an adapter" in refused(("merge", "recipe.yaml", "out"))
