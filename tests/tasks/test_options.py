"""Which option a response names, where it is not plain: hedged, refused, worked out, unmarked."""

import time

import pytest

from imm_jax.tasks.answers import extract

FRUITS = ("a pear", "the plum", "fig", "fig jam")
YES_NO = ("Yes", "No")
SUMS = ("5", "10", "15", "20")

# rule, response, choices, expected
NAMED = [
    # Two options are none, and a refused one does not count.
    ("first", "The answer is A or B.", FRUITS, None),
    ("first", "The answer is A, B and C.", FRUITS, None),
    ("first", "The answer is A, B, and C.", FRUITS, None),
    ("first", "The answer is A/B.", FRUITS, None),
    ("first", "The answer is (A) or (B).", FRUITS, None),
    ("first", "The answer is either (a) or (b).", FRUITS, None),
    ("first", "The answer is (A) and (B).", FRUITS, None),
    ("first", "The answer is a pear or a plum.", FRUITS, None),
    ("first", "The answer is fig jam or fig.", FRUITS, None),
    ("first", "The answer is fig and the plum.", FRUITS, None),
    ("first", "The answer is A, B is wrong.", FRUITS, "A"),
    ("first", "The answer is A and I am sure.", FRUITS, "A"),
    ("first", "The answer is (A) and (B) is wrong.", FRUITS, "A"),
    ("first", "The answer is (B) because (A) and (C) are not.", FRUITS, "B"),
    ("first", "The answer is fig or so I think.", FRUITS, "C"),
    ("first", "The answer is neither (A) nor (C); it is (B).", FRUITS, "B"),
    ("first", "The answer is not (A) but (B).", FRUITS, "B"),
    ("first", "The answer is B, not (A).", FRUITS, "B"),
    ("first", "The answer is not (A).", FRUITS, None),
    ("first", "The answer is 'A'.", FRUITS, "A"),
    ("first", "The answer is ‘B’.", FRUITS, "B"),
    ("first", "The answer is A's.", FRUITS, None),
    ("first", "The answer is yes or no.", YES_NO, None),
    ("first", "The answer is yes, no doubt.", YES_NO, "A"),
    ("first", "The answer is yes and no one knows.", YES_NO, "A"),
    ("first", "The answer is yes it is.", YES_NO, "A"),
    # Of an equation the option that it comes to.
    ("first", "The answer is 5 + 10 = 15.", SUMS, "C"),
    ("first", "The answer is $5 + $10 = $15.", SUMS, "C"),
    ("first", "The answer is 5 apples + 10 apples = 15 apples.", SUMS, "C"),
    ("first", "The answer is 3 + 12 = 15.", SUMS, "C"),
    ("first", "The answer is 5 + 10, which is 15.", SUMS, "C"),
    ("first", "The answer is 5 + 10.", SUMS, None),
    ("first", "The answer is 5 + 11 = 16.", SUMS, None),
    ("first", "The answer is 5 because 5 + 10 = 15.", SUMS, "A"),
    ("first", "The answer is 5, which is 10 less than 15.", SUMS, "A"),
    ("first", "The answer is 5 of the 10.", SUMS, "A"),
    ("first", "The answer is 5 or 10.", SUMS, None),
    ("first", "The answer is 15 = (3/4) * x.", SUMS, "C"),
    # Nothing marks an answer: a letter with its own text, or one that is chosen.
    ("any", "B. the plum", FRUITS, "B"),
    ("any", "B) plum", FRUITS, "B"),
    ("any", "B: the plum", FRUITS, "B"),
    ("any", "**B. the plum**", FRUITS, "B"),
    ("any", "**B.** the plum", FRUITS, "B"),
    ("any", "b. the plum.\n\nIt is round.", FRUITS, "B"),
    ("any", "B. a pear", FRUITS, None),
    ("any", "A. a pear\nB. the plum", FRUITS, None),
    ("any", "I would choose B.", FRUITS, "B"),
    ("any", "I think it's option A.", FRUITS, "A"),
    ("any", "Answer is A", FRUITS, "A"),
    ("any", "I pick C because it is sweet.", FRUITS, "C"),
    ("any", "I would choose A train.", FRUITS, None),
    ("any", "I would not choose B.", FRUITS, None),
    ("any", "Answer is A pie", FRUITS, None),
    ("first", "B. the plum", FRUITS, None),
    ("first", "I would choose B.", FRUITS, None),
]


@pytest.mark.parametrize("rule, response, choices, expected", NAMED)
def test_the_option_that_a_response_names(rule, response, choices, expected):
    assert extract("choice", response, rule=rule, choices=choices) == expected


@pytest.mark.parametrize(
    "piece",
    ["A or ", "(A), ", "not (A) ", "A" + " " * 99, "5 + 10 = ", "fig or ", "B. fig\n", "choose B ",
     "Answer is A", "(A)" + " " * 99, "**B" + " " * 99, "B.", "\n- ", "not 5"],
)  # fmt: skip
def test_long_babble_takes_no_longer_than_it_is_long(piece):
    for text in ("The answer is " + (piece * 30_000)[:30_000], (piece * 30_000)[:30_000]):
        for choices in (FRUITS, SUMS):
            start = time.thread_time()
            extract("choice", text, rule="any", choices=choices)
            extract("number", text, rule="any")
            assert (
                time.thread_time() - start < 10
            )  # mostly below a second; backtracking takes minutes
