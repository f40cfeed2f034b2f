"""Self-verification with a judge made by hand, and with a model."""

import logging

import pytest

from imm_jax.errors import InputError
from imm_jax.files import read_jsonl
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.rules import Aids
from imm_jax.rounds.select import select
from imm_jax.rounds.self_verification import self_verify, utilities
from imm_jax.select_config import SelectConfig
from imm_jax.tasks.types import Example
from tests.answering import ANSWER, params_of
from tests.rounds.judged import ROWS, TASK, asker
from tests.rounds.samples import names

YES, NO = "It adds up. The answer is correct.", "It does not. The answer is incorrect."
VERDICTS = {"a/0": [YES, YES, NO, YES], "a/1": [NO, YES, YES, "Well."], "b/0": [NO, "", NO, YES]}


class Judge:
    def __init__(self):
        self.asked = []

    def __call__(self, name, asked):
        self.asked += asked
        return [VERDICTS[example.id.removeprefix("verify/")] for example in asked]


def test_utilities_are_shares_of_verdicts():
    judge = Judge()
    assert utilities(ROWS, Aids(task=TASK, judge=judge)) == [3 / 4, 2 / 4, 3 / 4, 1 / 4]
    # Each text is judged once.
    assert len(judge.asked) == 3 and len({example.id for example in judge.asked}) == 3
    assert "What is {3} plus 4?" in judge.asked[0].question
    assert "The answer is 7." in judge.asked[0].question
    assert "(A) red\n(B) blue" in judge.asked[2].question


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("The answer is correct.", 1),
        ("the answer is: **Correct**", 1),
        ("The answer is correct because 3 + 4 = 7.", 1),
        ("The answer is correct, since 3 + 4 = 7", 1),
        ("The answer is indeed correct.", 1),
        ("The final answer is\n\ncorrect", 1),
        ("3 + 4 = 7, so the answer is 7. The answer is correct.", 1),
        ("At first the answer is incorrect. No: 3 + 4 = 7. The answer is correct.", 1),
        ("The answer is correct? 3 + 4 = 7, not 8. The answer is incorrect.", 0),
        ("The answer is not correct.", 0),
        ("The answer is incorrect, as 3 + 4 = 7.", 0),
        ("Let us see whether the answer is correct.", 0),
        ("The answer is almost correct.", 0),
        ("I don't think that the answer is correct.", 0),
        ("I don’t believe the answer is correct", 0),
        ("It is unlikely that the final answer is correct.", 0),
        ("I doubt that the answer is correct.", 0),
        ("There is no doubt that the answer is correct.", 1),
        ("It is not 8, the answer is correct.", 1),
        ("The steps do not add up. No, they do: the answer is correct.", 1),
        ("This does not matter and the answer is correct.", 1),
        ("The solution is correct.", 1),
        ("The proposed solution is correct.", 1),
        ("The answer 5 is correct.", 1),
        ("The answer of $7.50 is right.", 1),
        ("It adds up.\nAnswer: correct", 1),
        ("**Verdict:** Incorrect", 0),
        ("The solution is wrong.", 0),
        ("The answer is not right.", 0),
        ("Let us check if the solution is right.", 0),
        ("Let us see whether the final answer is correct.", 0),
        ("Tell me whether your answer is correct.", 0),
        ("This solution is correct up to here. The final answer is wrong.", 0),
        ("The answer is correctable.", 0),
        ("The answer is 7.", 0),
        ("Correct.", 0),
        ("", 0),
    ],
)
def test_what_counts_as_a_verdict(response, right):
    judge = lambda name, asked: [[response] for _ in asked]
    assert utilities(ROWS[:1], Aids(task=TASK, judge=judge)) == [right]


@pytest.mark.parametrize(
    ("least", "kept"),
    [
        (None, ["a0", "a1", "a2"]),
        (0.0, ["a0", "a1", "a2", "b0"]),
        (0.6, ["a0", "a2"]),
        (0.75, ["a0", "a2"]),
        (0.8, []),
    ],
)
def test_a_threshold_on_the_utility(least, kept):
    config = SelectConfig(rule="self_verify", min_share=least)
    assert names(self_verify(ROWS, config, Aids(task=TASK, judge=Judge()))) == kept


def test_in_the_selection():
    config = SelectConfig(rule="self_verify", samples_per_question=1)
    assert names(select(ROWS, config, Judge(), TASK)) == ["a0"]
    with pytest.raises(InputError, match="none of 4 samples passes the rule 'self_verify'"):
        select(ROWS, SelectConfig(rule="self_verify", min_share=1.0), Judge(), TASK)


def test_a_sample_without_verdicts_does_not_pass():
    def silent(name, asked):
        return [[] for _ in asked]

    assert utilities(ROWS, Aids(task=TASK, judge=silent)) == [0.0] * 4


def test_the_model_as_a_judge(tiny_config, random_params, tiny_tokenizer, tmp_path, caplog):
    """It says " The answer is 7." to all that it has room for; what it said is kept in blocks."""
    config = tiny_config("llama", tie_word_embeddings=False, max_position_embeddings=128)
    model, params = Decoder(config), params_of(config, random_params, tiny_tokenizer)
    settings = {"select": {"judge_samples": 2}}
    make, reads = asker("judge", model, params, tiny_tokenizer, tmp_path, **settings)
    asked = [Example(id=f"q{i}", question="Is it right? " * i, answer="") for i in (1, 99, 2)]
    with caplog.at_level(logging.WARNING, "imm_jax"):
        said = make()("verify", asked)
    assert said == [[ANSWER] * 2, [], [ANSWER] * 2]
    assert "1 prompts exceed the context" in caplog.text
    kept = [read_jsonl(tmp_path / f"judge/verify-0000{i}.jsonl") for i in (0, 1)]
    assert [[row["id"] for row in rows] for rows in kept] == [["q1", "q99"], ["q2"]]
    # A judge made anew reads what was kept.
    assert make()("verify", asked) == said and next(reads) == 1
