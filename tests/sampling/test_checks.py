"""What ``generate`` refuses, in one line each, before anything is compiled."""

import jax
import numpy as np
import pytest

from imm_jax.errors import InputError
from imm_jax.models.decoder import Decoder
from imm_jax.sampling import engine
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.engine import generate


@pytest.fixture(scope="module")
def tiny(tiny_config, random_params, tiny_tokenizer):
    config = tiny_config("llama", max_position_embeddings=512)
    return Decoder(config), random_params(config), tiny_tokenizer


def test_prompts_that_do_not_fit_are_refused(tiny):
    model, params, tokenizer = tiny
    with pytest.raises(InputError, match="prompt 1: empty"):
        generate(model, params, tokenizer, ["a", ""])
    with pytest.raises(InputError, match="exceed the model's context of 512"):
        generate(model, params, tokenizer, ["a"], config=SamplingConfig(max_new_tokens=512))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompts": "hello"}, "prompts: 'hello', expected a list of texts"),
        ({"prompts": [1, 2]}, "prompts: prompt 0 is 1, expected a text or a list of token ids"),
        (
            {"prompts": ["a", [5]]},
            r"prompts: prompt 1 is \[5\] and prompt 0 'a', expected texts al",
        ),
        ({"prompts": [[5], "a"]}, r"prompts: prompt 1 is 'a' and prompt 0 \[5\], expected"),
        (
            {"prompts": [[5], [5, 320]]},
            "prompt 1: token 320, expected a whole number from 0 to 319",
        ),
        ({"prompts": [[-1, 5]]}, "prompt 0: token -1, expected a whole number from 0 to 319"),
        ({"prompts": [[5.5]]}, "prompt 0: token 5.5, expected a whole number"),
        ({"stop": ("",)}, "stop: '', expected a string of at least one character"),
        ({"stop": (7,)}, "stop: 7, expected a string"),
        ({"stop": "abc"}, "stop: 'abc', expected a list of strings"),
        ({"limits": [3, 0]}, "limits: 0 for prompt 1, expected a whole number of at least 1"),
        ({"limits": [2.5, 3]}, "limits: 2.5 for prompt 0, expected a whole number"),
        ({"limits": [3]}, "limits: 1 of them, expected 2, one for each prompt"),
        ({"ids": ["q"]}, "ids: 1 of them, expected 2, one for each prompt"),
        ({"ids": "qr"}, "ids: 'qr', expected a list of names"),
        ({"ids": [1, 2]}, "ids: 1, expected a string"),
    ],
)
def test_arguments_of_another_form_are_refused(tiny, monkeypatch, arguments, says):
    monkeypatch.setattr(engine, "prepare", lambda *_: pytest.fail("work began before the checks"))
    with pytest.raises(InputError, match=says) as error:
        generate(*tiny, **{"prompts": ["a", "b"]} | arguments)
    assert "\n" not in str(error.value)


def test_prompts_may_be_arrays_of_token_ids(tiny):
    config = SamplingConfig(temperature=0.0, max_new_tokens=4)
    plain = generate(*tiny, [[5, 6], [7, 8]], config=config)
    for make in (np.asarray, jax.numpy.asarray):
        assert generate(*tiny, make([[5, 6], [7, 8]]), config=config) == plain


def test_a_model_without_finite_logits_is_an_error_after_one_chunk(tiny, monkeypatch):
    model, params, tokenizer = tiny
    chunks, collect = [], engine.Batch.collect
    count = lambda batch: chunks.append(collect(batch)) or chunks[-1]
    monkeypatch.setattr(engine.Batch, "collect", count)
    params = {**params, "final_norm": {"scale": np.full(32, np.nan, np.float32)}}
    with pytest.raises(InputError, match="prompt q7: the model gives logits that are not finite"):
        generate(model, params, tokenizer, ["a"], ids=["q7"])
    assert list(map(len, chunks)) == [0, 1]  # nothing was under way before the first


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1),
     ("top_p", 0.0), ("top_p", 1.5), ("min_p", 1.0), ("batch_size", 0), ("chunk", -1),
     ("weights", "int8"), ("weights", 8), ("top_k", 2.5), ("max_new_tokens", 8.0),
     ("batch_size", True), ("chunk", None), ("temperature", "0.7"), ("top_p", None)],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(InputError, match=name):
        SamplingConfig(**{name: value})
