"""The ensemble of critics: with a scorer made by hand, and with a model."""

import itertools
import logging
import math

import numpy as np
import pytest

from imm_jax.errors import InputError
from imm_jax.files import read_jsonl
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.critics import approvals, n_critics
from imm_jax.rounds.rules import Aids
from imm_jax.rounds.select import select
from imm_jax.select_config import CRITICS, SelectConfig
from imm_jax.settings import build
from imm_jax.tasks.types import Example
from tests.rounds.judged import ROWS, TASK, asker
from tests.rounds.samples import names

YES, NO, TIE, UNASKED = [-0.1, -2.0], [-2.0, -0.1], [-1.0, -1.0], []
# What each of four critics makes of a/0, a/1 and b/0.
VERDICTS = [(YES, YES, NO), (YES, NO, NO), (YES, TIE, YES), (NO, YES, UNASKED)]


class Scorer:
    def __init__(self):
        self.asked = {}

    def __call__(self, name, asked):
        self.asked[name] = asked
        return VERDICTS[len(self.asked) - 1]


def test_approvals_are_shares_of_critics():
    scorer = Scorer()
    assert approvals(ROWS, tuple(CRITICS), Aids(task=TASK, scorer=scorer)) == [
        3 / 4,
        2 / 4,
        3 / 4,
        1 / 4,
    ]
    # Each critic reads each text once, and all it reads is of its own id.
    assert [len(asked) for asked in scorer.asked.values()] == [3, 3, 3, 3]
    everything = list(itertools.chain(*scorer.asked.values()))
    assert len({example.id for example in everything}) == 12
    for (name, asked), critic in zip(scorer.asked.items(), CRITICS.values(), strict=True):
        assert all(f"{critic} Answer Yes or No." in example.question for example in asked), name
    assert "What is {3} plus 4?" in everything[0].question
    assert "The answer is 7." in everything[0].question
    assert "(A) red\n(B) blue" in everything[2].question
    assert all(example.choices == ("Yes", "No") for example in everything)


@pytest.mark.parametrize(
    ("least", "kept"),
    [
        (None, ["a0", "a1", "a2"]),
        (0.0, ["a0", "a1", "a2", "b0"]),
        (0.75, ["a0", "a2"]),
        (0.76, []),
    ],
)
def test_a_threshold_on_the_share(least, kept):
    config = SelectConfig(rule="n_critics", min_share=least)
    assert names(n_critics(ROWS, config, Aids(task=TASK, scorer=Scorer()))) == kept


def test_critics_of_ones_own():
    critics = ("arithmetic", "Would a {teacher} accept it?")
    scorer = Scorer()
    config = SelectConfig(rule="n_critics", critics=critics, min_share=1.0)
    assert names(select(ROWS, config, task=TASK, scorer=scorer)) == ["a0"]  # a2 is the same text
    asked = [examples[0].question for examples in scorer.asked.values()]
    assert CRITICS["arithmetic"] in asked[0] and "Would a {teacher} accept it? Answer" in asked[1]


@pytest.mark.parametrize(
    ("critics", "message"),
    [
        ([], r"critics: \[\], expected one or more"),
        (["steps", "steps"], "expected one or more that are not the same"),
        (["step"], "critics: 'step' is unknown.*steps.*expected one of answer, steps"),
        ([" "], "critics: ' ' is unknown"),
    ],
)
def test_wrong_critics_are_refused(critics, message):
    with pytest.raises(InputError, match=message):
        build(SelectConfig, {"rule": "n_critics", "critics": critics}, "test")


def test_without_a_scorer_it_is_refused():
    with pytest.raises(InputError, match="'n_critics' needs a scorer"):
        select(ROWS, SelectConfig(rule="n_critics"), task=TASK)


def test_the_model_as_a_scorer(tiny_config, random_params, tiny_tokenizer, tmp_path, caplog):
    """Its scores are the log-probabilities of a plain forward pass; they are kept in blocks."""
    config = tiny_config("llama", max_position_embeddings=128)
    model, params = Decoder(config), random_params(config)
    settings = {"sampling": {"max_new_tokens": 16, "batch_size": 3}}  # four options, then two
    make, reads = asker("scorer", model, params, tiny_tokenizer, tmp_path, **settings)
    asked = [
        Example(id=f"q{i}", question="Is it right? " * i, answer="A", choices=("Yes", "No"))
        for i in (1, 99, 2)
    ]
    with caplog.at_level(logging.WARNING, "imm_jax"):
        scored = make()("critic-0", asked)
    assert scored[1] == [] and "1 prompts exceed the context" in caplog.text
    for example, found in zip(asked, scored):
        for text, logprob in zip(example.choices, found):
            prompt = tiny_tokenizer.encode(f"Question: {example.question}\nAnswer:")
            whole = tiny_tokenizer.encode(f"Question: {example.question}\nAnswer: {text}")
            assert whole[: len(prompt)] == prompt
            logits = model.apply({"params": params}, np.array([whole]))[0]
            logits = np.asarray(logits, np.float64)
            places = range(len(prompt), len(whole))
            expected = sum(
                logits[i - 1][whole[i]] - np.logaddexp.reduce(logits[i - 1]) for i in places
            )
            assert math.isclose(logprob, expected, abs_tol=1e-4)
    kept = [read_jsonl(tmp_path / f"judge/critic-0-0000{i}.jsonl") for i in (0, 1)]
    assert [[row["id"] for row in rows] for rows in kept] == [["q1", "q99"], ["q2"]]
    # A scorer made anew reads what was kept.
    assert make()("critic-0", asked) == scored and next(reads) == 1
