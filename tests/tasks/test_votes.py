"""Equal answers and votes, by hand."""

import pytest

from imm_jax.tasks.votes import majority, same_answers


class Equal:
    """Stands in for math-verify: two answers are equal where their values are."""

    def __init__(self, values):
        self.values, self.asked = values, []

    def equivalent(self, pairs):
        self.asked += pairs
        return [self.values[a] == self.values[b] for a, b in pairs]


def test_canonical_answers_are_equal_as_text():
    questions = [["7", None, "8", "7"], [None, None], []]
    assert same_answers("number", questions) == [[0, None, 2, 0], [None, None], []]
    assert same_answers("choice", [["B", "A", "B"]]) == [[0, 1, 0]]


def test_mathematics_is_compared():
    half = [r"\frac{1}{2}", "0.5", "1/3", None, "sin(pi/6)"]
    verifier = Equal({"sin(pi/6)": 0.5, r"\frac{1}{2}": 0.5, "0.5": 0.5, "1/3": 1 / 3, "x": 9})
    assert same_answers("math", [half, ["x", "x"]], verifier=verifier) == [
        [0, 0, 2, None, 0],
        [0, 0],
    ]
    # The rules alone know that 1/2 is 0.5, and that x is x.
    assert (r"\frac{1}{2}", "0.5") not in verifier.asked
    assert all("x" not in pair for pair in verifier.asked)
    assert len(verifier.asked) == len(set(verifier.asked))


def test_mathematics_by_math_verify():
    pytest.importorskip("math_verify")
    assert same_answers("math", [["2x+2", "2(x+1)", "x+1"]]) == [[0, 0, 2]]


@pytest.mark.parametrize(
    ("places", "winners", "share"),
    [
        ([0, 1, 1], (1, 2), 2 / 3),
        ([0, 0, 0, 0], (0, 1, 2, 3), 1.0),
        ([0, None, None], (0,), 1 / 3),  # no answer is no vote, but it counts in the share
        ([0, 1, 1, 0], (0, 3), 1 / 2),  # of two the first given
        ([None, 1, 2], (1,), 1 / 3),
        ([None, None], (), 0.0),
        ([], (), 0.0),
    ],
)
def test_the_majority(places, winners, share):
    assert majority(places) == (winners, share)
