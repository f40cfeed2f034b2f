"""RoPE in both spellings: what means the same is the same, and a difference is said."""

import json
import logging

import numpy as np
import pytest

from imm_jax import merge_files
from imm_jax.errors import InputError
from tests.recipes import tiny_llamas
from tests.recipes.model_folders import LINEAR, read_config

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLD = {"rope_scaling": {"type": "llama3", **LLAMA3}}
NEW = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000, **LLAMA3,
                           "original_max_position_embeddings": 64}}  # fmt: skip
GEMMA = {"model_type": "gemma3_text", "tie_word_embeddings": True}
FULL = {"rope_theta": 1e6, "rope_type": "default"}
NESTED = {"full_attention": FULL, "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}


@pytest.fixture
def notes(tmp_path, monkeypatch, caplog):
    """``notes(base, one)`` merges two models with these keys and gives what is said of RoPE."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(LINEAR)

    def merge(base: dict, one: dict) -> list[str]:
        for name, keys in (("base", base), ("one", one)):
            described = tiny_llamas.config(num_hidden_layers=1) | keys
            tiny_llamas.save(tmp_path / name, described, tiny_llamas.weights(described), np.float32)
        with caplog.at_level(logging.WARNING, "imm_jax"):
            merge_files("recipe.yaml", "out")
        said = [r.getMessage().replace(f"{tmp_path}/", "") for r in caplog.records]
        return [line for line in said if "rope" in line]

    return merge


SAME = {
    "both spellings": ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 500000}}),
    "the default": ({"rope_theta": 1e4}, {}),
    "no scaling": ({"rope_scaling": None}, {"rope_parameters": {"rope_type": "default"}}),
    "a scaling": (OLD, NEW),
    "a model with both": (OLD | NEW, NEW),
    "kinds of layers": (GEMMA | {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
                        GEMMA | {"rope_parameters": NESTED}),
    "a family's bases": (GEMMA, GEMMA | {"rope_parameters": NESTED}),
    "a base that is not known": ({"model_type": "phi3"}, {"model_type": "phi3", "rope_theta": 7.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_means_the_same_is_no_difference(name, notes):
    assert notes(*SAME[name]) == []


OTHER = {
    "bases": ({"rope_theta": 1e4}, {"rope_theta": 1e6}, "rope_theta is 1000000.0, but 10000.0"),
    "bases in both spellings": ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 5e5}},
                                "rope_theta is 500000.0, but 10000.0"),
    "the base of one alone": ({}, {"rope_theta": 5e5}, "rope_theta is 500000.0, but 10000.0"),
    "a scaling of the base model alone": (NEW, {}, "rope_scaling is None, but {"),
    "a scaling of the other alone": ({}, OLD, "rope_scaling is {"),
    "a local base": (GEMMA, GEMMA | {"rope_local_base_freq": 5e3},
                     "rope_local_base_freq is 5000.0, but 10000.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_a_difference_is_said_and_the_base_models_value_is_written(name, notes):
    base, one, says = OTHER[name]
    (line,) = notes(base, one)
    assert line.startswith(f"one/config.json: {says}")
    assert line.endswith(" in base, which the merged model has")
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq"):
        assert read_config("out").get(key) == json.loads(json.dumps(base)).get(key)


def test_a_file_that_contradicts_itself(notes):
    with pytest.raises(InputError, match=r"one/config.json: rope_parameters is .* but rope_theta "
                       r"is 10000.0: they contradict each other"):  # fmt: skip
        notes({}, {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}})
