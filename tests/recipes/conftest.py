"""Fixtures of the recipe tests: model folders on disk, and recipes for them."""

from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from tests.compiling import optimisations


@pytest.fixture(scope="module", autouse=True)
def slow_compilation():
    """Here golden files and mergekit's merges are compared with the optimised program."""
    with optimisations(True):
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A folder of tiny Llamas: ``base``, its kin ``one`` and ``two``, in several files each.

    ``half`` is in bfloat16. ``tied`` has no head of its own. Nobody changes it.
    """
    root = tmp_path_factory.mktemp("models")
    config = tiny_config("llama", tie_word_embeddings=False)

    def save(name, seed, config=config, dtype=np.float32, **kwargs):
        params = jax.tree.map(lambda x: x.astype(dtype), random_params(config, seed))
        kwargs = {"tokenizer": tiny_tokenizer, "max_shard_bytes": 60_000} | kwargs
        save_model(root / name, Decoder(config), params, **kwargs)

    own = {"generation_config": {"eos_token_id": [0], "temperature": 0.7}}
    save("base", 0, **own)
    save("one", 1)
    save("two", 2, max_shard_bytes=5e9)
    save("half", 3, dtype=ml_dtypes.bfloat16)
    save("tied", 4, tiny_config("llama"))
    save("tied_too", 5, tiny_config("llama"))
    return root


@pytest.fixture
def recipe(models, tmp_path, monkeypatch):
    """``recipe(text)`` writes a recipe beside nothing else; models are named as in ``models``."""
    monkeypatch.chdir(models)

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
