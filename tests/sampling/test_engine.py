"""The sampler against plain loops over the full forward pass."""

import re

import jax
import numpy as np
import pytest

from imm_jax.errors import Interrupted
from imm_jax.models.decoder import Decoder
from imm_jax.sampling import engine
from imm_jax.sampling.batch import LENGTH_BUCKET, cache_slots
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import admit, decode_chunk, decode_weights, grow, keep, prefill
from imm_jax.sampling.engine import generate
from imm_jax.sampling.text import finish

PROMPTS = [
    "Question: what is 3 times 14? Answer:",
    "Question: what is 3 times 1",
    "Question: what is 3 times 9? Answer: 3 * 9 = 27. The answer is 27. And once more:",
    "Question: what is 3 tim",
]


@pytest.fixture(scope="module")
def tiny(tiny_config, random_params, tiny_tokenizer):
    config = tiny_config("llama", max_position_embeddings=512)
    params = jax.tree.map(lambda x: jax.numpy.asarray(1.5 * x), random_params(config, 1))
    return Decoder(config), params, tiny_tokenizer


@pytest.fixture(scope="module")
def forward(tiny):
    """Logits [T, V] of one sequence by the whole forward pass."""
    model, params, _ = tiny
    run = jax.jit(lambda x: model.apply({"params": params}, x))

    def logits(tokens):
        padded = np.zeros((1, 160), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(run(padded))[0, : len(tokens)]

    return logits


def greedy_loop(forward, tokens, count, eos):
    """Argmax of the whole forward pass, token by token."""
    new = []
    while len(new) < count and (not new or new[-1] not in eos):
        new.append(int(np.argmax(forward([*tokens, *new])[-1])))
    return tuple(new)


def test_greedy_equals_argmax_of_the_whole_forward_pass(tiny, forward):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=0.0, max_new_tokens=20)
    results = generate(model, params, tokenizer, PROMPTS, config=config, eos=[0])
    for prompt, [sample] in zip(PROMPTS, results):
        ids = tokenizer(prompt)["input_ids"]
        assert sample.tokens == greedy_loop(forward, ids, 20, {0})


def test_logprobs_equal_those_of_the_training_forward_pass(tiny, forward):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=0.7, max_new_tokens=24, top_p=0.9)
    results = generate(model, params, tokenizer, PROMPTS, config=config, samples=3, eos=[])
    for prompt, samples in zip(PROMPTS, results):
        ids = tokenizer(prompt)["input_ids"]
        for sample in samples:
            logits = np.float64(forward([*ids, *sample.tokens])[len(ids) - 1 : -1])
            normal = np.log(np.exp(logits).sum(-1))
            expected = logits[np.arange(len(sample.tokens)), sample.tokens] - normal
            np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)


def test_a_sample_does_not_depend_on_the_batch_it_is_in(tiny):
    model, params, tokenizer = tiny

    def texts(prompts, ids, **settings):
        config = SamplingConfig(temperature=0.9, max_new_tokens=30, **settings)
        found = generate(
            model, params, tokenizer, prompts, config=config, samples=3, seed=7, ids=ids, eos=[0]
        )
        return {name: [s.tokens for s in row] for name, row in zip(ids, found)}

    ids = [f"q{i}" for i in range(len(PROMPTS))]
    together = texts(PROMPTS, ids)
    assert len({tokens for row in together.values() for tokens in row}) == 12
    assert texts(PROMPTS[::-1], ids[::-1]) == together
    assert texts(PROMPTS, ids, batch_size=2, chunk=5) == together
    assert texts(PROMPTS, ids, batch_size=5, chunk=64) == together
    for prompt, name in zip(PROMPTS, ids):
        assert texts([prompt], [name])[name] == together[name]


def test_another_seed_gives_other_samples(tiny):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=1.0, max_new_tokens=12)
    first, second = (
        generate(model, params, tokenizer, PROMPTS, config=config, seed=seed) for seed in (1, 2)
    )
    assert first != second


def test_stop_strings_are_found_across_tokens_and_cut(tiny):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=0.9, max_new_tokens=40)
    free = generate(model, params, tokenizer, PROMPTS[:1], config=config, seed=3, eos=[])[0][0]
    stop = free.text[7:12]
    assert len(tokenizer(stop, add_special_tokens=False)["input_ids"]) > 1
    cut = generate(
        model, params, tokenizer, PROMPTS[:1], config=config, seed=3, eos=[], stop=["nowhere", stop]
    )[0][0]
    assert cut.finish_reason == "stop"
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.tokens == free.tokens[: len(cut.tokens)]
    assert stop in tokenizer.decode(cut.tokens)
    assert stop not in tokenizer.decode(cut.tokens[:-1])
    assert len(cut.logprobs) == len(cut.tokens)


