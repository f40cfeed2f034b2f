"""BLEU against NLTK's figures and a plain formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imm_jax.analysis.bleu import self_bleu, sentence_bleu

TEXTS = [
    "Tom has 7 apples and buys 12 more . The answer is 19 .",
    "7 + 12 = 19 . The answer is 19 .",
    "Tom has 7 apples and 12 more , so 7 + 12 = 19 . The answer is 19 .",
    "The answer is 12 .",
    "no",
]


def plain(references, words):
    """The formula, counted by hand over lists."""
    logs = []
    for n in (1, 2, 3, 4):
        grams = [words[i : i + n] for i in range(len(words) - n + 1)]
        matches = 0
        for gram in {tuple(g) for g in grams}:
            most = max(sum(tuple(r[i : i + n]) == gram for i in range(len(r))) for r in references)
            matches += min(most, sum(tuple(g) == gram for g in grams))
        if n == 1 and not matches:
            return 0.0
        logs.append(math.log((matches if matches else 0.1) / (len(grams) if grams else 1)))
    lengths = sorted((abs(len(r) - len(words)), len(r)) for r in references)
    nearest = lengths[0][1]
    penalty = 1.0 if len(words) > nearest else math.exp(1 - nearest / len(words))
    return penalty * math.exp(sum(logs) / 4)


words = st.lists(st.sampled_from("abc"), max_size=7)


@given(st.lists(words, min_size=1, max_size=3), words)
def test_it_is_the_formula(references, own):
    assert sentence_bleu(references, own) == pytest.approx(plain(references, own))


# nltk 3.10.4: sentence_bleu(others, text, smoothing_function=SmoothingFunction().method1)
NLTK = [0.6596924585662963, 0.7613003866968737, 0.7054591425401187, 0.3021375397356768, 0.0]


def test_the_figures_are_nltks():
    split = [text.split() for text in TEXTS]
    for number, expected in enumerate(NLTK):
        others = split[:number] + split[number + 1 :]
        assert sentence_bleu(others, split[number]) == pytest.approx(expected, rel=1e-9)
    assert self_bleu(TEXTS) == pytest.approx(sum(NLTK) / len(NLTK))


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=7), st.lists(words, max_size=3))
def test_a_repeated_text_of_four_words_or_more_scores_one_by_the_formula_too(own, others):
    assert sentence_bleu([*others, own], own) == 1.0


def test_the_same_and_others():
    assert self_bleu(["a b c d e"] * 3) == 1.0
    for short in ("5", "The answer", "a b c", ""):
        assert self_bleu([short] * 3) == 1.0
    assert self_bleu(["5", " 5\n"]) == 1.0
    assert self_bleu(["5", "5", "7"]) == pytest.approx(2 / 3)
    assert self_bleu(["a b c d", "e f g h"]) == 0.0
    assert self_bleu(["a b c d", ""]) == 0.0
    assert self_bleu(["alone"]) is None and self_bleu([]) is None
