"""Saving: bit-equal round trips, shards, and failures that leave what was there."""

import errno
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.errors import InputError
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface import saving
from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.huggingface.tensor_files import Planned, read_header, write_tensors
from imm_jax.models.load import load_model

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]


DTYPES = ["float32", "bfloat16", "float16"]


def cast(params, dtype: str):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bit_equal(
    family, dtype, tiny_config, random_params, tmp_path, assert_bit_equal
):
    config = tiny_config(family)
    params = cast(random_params(config), dtype)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for folder, limit in (("whole", 5e9), ("sharded", size / 4)):
        save_model(tmp_path / folder, Decoder(config=config), params, max_shard_bytes=limit)
        model, back = load_model(tmp_path / folder)
        assert model.config == config
        assert_bit_equal(params, back)
        files = list((tmp_path / folder).glob("*.safetensors"))
        assert (len(files) == 1) == (folder == "whole")
        assert all(file.stat().st_size <= limit + 20_000 for file in files)


def test_a_window_that_no_layer_has_is_written_where_transformers_asks_for_one(
    tiny_config, random_params, tmp_path
):
    """Its Gemma 3 makes the mask of sliding layers whether there are any or not."""
    config = tiny_config("gemma3_text", sliding_window=None, layer_types=())
    save_model(tmp_path / "m", Decoder(config=config), random_params(config))
    written = json.loads((tmp_path / "m/config.json").read_text())
    assert set(written["layer_types"]) == {"full_attention"}
    assert isinstance(written["sliding_window"], int)
    assert load_model(tmp_path / "m")[0].config == config


def test_the_safetensors_package_reads_what_is_written(tiny_config, random_params, tmp_path):
    from safetensors import safe_open

    config = tiny_config("qwen2")
    params = random_params(config)
    save_model(tmp_path / "m", Decoder(config=config), params)
    with safe_open(tmp_path / "m" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
        assert len(names) == 2 + 3 * 12
        np.testing.assert_array_equal(
            file.get_tensor("model.layers.2.mlp.down_proj.weight"),
            params["layers"]["mlp"]["down"]["kernel"][2].T,
        )
        np.testing.assert_array_equal(
            file.get_tensor("model.layers.1.self_attn.k_proj.bias"),
            params["layers"]["attn"]["k"]["bias"][1],
        )
        np.testing.assert_array_equal(
            file.get_tensor("model.embed_tokens.weight"), params["embed"]["embedding"]
        )


def test_the_index_names_every_tensor(tiny_config, random_params, tmp_path):
    config = tiny_config("llama")
    params = random_params(config)
    save_model(tmp_path / "m", Decoder(config=config), params, max_shard_bytes=30_000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    for name, file in index["weight_map"].items():
        assert name in read_header(tmp_path / "m" / file)


def test_mixed_types_are_kept_and_aligned(tiny_config, random_params, tmp_path, assert_bit_equal):
    config = tiny_config("qwen3", vocab_size=319, hidden_size=31)
    params = random_params(config)
    params["embed"] = cast(params["embed"], "bfloat16")
    params["layers"]["mlp"] = cast(params["layers"]["mlp"], "float16")
    save_model(tmp_path / "m", Decoder(config=config), params)
    _, back = load_model(tmp_path / "m")
    assert_bit_equal(params, back)
    for entry in read_header(tmp_path / "m" / "model.safetensors").values():
        assert entry.begin % {"F32": 4, "F16": 2, "BF16": 2}[entry.dtype] == 0


def test_tokenizer_and_generation_config(tiny_config, random_params, tiny_tokenizer, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    config = tiny_config("llama", eos_token_id=(0, 7))
    model, params = Decoder(config=config), random_params(config)
    save_model(tmp_path / "m", model, params, tokenizer=tiny_tokenizer)
    text = "Tom has 7 apples and buys 12 more. é"
    again = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again.encode(text) == tiny_tokenizer.encode(text)
    assert GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == [0, 7]
    assert GenerationConfig.from_pretrained(tmp_path / "m").pad_token_id == 1

    own = {"eos_token_id": 7, "temperature": 0.5}
    save_model(tmp_path / "m", model, params, generation_config=own)
    found = GenerationConfig.from_pretrained(tmp_path / "m")
    assert (found.eos_token_id, found.temperature) == (7, 0.5)


@pytest.mark.parametrize(
    ("config_says", "generation_says", "ends"),
    [
        (5, [7, 5], (5, 7)),
        (5, 7, (5, 7)),
        (None, 7, 7),
        ((5, 7), 7, (5, 7)),
        (5, None, 5),
    ],
)
def test_answers_end_where_the_generation_config_says_too(
    config_says, generation_says, ends, tiny_config, random_params, tmp_path
):
    model = Decoder(config=tiny_config("llama", eos_token_id=config_says))
    own = {"eos_token_id": generation_says}
    save_model(tmp_path / "m", model, random_params(model.config), generation_config=own)
    assert load_model(tmp_path / "m")[0].config.eos_token_id == ends


@pytest.mark.parametrize("wrong", [-1, "two", [3, 99_999], True])
def test_a_generation_config_that_names_no_token_is_refused(
    wrong, tiny_config, random_params, tmp_path
):
    model = Decoder(config=tiny_config("llama"))
    own = {"eos_token_id": wrong}
    save_model(tmp_path / "m", model, random_params(model.config), generation_config=own)
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id .* below 320"):
        load_model(tmp_path / "m")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.pop("final_norm"), "final_norm/scale is missing"),
        (lambda p: p.update(more=np.ones(3)), "more has no place in the model"),
        (
            lambda p: p["embed"].update(embedding=np.ones((3, 32), np.float32)),
            "embed/embedding has shape [3, 32], but the model asks for [320, 32]",
        ),
        (
            lambda p: p["final_norm"].update(scale=np.ones(32, np.float64)),
            "final_norm/scale is float64, expected one of float32",
        ),
    ],
)
def test_params_that_do_not_fit_leave_the_old_folder(
    change, says, folder, tiny_config, random_params
):
    before = contents(folder)
    params = random_params(tiny_config())
    change(params)
    with pytest.raises(InputError) as error:
        save_model(folder, Decoder(config=tiny_config()), params)
    assert says in str(error.value)
    assert contents(folder) == before


