"""``imm-jax merge BASE TUNED`` and ``imm-jax convert``: what they write, against the formula."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.load import load_model
from imm_jax.models.tokenizer import load_tokenizer
from tests.answering import ANSWER, params_of, save_answering, save_gguf, snapshot

PLAIN = ("--style", "plain", "--temperature", "0", "--max-new-tokens", "16")


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("model") / "model"
    return save_answering(folder, tiny_config, random_params, tiny_tokenizer)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working folder of its own; the command leaves the cache of compiled programs alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set")


# merge


@pytest.fixture(scope="module")
def pair(model, tmp_path_factory):
    """The base and a model tuned from it, in bfloat16."""
    folder = tmp_path_factory.mktemp("pair")
    decoder, params = load_model(model, dtype="bfloat16")
    rng = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda x: (x + 0.05 * rng.standard_normal(x.shape)).astype(x.dtype), params
    )
    tokenizer = load_tokenizer(model)
    save_model(folder / "base", decoder, params, tokenizer=tokenizer)
    save_model(folder / "tuned", decoder, moved, tokenizer=tokenizer)
    return folder / "base", folder / "tuned"


def wide(folder: Path) -> dict[str, np.ndarray]:
    tensors = load_file(folder / "model.safetensors")
    return {name: value.astype(np.float64) for name, value in tensors.items()}


def test_merge_is_the_formula(pair, command):
    base, tuned = pair
    command("merge", base, tuned, "--weight", "0.3", "--output", "out")
    one, two, merged = wide(base), wide(tuned), load_file("out/model.safetensors")
    assert merged.keys() == one.keys()
    for name, value in merged.items():
        exact = one[name] + 0.3 * (two[name] - one[name])
        assert value.dtype.name == "bfloat16"
        np.testing.assert_array_equal(value, exact.astype(value.dtype), err_msg=name)
    kept = snapshot(Path("out"))
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert kept[name] == (base / name).read_bytes()


def test_merge_drops_and_rescales(pair, command):
    base, tuned = pair
    argv = ("merge", base, tuned, "--drop-rate", "0.2", "--output")
    command(*argv, "out", "--seed", "4")
    one, two, merged = wide(base), wide(tuned), wide(Path("out"))
    dropped, moved = 0, 0
    for name, value in merged.items():
        delta = two[name] - one[name]
        kept = one[name] + 0.5 / 0.8 * delta
        here = delta != 0
        at_base = here & (value == one[name])
        np.testing.assert_allclose(value, np.where(at_base, one[name], kept), rtol=2**-8, atol=1e-6)
        dropped, moved = dropped + at_base.sum(), moved + here.sum()
    assert dropped / moved == pytest.approx(0.2, abs=0.01)
    command(*argv, "same", "--seed", "4")
    command(*argv, "other", "--seed", "5")
    weights = [Path(name, "model.safetensors").read_bytes() for name in ("out", "same", "other")]
    assert weights[0] == weights[1] != weights[2]


def test_merge_takes_the_bases_token_ids(pair, command):
    base, tuned = pair
    shutil.copytree(tuned, "chat")
    config = json.loads(Path("chat/config.json").read_text()) | {"eos_token_id": 5}
    Path("chat/config.json").write_text(json.dumps(config))
    command("merge", base, "chat", "--output", "out")
    assert json.loads(Path("out/config.json").read_text())["eos_token_id"] == 0


# convert


def test_convert_round_trip_is_bit_equal(model, command):
    shutil.copytree(model, "source")
    generation = json.dumps({"eos_token_id": [0], "temperature": 0.6, "do_sample": True}, indent=2)
    Path("source/generation_config.json").write_text(generation + "\n")
    command("convert", "source", "out")
    assert snapshot(Path("out")) == snapshot(Path("source"))


def test_convert_from_gguf(tiny_config, random_params, tiny_tokenizer, command, tmp_path):
    config = tiny_config("llama", tie_word_embeddings=False, max_position_embeddings=128)
    params = params_of(config, random_params, tiny_tokenizer)
    save_gguf(tmp_path / "tiny.gguf", config, params, tiny_tokenizer)
    command("convert", "tiny.gguf", "out")
    save_model("expected", load_model("out")[0], params)
    ours, expected = (load_file(f"{name}/model.safetensors") for name in ("out", "expected"))
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert value.tobytes() == expected[name].tobytes(), name
    assert command("generate", "out", "What is 3 plus 4?", *PLAIN) == ANSWER.strip() + "\n"
    assert command("generate", "tiny.gguf", "What is 3 plus 4?", *PLAIN) == ANSWER.strip() + "\n"


def test_convert_casts(model, command):
    command("convert", model, "out", "--dtype", "bfloat16")
    original, cast = (load_file(f"{name}/model.safetensors") for name in (model, "out"))
    for name, value in cast.items():
        np.testing.assert_array_equal(value, original[name].astype(value.dtype))
        assert value.dtype.name == "bfloat16"
