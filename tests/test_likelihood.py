"""Log-probabilities of texts after prompts, against plain log-softmax in float64."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from imm_jax import likelihood
from imm_jax.errors import InputError
from imm_jax.likelihood import Rows, encode, row_scores, score_rows
from imm_jax.models.decoder import Decoder
from tests.plain_logits import log_softmax, logits_in


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def tiny(request, tiny_config, random_params):
    changes = {"final_logit_softcapping": 5.0} if request.param == "gemma3_text" else {}
    config = tiny_config(request.param, **changes)
    return Decoder(config), random_params(config)


def test_scores_are_those_of_lm_eval(tiny_config, random_params):
    """As ``hf`` of lm-eval 0.4.13 gave them; test_harness.py checks the record."""
    rows = json.loads((Path(__file__).parent / "golden" / "lm_eval_scores.json").read_text())
    config = tiny_config("llama", max_position_embeddings=96)
    asked = [((*row["context"], *row["text"]), len(row["context"])) for row in rows]
    logprobs, greedy = score_rows(Decoder(config), random_params(config), asked, batch_size=4)
    np.testing.assert_allclose(logprobs, [row["logprob"] for row in rows], atol=1e-4)
    assert greedy.tolist() == [row["greedy"] for row in rows]


def test_a_prompt_runs_once_for_all_its_texts(tiny, monkeypatch):
    """Four texts of one prompt, two of another and two of none, which also score as if alone."""
    model, params = tiny
    one, two = tuple(range(3, 40)), tuple(range(50, 60))
    rows = [((*one, *range(7, 7 + n)), len(one)) for n in (1, 2, 3, 20)]
    rows += [((*two, *range(70, 70 + n)), len(two)) for n in (2, 1)]
    rows += [(tuple(range(80, 80 + n)), 0) for n in (3, 2)]
    seen = []

    def watch(model, weights, prefix, batch):
        seen.append(batch)
        return row_scores(model, weights, prefix, batch)

    monkeypatch.setattr(likelihood, "row_scores", watch)
    together, _ = score_rows(model, params, rows, batch_size=8)
    [batch] = seen
    held = [tuple(prompt[prompt != 0]) for prompt in batch.prompts]
    assert held == [one[:-1], two[:-1], (), ()]  # the last fills up to a power of two
    assert np.bincount(batch.source).tolist() == [4, 2, 2]
    logits_of = logits_in(model, params)
    for (tokens, prompt), found in zip(rows, together):
        logprobs = log_softmax(logits_of(tokens))
        expected = sum(logprobs[i - 1, tokens[i]] for i in range(max(prompt, 1), len(tokens)))
        assert found == pytest.approx(expected, abs=2e-4)


def test_no_more_prompts_are_run_side_by_side_than_in_sampling(tiny, monkeypatch):
    """Their keys and values take memory, so a large batch of short texts is taken apart."""
    model, params = tiny
    rows = [((30 + i, *range(3, 20), *text), 18) for i in range(40) for text in ((7, 8), (9,))]
    shapes = []

    def watch(model, weights, prefix, batch):
        shapes.append((batch.prompts.shape[0], batch.tokens.shape[0]))
        return row_scores(model, weights, prefix, batch)

    monkeypatch.setattr(likelihood, "row_scores", watch)
    many, _ = score_rows(model, params, rows, batch_size=128)
    assert shapes == [(16, 32)] * 2 + [(8, 32)]
    few, _ = score_rows(model, params, rows, batch_size=4)
    np.testing.assert_allclose(many, few, atol=1e-4)


def test_a_row_without_a_likelihood_is_an_error(tiny_config, random_params):
    config = tiny_config("llama")
    params = random_params(config) | {"final_norm": {"scale": np.full(32, np.nan, np.float32)}}
    rows = [((5, 6, 7), 2), ((5, 6, 8, 9), 2)]
    with pytest.raises(InputError, match="text 1: the model gives logits that are not finite"):
        score_rows(Decoder(config), params, rows, batch_size=1)
    with pytest.raises(InputError, match=r"^of two: the model gives logits"):
        score_rows(Decoder(config), params, rows, batch_size=1, names=["of one", "of two"])


def test_logits_never_exist_for_the_whole_batch(tiny_config, random_params):
    """No float32 array of the program is as large as [B, T, V] or [scored tokens, V]."""
    config = tiny_config("llama", vocab_size=20_000)
    model, B, T = Decoder(config), 16, 64
    params = jax.eval_shape(lambda: random_params(config))
    layers = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params["layers"])]
    weights = params | {"layers": layers * config.num_hidden_layers}
    prompts, numbers, tokens = (
        jax.ShapeDtypeStruct(shape, np.int32) for shape in ((B // 4, T), (B,), (B, T))
    )
    mask = jax.ShapeDtypeStruct((B, T), np.float32)
    rows = Rows(prompts, numbers, numbers, tokens, mask)
    compiled = row_scores.lower(model, weights, None, rows).compile()
    whole = B * T * config.vocab_size * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 3


def test_a_prompt_and_its_text_part_where_their_tokens_do(tiny_tokenizer):
    tokens, prompt = encode(tiny_tokenizer, "Answer:", " 42")
    assert list(tokens) == tiny_tokenizer.encode("Answer: 42")
    assert prompt == len(tiny_tokenizer.encode("Answer:"))
    # The tokenizer joins "The answ" + "er is": the token across the seam counts to the text.
    tokens, prompt = encode(tiny_tokenizer, "The answ", "er is")
    head = tiny_tokenizer.encode("The answ")
    assert 0 < prompt < len(head) and list(tokens[:prompt]) == head[:prompt]
    assert tiny_tokenizer.decode(tokens[prompt:]).endswith("er is")
