"""Fixtures of merges that ask: tiny models that know an answer, questions, and recipes."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from tests.answering import params_of, write_questions


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """``good`` says 7, ``near`` as well, ``half`` is that in bfloat16, ``bad`` says anything.

    ``wrong`` says anything but 7, and so loudly that a mean with it does too.
    """
    root = tmp_path_factory.mktemp("asking")
    config = tiny_config("llama", tie_word_embeddings=False, max_position_embeddings=128)
    good, bad = params_of(config, random_params, tiny_tokenizer), random_params(config, 2)
    near = jax.tree.map(lambda x, n: np.float32(x + 0.02 * n), good, random_params(config, 1))
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), near)
    wrong = good | {"lm_head": {"kernel": -10 * good["lm_head"]["kernel"]}}
    named = {"good": good, "bad": bad, "near": near, "half": half, "wrong": wrong}
    for name, params in named.items():
        save_model(root / name, Decoder(config), params, tokenizer=tiny_tokenizer)
    write_questions(root / "test.jsonl", 6)
    write_questions(root / "other.jsonl", 4, 20)
    write_questions(root / "few.jsonl", 2, 2)
    return root


@pytest.fixture
def recipe(models, tmp_path, monkeypatch):
    """``recipe(method, *models, parameters, **keys)``: a model is its name or an entry."""
    monkeypatch.chdir(models)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set, so that the command leaves it alone")

    def write(method, *names, parameters, **keys):
        if "task" in parameters:  # their files have test questions alone
            parameters = {"split": "test"} | parameters
        listed = [{"model": name} if isinstance(name, str) else name for name in names]
        data = {"merge_method": method, "models": listed, "parameters": parameters, **keys}
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(data, indent=1))
        return path

    return write