class Characters:
    """A tokenizer whose tokens are characters; ``#`` is special and left out of texts."""

    def decode(self, tokens, skip_special_tokens):
        return "".join(map(chr, tokens)).replace("#", "" if skip_special_tokens else "#")


@pytest.mark.parametrize("sampled", range(11, 30))
def test_the_stop_string_that_is_complete_first_counts(sampled):
    """However many tokens were sampled behind it: another that begins before may end there."""
    tokens, stop = list(map(ord, "1234 == Answer:\n\nNext and more")), ("== Answer:\n\nN", "Ans")
    found = finish(Characters(), tokens[:sampled], [0.0] * sampled, stop=stop, eos=[], limit=40)
    assert (found.text, bytes(found.tokens)) == ("1234 == ", b"1234 == Ans")
    assert found.finish_reason == "stop"


def test_a_stop_string_that_is_a_special_token_stops(tiny):
    """Texts are decoded without special tokens, so it is never in one."""
    model, params, tokenizer = tiny
    special, token = next(iter(tokenizer.get_added_vocab().items()))
    assert tokenizer.decode([token], skip_special_tokens=True) == ""
    params = {**params, "embed": {"embedding": params["embed"]["embedding"]}}
    config = SamplingConfig(temperature=5.0, max_new_tokens=64)  # any token may come
    how = {"config": config, "samples": 16, "seed": 3, "eos": []}
    free = generate(model, params, tokenizer, PROMPTS[:1], **how)[0]
    cut = generate(model, params, tokenizer, PROMPTS[:1], stop=[special], **how)[0]
    assert any(token in sample.tokens for sample in free)
    for whole, sample in zip(free, cut):
        ended = token in whole.tokens
        count = whole.tokens.index(token) + 1 if ended else 64
        assert sample.tokens == whole.tokens[:count]
        assert sample.finish_reason == ("stop" if ended else "length")


def test_an_end_token_and_the_limit_end_a_sample(tiny):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=0.9, max_new_tokens=25)
    free = generate(model, params, tokenizer, PROMPTS[:1], config=config, seed=3, eos=[])[0][0]
    assert free.finish_reason == "length" and len(free.tokens) == 25
    end = free.tokens[6]
    cut = generate(model, params, tokenizer, PROMPTS[:1], config=config, seed=3, eos=[end])[0][0]
    first = free.tokens.index(end)
    assert cut.finish_reason == "stop" and cut.tokens == free.tokens[: first + 1]
    assert cut.text == tokenizer.decode(free.tokens[:first], skip_special_tokens=True)


def test_compilations_are_bounded_by_the_buckets(tiny):
    model, params, tokenizer = tiny
    rng = np.random.default_rng(0)
    words = ["apples", "eggs", "and", "5", "boxes", "of"]
    prompts = [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(1000)]
    config = SamplingConfig(temperature=1.0, max_new_tokens=9, batch_size=16, chunk=8)
    programs = decode_chunk, prefill, admit, grow, keep
    for program in programs:
        program.clear_cache()  # other tests may have used the same buckets
    generate(model, params, tokenizer, prompts, config=config)
    counts = [program._cache_size() for program in programs]
    longest = max(len(ids) for ids in tokenizer(prompts)["input_ids"])
    caches, lengths = 3, -(-longest // LENGTH_BUCKET)  # 64, 128, 256 slots
    assert longest < 256 - 9 and lengths > 2, "the buckets named above are those used"
    decodes, prefills, admissions, growths, shrinkings = counts
    assert 0 < decodes <= caches
    assert 0 < prefills <= 3 * lengths, "16, 4 or 1 rows of each length"
    assert 0 < admissions <= 3 * lengths * caches
    assert growths < caches and shrinkings == 0


def test_a_large_batch_is_decoded_in_two_lanes_of_the_same_program(tiny, monkeypatch):
    model, params, tokenizer = tiny
    monkeypatch.setattr(engine, "cores", lambda: 2)
    made, lanes = [], engine._lanes
    monkeypatch.setattr(engine, "_lanes", lambda *args: made.append(lanes(*args)) or made[-1])
    config = SamplingConfig(temperature=0.9, max_new_tokens=20, batch_size=16, chunk=5)
    prompts = [f"{prompt} ({i})" for prompt in PROMPTS for i in range(7)]
    limits = [3 + i % 18 for i in range(len(prompts))]  # rows end apart and others take their place
    settings = {"samples": 2, "seed": 5, "eos": [], "limits": limits}
    one = generate(model, params, tokenizer, prompts, config=config, **settings)
    programs = decode_chunk._cache_size()
    wide = SamplingConfig(temperature=0.9, max_new_tokens=20, batch_size=32, chunk=5)
    two = generate(model, params, tokenizer, prompts, config=wide, **settings)
    assert [len(each) for each in made] == [1, 2]
    assert all(lane.drawn > 200 for lane in made[1])
    tokens = lambda found: [[sample.tokens for sample in row] for row in found]
    assert tokens(two) == tokens(one)
    assert decode_chunk._cache_size() == programs


@pytest.mark.parametrize(
    ("count", "most", "slots"),
    [
        (1, 300, 64),
        (65, 300, 128),
        (129, 300, 256),
        (257, 300, 320),
        (400, 300, 320),
        (9, 20, 64),
        (140, 150, 256),
    ],
)
def test_a_large_cache_grows_in_powers_of_two_but_not_past_the_longest_row(count, most, slots):
    assert cache_slots(count, most) == slots


def test_a_row_ends_at_its_own_limit(tiny):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=0.9, max_new_tokens=20, batch_size=4, chunk=5)
    settings = {"config": config, "samples": 2, "seed": 5, "eos": []}
    free = generate(model, params, tokenizer, PROMPTS, **settings)
    cut = generate(model, params, tokenizer, PROMPTS, limits=[3, 50, 1, 11], **settings)
    for limit, row, whole in zip([3, 20, 1, 11], cut, free):
        assert [one.tokens for one in row] == [one.tokens[:limit] for one in whole]
        assert {one.finish_reason for one in row} == {"length"}


