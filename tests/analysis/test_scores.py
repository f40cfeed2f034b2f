"""Scores of answers made by hand."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from imm_jax.analysis.scores import (
    compare,
    compare_tasks,
    comparison_table,
    mean_score,
    score_answers,
    score_choices,
    score_table,
    verdicts,
)
from imm_jax.choices import ChoiceAnswer
from imm_jax.evaluation import Answer


def answers(**questions: str) -> list[Answer]:
    """A letter a sample; upper case is right, ``.`` is no answer, ``!`` one that was cut off."""
    return [
        Answer(
            id=name,
            sample=number,
            text=letter,
            answer=letter.lower() if letter.isalpha() else None,
            correct=letter.isupper(),
            tokens=1,
            logprob=0.0,
            finish_reason="length" if letter == "!" else "stop",
        )
        for name, letters in questions.items()
        for number, letter in enumerate(letters)
    ]


# Right: 2, 1, 0, 2 of 4. Majorities: A (right), b (wrong), none, a tie that x, the first, wins.
ROWS = answers(one="AbAc", two="bbA.", three="..!.", four="xxAA")


def test_pass_at_k_and_majority_by_counting():
    found = score_answers(ROWS, "number")
    assert (found.questions, found.samples, found.truncated) == (4, 4, 1 / 16)
    assert found.accuracy == 5 / 16
    rows = [[a.correct for a in ROWS[i : i + 4]] for i in range(0, 16, 4)]
    for k in (1, 2, 4):
        draws = [np.mean([any(d) for d in itertools.combinations(row, k)]) for row in rows]
        assert found.pass_at_k[k] == pytest.approx(np.mean(draws))
        # The chance of each mean of four questions drawn again, counted.
        values = [np.mean([any(d) for d in itertools.combinations(row, k)]) for row in rows]
        means = np.sort([np.mean(draw) for draw in itertools.product(values, repeat=4)])
        expected = np.quantile(means, [0.025, 0.975])
        np.testing.assert_allclose(found.pass_at_k_interval[k], expected, atol=0.05)
    assert list(found.pass_at_k) == [1, 2, 4] and found.pass_at_k[1] == found.accuracy
    assert verdicts(ROWS, "number") == {"one": True, "two": False, "three": False, "four": False}
    interval = binomtest(1, 4).proportion_ci(method="wilson")
    assert found.majority == pytest.approx((0.25, interval.low, interval.high))


def test_equal_answers_vote_together():
    stated = [("3", False), ("1/2", True), ("0.5", True)]
    rows = [
        dataclasses.replace(row, answer=answer, correct=right)
        for row, (answer, right) in zip(answers(one="abc"), stated)
    ]
    assert verdicts(rows, "math") == {"one": True}
    assert verdicts(rows, "text") == {"one": False}


def test_one_sample_a_question():
    found = score_answers(answers(one="A", two="b", three="."), "number")
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.pass_at_k == {} and found.majority is None
    assert verdicts(answers(one="A", two="b", three="."), "number") == {
        "one": True,
        "two": False,
        "three": False,
    }


def test_options():
    rows = [
        ChoiceAnswer(id="a", logprobs=(-4.0, -6.0), lengths=(2, 6), gold=0),
        ChoiceAnswer(id="b", logprobs=(-4.0, -6.0), lengths=(2, 6), gold=1),
        ChoiceAnswer(id="c", logprobs=(-3.0, -9.0), lengths=(6, 6), gold=0),
    ]
    found = score_choices(rows)
    assert found.accuracy == pytest.approx(2 / 3) and found.questions == 3
    assert found.normalised.accuracy == pytest.approx(2 / 3)
    interval = binomtest(2, 3).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_the_mean_weighs_tasks_alike():
    scores = [score_answers(answers(**rows), "number") for rows in
              ({"a": "A"}, {"a": "b", "b": "b", "c": "b"})]  # fmt: skip
    found = mean_score(scores)
    assert found.accuracy == 0.5 and found.low < 0.5 < found.high


def test_two_models_are_compared_by_question():
    first = {"a": True, "b": True, "c": True, "d": False, "e": True, "f": True}
    second = {"f": False, "e": False, "d": False, "c": True, "b": False, "a": False}
    found = compare(first, second)
    assert found[:5] == (1, 4, 0, 1, 2 / 16)
    assert found.difference == pytest.approx(4 / 6)
    # Four of six questions differ: a binomial's quantiles, in sixths.
    assert (found.low, found.high) == pytest.approx((2 / 6, 1))
    back = compare(second, first)
    assert back[:5] == (1, 0, 4, 1, 2 / 16)
    assert (back.difference, back.low, back.high) == pytest.approx((-4 / 6, -1, -2 / 6))
    with pytest.raises(ValueError, match="same questions"):
        compare(first, {"a": True})
    assert comparison_table({"sums": found}).splitlines()[1].split() == [
        "sums", "1", "4", "0", "1", "0.1250", "+0.667", "[+0.333,", "+1.000]"]  # fmt: skip


def test_over_several_tasks_each_weighs_the_same():
    first = {"sums": {"a": True, "b": True, "c": False, "d": False}, "dates": {"a": True}}
    second = {"sums": dict.fromkeys("abcd", False), "dates": {"a": True}}
    found = compare_tasks(first, second)
    assert found[:5] == (1, 2, 0, 2, 0.5)
    assert found.difference == 0.25 and found.low == 0 and found.high == 0.5
    with pytest.raises(ValueError, match="same questions"):
        compare_tasks(first, {"sums": second["sums"]})


def test_the_table_has_the_columns_that_the_scores_have():
    many, one = score_answers(ROWS, "number"), score_answers(answers(a="A"), "number")
    lines = score_table({"sums": many, "dates": many}).splitlines()
    assert lines[0].split()[-5:] == ["pass@2", "pass@4", "majority", "truncated", "unread"]
    # Without a right one among two draws: 1/6, 1/2, 1, 1/6.
    words = lines[1].split()
    shares = ["0.062", "0.312"]  # five of the 16 say nothing
    assert [words[i] for i in (-11, -8, -5, -2, -1)] == ["0.542", "0.750", "0.250", *shares]
    low, high = many.pass_at_k_interval[4]
    assert words[-7:-5] == [f"[{low:.3f},", f"{high:.3f}]"]
    assert words[-4:-2] == [f"[{many.majority.low:.3f},", f"{many.majority.high:.3f}]"]
    assert lines[3].split()[:2] == ["mean", "0.312"]
    assert len(score_table({"sums": one}).splitlines()) == 2
