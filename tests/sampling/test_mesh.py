"""Sampling on 8 devices: the tokens of one device, and no traffic between devices that decode."""

import pytest

from tests.devices import ask

pytestmark = pytest.mark.slow

SAMPLE = """
import re
from imm_jax.sampling import decode
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.engine import generate

class Letters:
    eos_token_id = 0
    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [[ord(letter) % 60 + 1 for letter in text] for text in texts]}
    def decode(self, ids, skip_special_tokens=True):
        return " ".join(map(str, ids))

model = Decoder(dataclasses.replace(LLAMA, tie_word_embeddings=True))
params = jax.tree.map(jnp.asarray, draw(model.config, 0.3))
few = ["why?"]
several = [f"Question number {i}: {'x' * (i % 7)}?" for i in range(23)]  # a prefix that all share

ends = [0, 10, 20, 30]

def sample(params, prompts, temperature, samples):
    config = SamplingConfig(temperature=temperature, max_new_tokens=40, batch_size=64)
    rows = generate(model, params, Letters(), prompts, config=config, samples=samples, eos=ends)
    flat = [one for row in rows for one in row]
    return [one.tokens for one in flat], [one.logprobs for one in flat]

mesh = sharding.make_mesh("data=2,fsdp=4")
many = spread(params, mesh)
for name, prompts, temperature, samples in (
    ("greedy", several, 0.0, 1), ("drawn", several, 0.7, 8), ("one", few, 0.7, 1),
):
    answers[name] = {"alone": sample(params, prompts, temperature, samples)}
    before = decode.keep._cache_size()
    answers[name]["many"] = sample(many, prompts, temperature, samples)

    answers["shrank"] = max(answers.get("shrank", 0), decode.keep._cache_size() - before)

weights = decode.decode_weights(many, model.dtype)
answers["whole weights"] = all(x.is_fully_replicated for x in jax.tree.leaves(weights))
with sharding.on(mesh):
    layers = decode.empty(model, 16, 64)
    keys = layers[0][0]
    answers["cache"] = [list(keys.shape), list(keys.addressable_shards[0].data.shape)]
    zeros = np.zeros(16, np.int32)
    rows = decode.Rows(zeros, zeros, zeros, zeros > 0, np.zeros((16, 2), np.uint32))
    chunk = decode.decode_chunk.lower(
        model, weights, None, layers, rows, 40, 0.7, steps=8, eos=(0,))
    kept = decode.keep.lower(layers, np.zeros((8, 1), np.int32))
    grown = decode.grow.lower(layers, 128)
answers["traffic"] = {
    name: re.findall(r"= (\\S+) (?:all-|reduce-scatter|collective)", lowered.compile().as_text())
    for name, lowered in (("decode", chunk), ("keep", kept), ("grow", grown))}
"""


@pytest.fixture(scope="module")
def found():
    return ask(SAMPLE)


@pytest.mark.parametrize("name", ["greedy", "drawn", "one"])
def test_samples_do_not_depend_on_the_number_of_devices(found, name):
    (alone, logprobs), (many, others) = found[name]["alone"], found[name]["many"]
    assert many == alone
    for one, two in zip(logprobs, others):
        assert one == pytest.approx(two, abs=1e-4)


def test_the_samples_compared_are_of_many_kinds(found):
    drawn = [tuple(one) for one in found["drawn"]["alone"][0]]
    assert len(drawn) == 184 and len(set(drawn)) > 100
    assert len({len(one) for one in drawn}) > 5
    assert found["shrank"] == 1  # some ended early


def test_rows_are_split_and_weights_are_whole(found):
    assert found["whole weights"]
    whole, part = found["cache"]
    assert whole == [16, 2, 8, 64] and part == [2, 2, 8, 64]


def test_devices_that_decode_exchange_one_bit_a_step(found):
    assert found["traffic"] == {"decode": ["pred[]"], "keep": [], "grow": []}
