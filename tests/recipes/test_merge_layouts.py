"""Files merged into files: layers that move, heads, vocabularies, Fisher files, checkpoints."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import imm_jax
from imm_jax import checkpoints, merge_files
from imm_jax.cli import main
from imm_jax.errors import InputError
from imm_jax.models.huggingface.saving import save_model
from tests.processes import PATIENCE
from tests.recipes.model_folders import (
    BESIDE,
    EMBED,
    ENVIRONMENT,
    HEAD,
    LINEAR,
    assert_same,
    cast,
    mean,
    read_config,
    read_tensors,
    wide,
)

SLICES = """
merge_method: passthrough
slices:
  - sources: [{model: base, layer_range: [0, 2]}]
  - sources:
    - model: one
      layer_range: [1, 3]
      parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}
"""


def test_layers_are_renumbered(recipe, tmp_path):
    merge_files(recipe(SLICES), tmp_path / "out")
    base, one, out = read_tensors("base"), read_tensors("one"), read_tensors(tmp_path / "out")
    expected = {n: x for n, x in base.items() if "layers.2." not in n}
    for name, x in one.items():
        if "layers." in name and "layers.0." not in name:
            moved = re.sub(r"layers\.(\d)", lambda m: f"layers.{int(m[1]) + 1}", name)
            expected[moved] = np.zeros_like(x) if "o_proj" in name else x
        elif name in ("model.norm.weight", HEAD):  # of the last slice
            expected[name] = x
    assert_same(out, expected)
    assert read_config(tmp_path / "out") == read_config("base") | {"num_hidden_layers": 4}
    assert imm_jax.load_model(tmp_path / "out")[0].config.num_hidden_layers == 4
    for file in BESIDE:
        assert (tmp_path / "out" / file).read_bytes() == Path("base", file).read_bytes()


def test_kinds_of_layers_move_with_them(recipe, tiny_config, random_params, tmp_path):
    config = tiny_config("gemma3_text")
    save_model(tmp_path / "gemma", imm_jax.Decoder(config), random_params(config))
    text = """
merge_method: passthrough
slices:
  - sources: [{model: GEMMA, layer_range: [1, 3]}]
  - sources: [{model: GEMMA, layer_range: [0, 3]}]
"""
    merge_files(recipe(text.replace("GEMMA", str(tmp_path / "gemma"))), tmp_path / "out")
    kinds = config.layer_types
    merged = imm_jax.load_model(tmp_path / "out")[0].config
    assert merged.layer_types == (*kinds[1:], *kinds)


# Heads


def test_tied_models_stay_tied(recipe, tmp_path):
    merge_files(recipe(LINEAR.replace("base", "tied").replace("one", "tied_too")), tmp_path / "out")
    expected = cast(mean(read_tensors("tied"), read_tensors("tied_too")))
    assert HEAD not in expected
    assert_same(read_tensors(tmp_path / "out"), expected)
    assert read_config(tmp_path / "out")["tie_word_embeddings"] is True
    imm_jax.load_model(tmp_path / "out")


@pytest.mark.parametrize("names", [("tied", "one"), ("one", "tied")])
def test_a_tied_head_is_the_embedding_where_others_have_one(names, recipe, tmp_path):
    text = LINEAR.replace("base", "FIRST").replace("one", names[1]).replace("FIRST", names[0])
    with pytest.raises(InputError, match=r"tied ties its head to the embedding .* --untie"):
        merge_files(recipe(text), tmp_path / "out")
    assert main(["merge", str(recipe(text)), str(tmp_path / "out"), "--untie"]) == 0
    given = {name: read_tensors(name) for name in names}
    given["tied"][HEAD] = given["tied"][EMBED]
    expected = cast(mean(*[given[name] for name in names]))
    assert_same(read_tensors(tmp_path / "out"), expected)
    assert read_config(tmp_path / "out")["tie_word_embeddings"] is False
    imm_jax.load_model(tmp_path / "out")


# Vocabularies


@pytest.fixture(scope="module")
def other_words(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A model with two words of its own, and two others in each other's place."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("words") / "words"
    state = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    one, two = (word for word, i in words.items() if i in (300, 301))
    words[one], words[two] = words[two], words[one]
    core = tokenizers.Tokenizer.from_str(json.dumps(state))
    core.add_special_tokens(["<|tool|>", "<|call|>"])
    roles = {"eos_token": "<|tool|>", "pad_token": "<|pad|>"}
    config = tiny_config("llama", tie_word_embeddings=False, vocab_size=330)
    save_model(
        folder,
        imm_jax.Decoder(config),
        random_params(config, 9),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=core, **roles),
        generation_config={"eos_token_id": [320], "temperature": 0.2},
    )
    return folder


WORDS = """
merge_method: linear
base_model: base
models:
  - {model: base, parameters: {weight: 1}}
  - {model: WORDS, parameters: {weight: 3}}
