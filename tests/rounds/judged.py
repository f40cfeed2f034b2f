"""Samples for rules that ask a model, and a model to ask, made as a round makes it."""

import itertools
from pathlib import Path

import jax

from imm_jax.config import RunConfig
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.judge import MAKERS
from imm_jax.rounds.stages import Later, Stages
from imm_jax.sampling.decode import decode_weights
from imm_jax.settings import build
from imm_jax.tasks.types import Example, Task
from tests.rounds.samples import sample

TASK = Task(
    name="sums",
    train=(
        Example(id="a", question="What is {3} plus 4?", answer="7"),
        Example(id="b", question="Pick one.", answer="B", choices=("red", "blue")),
    ),
    test=(),
)
ROWS = [
    sample("a", 0, "7"),
    sample("a", 1, "8"),
    sample("a", 2, "7"),  # says what the first one says
    sample("b", 0, "B", text="Blue. The answer is (B)."),
]


def asker(aid: str, model: Decoder, params, tokenizer, folder: Path, **settings):
    """``(make, reads)``: makes the judge or scorer anew, and counts how often weights are read."""
    plain = {
        "model": "m",
        "data": {"in_domain": "t", "sample_style": "few_shot"},
        "sampling": {"temperature": 0, "max_new_tokens": 16, "batch_size": 4},
        "block": 2,
    }
    config, reads = build(RunConfig, plain | settings, "test"), itertools.count()

    def weights():
        next(reads)
        return decode_weights(params, model.dtype)

    def make():
        key, stages = jax.random.key(0), Stages(folder)
        return MAKERS[aid](config, model, tokenizer, Later(weights), key, stages, "round 1", None)

    return make, reads
