"""Selection rules, by hand."""

import pytest

from imm_jax.rounds.rules import (
    Aids,
    by_question,
    correct,
    finished,
    majority_vote,
    math_verify,
    sharpening,
)
from imm_jax.select_config import SelectConfig
from imm_jax.tasks.types import Example, Task
from tests.rounds.samples import names, sample, samples

DEFAULT = SelectConfig()


def task(answer_type: str = "number", **gold: str) -> Task:
    examples = (Example(id=name, question="?", answer=answer) for name, answer in gold.items())
    return Task(name="t", train=tuple(examples), test=(), answer_type=answer_type)


def test_correct_is_the_gold_answer():
    assert names(correct(samples(a="Ab.", b="xx", c="C"), DEFAULT, Aids())) == ["a0", "c0"]


def test_finished_states_an_answer_and_ends():
    rows = [sample("a", 0, "7"), sample("a", 1), sample("a", 2, "7", reason="length")]
    assert names(finished(rows, DEFAULT, Aids())) == ["a0"]


def test_samples_stay_in_their_order_by_question():
    rows = samples(b="xy", a="z")
    assert {name: names(group) for name, group in by_question(rows).items()} == {
        "b": ["b0", "b1"],
        "a": ["a0"],
    }


class Equal:
    """Stands in for math-verify: equal where Python says so."""

    def __init__(self):
        self.asked = []

    def equivalent(self, pairs):
        self.asked += pairs
        return [eval(a) == eval(b) for a, b in pairs]


def test_math_verify_asks_only_what_is_open():
    rows = [
        sample("a", 0, "1/2", correct=True),
        sample("a", 1, "2**-1"),
        sample("a", 2),
        sample("b", 0, "3"),
        sample("b", 1, "2**2"),
    ]
    verifier = Equal()
    found = math_verify(rows, DEFAULT, Aids(task=task(a="1/2", b="4")), verifier=verifier)
    assert names(found) == ["a0", "a1", "b1"]
    assert verifier.asked == [("1/2", "2**-1"), ("4", "3"), ("4", "2**2")]


def test_math_verify_itself():
    pytest.importorskip("math_verify")
    rows = [sample("a", 0, "2^{-1}"), sample("a", 1, "0.4")]
    assert names(math_verify(rows, DEFAULT, Aids(task=task(a="1/2")))) == ["a0"]


def test_majority_vote():
    rows = samples(a="xyyx", b="x.YY", c="...", d="xyz", e="yx")
    # a: a tie, x was first. c: no vote. d and e: all alike common, the first.
    assert names(majority_vote(rows, DEFAULT, Aids())) == ["a0", "a3", "b2", "b3", "d0", "e0"]
    half = SelectConfig(min_share=0.5)
    assert names(majority_vote(rows, half, Aids())) == ["a0", "a3", "b2", "b3", "e0"]
    more = SelectConfig(min_share=0.51)
    assert majority_vote(rows, more, Aids()) == []


def test_majority_vote_reads_no_verdict():
    """The same votes with every verdict turned around."""
    one, other = samples(a="xYY", b="Xyy"), samples(a="Xyy", b="xYY")
    kept = (names(majority_vote(rows, DEFAULT, Aids())) for rows in (one, other))
    assert len(set(map(tuple, kept))) == 1


def test_majority_vote_compares_as_the_task_does():
    rows = [sample("a", 0, "3"), sample("a", 1, "1/2"), sample("a", 2, "0.5")]
    assert names(majority_vote(rows, DEFAULT, Aids())) == ["a0"]
    aids = Aids(task=task("math", a="1/2"))
    assert names(majority_vote(rows, DEFAULT, aids)) == ["a1", "a2"]


def test_sharpening_takes_the_likeliest():
    rows = [
        sample("a", 0, "1", logprob=-6.0, tokens=3),  # -2 a token
        sample("a", 1, "2", logprob=-9.0, tokens=9),  # -1 a token
        sample("a", 2, "3", logprob=-6.0, tokens=2),
        sample("b", 0, None, logprob=-1.0, tokens=8, reason="length"),  # not a whole answer
        sample("b", 1, None, logprob=-8.0, tokens=8),
        sample("c", 0, "1", logprob=-1.0, reason="length"),
    ]
    assert names(sharpening(rows, DEFAULT, Aids())) == ["a0", "b1"]
    assert names(sharpening(rows, SelectConfig(length_normalised=True), Aids())) == ["a1", "b1"]
