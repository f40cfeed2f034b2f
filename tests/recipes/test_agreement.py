"""Models whose configurations say the same thing in different words, or do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from imm_jax import merge_files
from imm_jax.errors import InputError
from tests.recipes import tiny_llamas
from tests.recipes.model_folders import EMBED, HEAD, LINEAR, cast, mean, read_config


@pytest.fixture
def save(tmp_path, monkeypatch):
    """``save(name, **changes)``: a model in the current directory; a None takes a key away."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(LINEAR)

    def build(name: str, **changes) -> dict[str, np.ndarray]:
        described = tiny_llamas.config(num_hidden_layers=1) | changes
        tied = described["tie_word_embeddings"] is not False
        values = tiny_llamas.weights(described | {"tie_word_embeddings": tied}, seed=len(name))
        given = {key: value for key, value in described.items() if value is not None}
        tiny_llamas.save(Path(name), given, values, np.float32)
        return tiny_llamas.read(Path(name))

    return build


# Heads


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("said", [("base", "one"), ("base",), ("one",), ()])
def test_what_is_not_said_of_the_head_is_as_in_the_family(family, said, save):
    base, one = (
        save(name, model_type=family, tie_word_embeddings=name in said or None)
        for name in ("base", "one")
    )
    merge_files("recipe.yaml", "out")
    merged = tiny_llamas.read(Path("out"))
    assert HEAD not in merged
    np.testing.assert_array_equal(merged[EMBED], cast(mean(base, one))[EMBED])
    assert read_config("out").get("tie_word_embeddings") == (True if "base" in said else None)


def test_a_llama_that_does_not_say_it_has_a_head_of_its_own(save):
    save("base", tie_word_embeddings=False)
    save("one", tie_word_embeddings=False)
    for name in ("base", "one"):
        config = {k: v for k, v in read_config(name).items() if k != "tie_word_embeddings"}
        Path(name, "config.json").write_text(json.dumps(config))
    merge_files("recipe.yaml", "out")
    assert HEAD in tiny_llamas.read(Path("out"))


def test_an_own_head_is_said_where_the_family_ties(save):
    """A reader would take the embedding for the head of a Gemma that does not say otherwise."""
    save("base", model_type="gemma", tie_word_embeddings=None)
    save("one", model_type="gemma", tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"base ties its head to the embedding .* --untie"):
        merge_files("recipe.yaml", "out")
    merge_files("recipe.yaml", "out", untie=True)
    assert HEAD in tiny_llamas.read(Path("out"))
    assert read_config("out")["tie_word_embeddings"] is False
