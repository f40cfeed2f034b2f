"""Comparisons of arms and their sentences, from verdicts made by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest

from imm_jax.analysis.verdict import compare_paired, sentence, signed


def verdicts(*seeds: dict[str, str]) -> dict:
    """``verdicts({"sums": "110"})``: a seed a dict, a digit a question."""
    return {
        seed: {
            task: {f"q{i}": digit == "1" for i, digit in enumerate(digits)}
            for task, digits in tasks.items()
        }
        for seed, tasks in enumerate(seeds)
    }


def test_counts_and_means():
    first = verdicts({"sums": "1111", "dates": "1100", "words": "11"})
    second = verdicts({"sums": "0000", "dates": "1010", "words": "00"})
    found = compare_paired(first, second, ["dates", "words"])
    # Each task weighs the same: 0.5 and 1 against 0.5 and 0.
    assert (found.first, found.second, found.difference) == (0.75, 0.25, 0.5)
    assert (found.only_first, found.only_second) == (3, 1)
    assert (found.questions, found.tasks, found.seeds) == (6, 2, 1)
    assert found.p_value == pytest.approx(binomtest(3, 4).pvalue)
    assert found.low <= 0.5 <= found.high


def test_questions_that_one_did_not_answer_are_left_out():
    first, second = verdicts({"sums": "1111"}), verdicts({"sums": "01"})
    found = compare_paired(first, second, ["sums"])
    assert found.questions == 2 and found.difference == 0.5
    assert compare_paired(first, second, ["dates"]) is None
    assert compare_paired(first, {}, ["sums"]) is None
    assert compare_paired(first, second, []) is None


def test_seeds_are_paired():
    first = verdicts({"sums": "11"}, {"sums": "10"}, {"sums": "11"})
    second = verdicts({"sums": "00"}, {"sums": "10"})
    found = compare_paired(first, second, ["sums"])
    assert (found.seeds, found.difference, found.p_value) == (2, 0.5, None)
    assert (found.first, found.second) == (0.75, 0.25)


@pytest.mark.parametrize(
    ("first", "second", "word", "clear"),
    [
        ("1" * 30 + "0" * 30, "0" * 60, "higher than", True),
        ("0" * 60, "1" * 30 + "0" * 30, "lower than", True),
        ("10" * 30, "01" * 30, "not distinguishable from", False),
        # Five for one and none for the other: the interval leaves out 0, p = 2 / 32 does not.
        ("1" * 5 + "0" * 30, "0" * 35, "not clearly different from", False),
    ],
)
def test_the_word_says_no_more_than_the_tests(first, second, word, clear):
    found = compare_paired(verdicts({"sums": first}), verdicts({"sums": second}), ["sums"])
    assert found.word == word and found.clear is clear
    text = sentence("imm", "vanilla", "in-domain accuracy", 3, found)
    assert text.startswith(f"imm's in-domain accuracy after round 3 is {word} vanilla's: ")
    assert f"difference {signed(found.difference)}" in text
    assert f"interval {signed(found.low)} to {signed(found.high)}, McNemar's exact p = " in text
    assert text.endswith(f"({len(first)} questions, 1 seed).")


def test_models_that_are_right_on_the_same_questions():
    same = verdicts({"sums": "1100", "dates": "1000"})
    found = compare_paired(same, same, ["sums", "dates"])
    assert found.alike and found.word == "not distinguishable from"
    assert sentence("imm", "vanilla", "accuracy", 1, found) == (
        "imm's accuracy after round 1 is not distinguishable from vanilla's: both answer the same "
        "questions right (0.375 each; 8 questions, 2 tasks, 1 seed)."
    )


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Paired questions whose true difference is 0.1; 95 % intervals miss it in about one of 20."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        pairs = rng.choice(4, 150, p=[0.3, 0.2, 0.1, 0.4])  # both, first alone, second alone, none
        first = verdicts({"sums": "".join("1" if pair in (0, 1) else "0" for pair in pairs)})
        second = verdicts({"sums": "".join("1" if pair in (0, 2) else "0" for pair in pairs)})
        found = compare_paired(first, second, ["sums"])
        missed += not found.low <= 0.1 <= found.high
    assert 2 <= missed <= 22  # Binomial(200, 0.05) beyond 3 standard deviations, and then some


def test_signs():
    assert [signed(value) for value in (0.0124, -0.5, 0.0, -0.0001)] == [
        "+0.012",
        "−0.500",
        "0.000",
        "0.000",
    ]