def test_a_tokenizer_too_large_is_refused(tiny_config, random_params, tiny_tokenizer, tmp_path):
    config = tiny_config(vocab_size=319)
    with pytest.raises(InputError, match="320 tokens, but the model's vocabulary 319"):
        save_model(
            tmp_path / "m", Decoder(config=config), random_params(config), tokenizer=tiny_tokenizer
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model_is_not_replaced(tiny_config, random_params, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("diary")
    config = tiny_config()
    with pytest.raises(InputError, match="exists and is no model folder"):
        save_model(tmp_path / "letters", Decoder(config=config), random_params(config))
    with pytest.raises(InputError, match="exists and is a file"):
        save_model(tmp_path / "letters" / "dear.txt", Decoder(config=config), random_params(config))
    assert contents(tmp_path / "letters") == {"dear.txt": b"diary"}


def test_a_full_disk_leaves_what_was_there(folder, tiny_config, random_params, monkeypatch):
    before = contents(folder)

    def full(path, plan, values):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "write_tensors", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        save_model(folder, Decoder(config=tiny_config()), random_params(tiny_config(), 1))
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_saving_replaces_a_model_folder(folder, tiny_config, random_params, assert_bit_equal):
    (folder / "old-00001-of-00002.safetensors").write_bytes(b"stale")
    params = random_params(tiny_config(), seed=1)
    save_model(folder, Decoder(config=tiny_config()), params)
    assert_bit_equal(params, load_model(folder)[1])
    assert not (folder / "old-00001-of-00002.safetensors").exists()


def test_unstacked_params_are_saved_stacked(folder, tiny_config, random_params, assert_bit_equal):
    from imm_jax.tree import unstack_layers

    params = random_params(tiny_config(), seed=2)
    save_model(folder, Decoder(config=tiny_config()), unstack_layers(params))
    assert_bit_equal(params, load_model(folder)[1])


def test_written_tensors_are_checked_against_the_plan(tmp_path):
    plan = [Planned("x", np.dtype(np.float32), (2, 3))]
    with pytest.raises(AssertionError, match="x: planned"):
        write_tensors(tmp_path / "t", plan, [np.ones((3, 2), np.float32)])