"""


def by_token(folder):
    """The rows of the embedding and of the head, by token."""
    vocabulary, tensors = imm_jax.load_tokenizer(folder).get_vocab(), read_tensors(folder)
    return {n: {t: tensors[n][i] for t, i in vocabulary.items()} for n in (EMBED, HEAD)}


@pytest.mark.parametrize("source", ["base", "union", "another"])
def test_vocabularies_are_aligned(source, recipe, other_words, tmp_path):
    out = tmp_path / "out"
    text = WORDS.replace("WORDS", str(other_words))
    chosen = str(other_words) if source == "another" else source
    merge_files(recipe(text + f"tokenizer_source: {chosen}"), out)
    one, two, rows = (by_token(folder) for folder in (Path("base"), other_words, out))
    wanted = {"base": {*one[EMBED]}, "another": {*two[EMBED]}, "union": {*one[EMBED], *two[EMBED]}}
    for name in (EMBED, HEAD):
        assert set(rows[name]) == wanted[source]
        for token, row in rows[name].items():
            mine = one[name].get(token, two[name].get(token))
            other = two[name].get(token, mine)
            expected = (wide(mine) + 3 * wide(other)) / 4
            np.testing.assert_array_equal(row, expected.astype(np.float32), err_msg=token)
    config = read_config(out)
    assert config["vocab_size"] == len(read_tensors(out)[EMBED]) == len(rows[EMBED])
    # What ends a text goes with the tokenizer.
    end = 320 if source == "another" else 0
    generation = json.loads((out / "generation_config.json").read_text())
    assert config["eos_token_id"] == end
    assert generation["eos_token_id"] in (end, [end]) and generation["temperature"] == 0.7
    imm_jax.load_model(out)


def test_a_longer_vocabulary_is_cut_if_allowed(recipe, other_words, tmp_path):
    path = recipe(WORDS.replace("WORDS", str(other_words)))
    with pytest.raises(InputError, match=r"320 in .*base, 330 in .*words; set tokenizer_source"):
        merge_files(path, tmp_path / "out")
    assert main(["merge", str(path), str(tmp_path / "out"), "--truncate-vocabulary"]) == 0
    words = {n: x[:320] if n in (EMBED, HEAD) else x for n, x in read_tensors(other_words).items()}
    assert_same(read_tensors(tmp_path / "out"), cast(mean(read_tensors("base"), words)))
    assert read_config(tmp_path / "out")["vocab_size"] == 320
    imm_jax.load_model(tmp_path / "out")


def test_rows_must_be_as_many_as_the_config_says(recipe, other_words, tmp_path):
    shutil.copytree(other_words, tmp_path / "liar")
    config = read_config(other_words) | {"vocab_size": 340}
    (tmp_path / "liar/config.json").write_text(json.dumps(config))
    text = WORDS.replace("WORDS", str(tmp_path / "liar")) + "tokenizer_source: union"
    with pytest.raises(InputError, match="has 330 rows, but the config says vocab_size 340"):
        merge_files(recipe(text), tmp_path / "out")


def test_the_chat_template_of_most(recipe, tmp_path):
    for i, template in enumerate(("{{ one }}", "{{ two }}", "{{ two }}")):
        shutil.copytree("base", tmp_path / f"m{i}")
        (tmp_path / f"m{i}/chat_template.jinja").write_text(template)
    listed = "".join(f"  - {{model: {tmp_path}/m{i}}}\n" for i in range(3))
    text = f"merge_method: linear\nmodels:\n{listed}parameters: {{weight: 1}}\n"
    for asked, expected in (("auto", "{{ two }}"), ("'{{ x }}'", "{{ x }}"), ("null", "{{ one }}")):
        out = tmp_path / f"out-{expected}"
        merge_files(recipe(text + f"chat_template: {asked}"), out)
        assert imm_jax.load_tokenizer(out).chat_template == expected


# Fisher information


def fisher_file(path, tensors, seed):
    rng = np.random.default_rng(seed)
    found = {n: rng.random(x.shape).astype(np.float32) for n, x in tensors.items()}
    more = {"a.first": np.zeros(4 + seed, np.float32)}  # so that the others lie elsewhere
    save_file(found | more, path)
    return found


FISHER = """
merge_method: fisher
slices:
  - sources:
    - {model: base, layer_range: [0, 1], parameters: {fisher: FOLDER/f0.safetensors}}
    - {model: one, layer_range: [2, 3], parameters: {fisher: FOLDER/f1.safetensors}}