def test_the_batch_is_refilled_and_says_how_full_it_was(tiny, caplog):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=0.9, max_new_tokens=40, batch_size=8, chunk=5)
    lengths = [40] * 4 + [5] * 12  # of four equal prompts one has long answers
    with caplog.at_level("INFO", logger="imm_jax"):
        generate(
            model, params, tokenizer, PROMPTS * 4, config=config, samples=4, limits=lengths, eos=[]
        )
    tokens = 4 * sum(lengths)
    assert f"{tokens:,} tokens" in caplog.text
    full = int(re.search(r"batch (\d+)% full", caplog.text)[1])
    # Groups of 8 that wait for their longest would be 61 % full: 880 of (4 * 40 + 4 * 5) * 8.
    assert 90 <= full <= 100


def test_bfloat16_weights_err_less_than_a_model_in_bfloat16(tiny, forward):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=0.7, max_new_tokens=24, weights="bfloat16")
    results = generate(model, params, tokenizer, PROMPTS, config=config, samples=2, eos=[])
    narrow = jax.jit(model.clone(dtype=jax.numpy.bfloat16).apply)

    def logprobs(logits, tokens):
        logits = np.float64(logits)
        return logits[np.arange(len(tokens)), tokens] - np.log(np.exp(logits).sum(-1))

    ours, theirs = [], []
    for prompt, samples in zip(PROMPTS, results):
        ids = tokenizer(prompt)["input_ids"]
        for sample in samples:
            padded = np.zeros((1, 160), np.int32)
            whole = [*ids, *sample.tokens]
            padded[0, : len(whole)] = whole
            place = slice(len(ids) - 1, len(whole) - 1)
            exact = logprobs(forward(whole)[place], sample.tokens)
            rounded = logprobs(narrow({"params": params}, padded)[0, place], sample.tokens)
            ours.extend(np.abs(sample.logprobs - exact))
            theirs.extend(np.abs(rounded - exact))
    assert 1e-3 < np.mean(ours) < np.mean(theirs) < 0.3


def test_only_matrices_become_narrow(tiny):
    model, params, _ = tiny
    weights = decode_weights(params, model.dtype, "bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(weights) if x.ndim > 1} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(weights) if x.ndim == 1} == {"float32"}
    assert decode_weights(weights, model.dtype, "bfloat16") is weights


def test_weights_may_be_unstacked_and_of_another_type(tiny):
    model, params, tokenizer = tiny
    config = SamplingConfig(temperature=0.0, max_new_tokens=8)
    ready = decode_weights(params, model.dtype)
    assert isinstance(ready["layers"], list)
    assert decode_weights(ready, model.dtype) is ready
    expected = generate(model, params, tokenizer, PROMPTS, config=config)
    assert generate(model, ready, tokenizer, PROMPTS, config=config) == expected


def test_no_prompts_give_no_samples(tiny):
    assert generate(*tiny, []) == []


def test_should_stop_interrupts(tiny):
    with pytest.raises(Interrupted):
        generate(*tiny, PROMPTS, should_stop=lambda: True)
