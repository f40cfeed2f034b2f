"""Diversity against counting by hand and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from imm_jax.analysis.diversity import (
    answer_entropy,
    collapse_rows,
    distinct_n,
    diversity,
    rounds_to_collapse,
)
from tests.rounds.samples import sample, samples


def brute_force(texts, n):
    seen, total = [], 0
    for text in texts:
        words = text.split()
        for start in range(len(words)):
            gram = words[start : start + n]
            if len(gram) == n:
                total += 1
                if gram not in seen:
                    seen.append(gram)
    return len(seen) / total if total else 0.0


@given(st.lists(st.text("ab \n", max_size=12), max_size=5), st.integers(1, 4))
def test_it_is_the_share_of_distinct_grams(texts, n):
    assert distinct_n(texts, n) == brute_force(texts, n)


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["a b a b"], 1, 2 / 4),
        (["a b a b"], 2, 2 / 3),
        (["a b", "a b"], 2, 1 / 2),
        (["a b", "b a"], 2, 1.0),
        (["a  \n b"], 2, 1.0),
        (["word"], 2, 0.0),
        ([], 1, 0.0),
    ],
)
def test_by_hand(texts, n, share):
    assert distinct_n(texts, n) == share


def test_grams_do_not_cross_texts():
    assert distinct_n(["a b", "c d"], 2) == 1.0
    assert distinct_n(["a", "b", "c"], 2) == 0.0


def test_answer_entropy_is_that_of_the_shares():
    groups = [samples(a="AAAA"), samples(b="Aabb"), samples(c="xyz."), samples(d="....")]
    expected = [0.0, entropy([2, 2]), entropy([1] * 4), 0.0]
    assert answer_entropy(groups) == pytest.approx(np.mean(expected))
    assert math.copysign(1, answer_entropy(groups[:1])) == 1.0


def test_figures_of_a_round():
    rows = [
        sample("a", 0, "1", text="one  and\none", correct=True, logprob=-3.0, tokens=4),
        sample("a", 1, "1", text="one and one", correct=True, logprob=-1.0, tokens=4),
        sample("b", 0, "1", text="one and one", correct=True, logprob=-2.0, tokens=1),
        sample("b", 1, "2", text="two", logprob=-4.0, tokens=1),
    ]
    found = diversity(rows)
    assert (found.samples, found.questions, found.correct) == (4, 2, 3)
    assert found.unique_correct == 2  # the same text to another question is another solution
    assert found.token_entropy == pytest.approx(10 / 10)
    assert found.answer_entropy == pytest.approx(math.log(2) / 2)
    assert (found.distinct_1, found.distinct_2) == (3 / 10, 2 / 6)
    assert found.pass_at_k == {1: 3 / 4, 2: 1.0}
    # The texts of a are the same words; those of b share none.
    assert found.self_bleu == (1.0 + 0.0) / 2
    one = diversity(rows[:1])
    assert one.self_bleu is None and one.pass_at_k == {1: 1.0}


@pytest.mark.parametrize(
    ("values", "rounds"),
    [
        ([8, 7, 3, 2], 3),
        ([8, 3, 4, 3], 4),  # 4 is no less than half of 8: the dip before it does not count
        ([8, 3, 5], None),
        ([8, 8, 4], None),
        ([8], None),
        ([0, 0, 0], None),
        ([8, 3, 3], 2),
    ],
)
def test_rounds_to_collapse(values, rounds):
    assert rounds_to_collapse(values) == rounds


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6), st.floats(0.1, 1))
def test_collapse_lasts_to_the_end(values, share):
    below = [value < share * values[0] for value in values]
    found = rounds_to_collapse(values, share)
    starts = [t for t in range(1, len(values) + 1) if all(below[t - 1 :])]
    assert found == (starts[0] if starts else None)


def test_collapse_of_each_seed_arm_and_figure():
    row = lambda seed, arm, distinct, bleu, right: {
        "seed": seed, "arm": arm, "distinct_2": distinct, "self_bleu": bleu,
        "answer_entropy": 1.0, "token_entropy": 0.0, "unique_correct": right,
    }  # fmt: skip
    rows = [
        row(0, "vanilla", 0.8, 0.2, 9), row(0, "imm", 0.8, None, 9),
        row(0, "vanilla", 0.5, 0.7, 4), row(0, "imm", 0.3, 0.4, 9),
    ]  # fmt: skip
    found = {(r["arm"], r["figure"]): r["rounds"] for r in collapse_rows(rows)}
    assert found["vanilla", "distinct_2"] is None and found["imm", "distinct_2"] == 2
    assert found["vanilla", "self_bleu"] == 2  # 1 - 0.7 is below half of 1 - 0.2
    assert ("imm", "self_bleu") not in found  # one sample a question has none
    assert found["vanilla", "unique_correct"] == 2 and found["vanilla", "token_entropy"] is None