"""


def test_fisher_information_lies_under_the_models_own_names(recipe, tmp_path):
    """Layer 0 of the result comes from layer 2 of a model, whose information is of layer 2."""
    base, one = read_tensors("base"), read_tensors("one")
    for attempt in range(2):  # the files change, and nothing of them is remembered
        f0 = fisher_file(tmp_path / "f0.safetensors", base, 2 * attempt)
        f1 = fisher_file(tmp_path / "f1.safetensors", one, 2 * attempt + 1)
        out = tmp_path / f"out{attempt}"
        merge_files(recipe(FISHER.replace("FOLDER", str(tmp_path))), out)
        for name, x in read_tensors(out).items():
            theirs = name.replace("layers.0.", "layers.2.")
            a, b = wide(f0[name]), wide(f1[theirs])
            expected = (a * wide(base[name]) + b * wide(one[theirs])) / (a + b)
            np.testing.assert_allclose(x, expected, rtol=2e-7, atol=1e-30, err_msg=name)


def test_fisher_information_of_another_vocabulary(recipe, other_words, tmp_path):
    fisher_file(tmp_path / "f0.safetensors", read_tensors("base"), 0)
    fisher_file(tmp_path / "f1.safetensors", read_tensors(other_words), 1)
    text = WORDS.replace("linear", "fisher").replace("WORDS", str(other_words))
    for i, weight in enumerate(("weight: 1", "weight: 3")):
        text = text.replace(weight, f"fisher: {tmp_path}/f{i}.safetensors")
    with pytest.raises(InputError, match=r"f1.safetensors: tensor .* the merged model has another"):
        merge_files(recipe(text + "tokenizer_source: base"), tmp_path / "out")


# A base and a checkpoint


def test_a_checkpoint_is_merged_into_its_base(recipe, tmp_path):
    _, tuned = imm_jax.load_model("one")
    checkpoints.save(tmp_path / "plain", tuned)
    checkpoints.save(tmp_path / "inside", {"params": tuned, "step": np.int32(7)})
    expected = cast(mean(read_tensors("base"), read_tensors("one"), (3, 1)))
    for name in ("plain", "inside"):
        out = tmp_path / f"out-{name}"
        argv = ["merge", "base", "--from", tmp_path / name, "--output", out, "--weight", "0.25"]
        assert main([str(word) for word in argv]) == 0
        assert_same(read_tensors(out), expected)
        assert (out / "tokenizer.json").read_bytes() == Path("base/tokenizer.json").read_bytes()


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises ImportError
from imm_jax.cli import main
assert main(["merge", *sys.argv[1:]]) == 0
assert not [name for name in sys.modules if name.split(".")[0] == "torch" and sys.modules[name]]
"""


def test_without_torch(recipe, other_words, tmp_path):
    path = recipe(WORDS.replace("WORDS", str(other_words)) + "tokenizer_source: union")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path), str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").is_file()
