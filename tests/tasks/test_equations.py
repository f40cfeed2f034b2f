import time

import pytest

from imm_jax.tasks.equations import stated_number
from imm_jax.tasks.normalize import number_text

STATED = [
    # An equation's result, with units and LaTeX's operators in it.
    ("12 + 5 = 17 apples", "17"),
    ("5 apples + 3 apples = 8 apples.", "8"),
    ("9 eggs * $2 = $18.", "18"),
    ("$5/hour x 8 hours = $40", "40"),
    ("60 miles per hour * 2 hours = 120 miles", "120"),
    ("(60 inches + 64 inches) / 2 = 62 inches", "62"),
    (r"$2 \times 3 = 6$.", "6"),
    (r"\(2 \cdot 3 = 6\)", "6"),
    (r"$5 \text{ eggs} \times 2 = 10$", "10"),
    ("50% of 40 = 20.", "20"),
    ("3 boxes of 4 = 12", "12"),
    ("2 X 3 = 6", "6"),
    ("10 - 4 = 6 + 3 = 9.", "9"),
    ("10 - 15 = -5", "-5"),
    ("x = 5", "5"),
    ("the total cost = 3 * 5 = 15.", "15"),
    ("therefore 3 + 4 = 7", "7"),
    ("5 * 100 = Rs. 500.", "500"),
    ("\n\\[\n3 \\times 4 = 12\n\\]", "12"),
    ("1/2 of 10.5 = 5.25. 3 + 5 = 8", "5.25"),
    # A result that words lead to.
    ("25% of 80, which is 20.", "20"),
    ("25% of 80 apples, which is 20 apples", "20"),
    ("12 + 5, which equals 17", "17"),
    ("6 * 7 (which is 42)", "42"),
    ("$5 * 3, which makes $15", "15"),
    ("25% of 80, which is 0.25 * 80 = 20", "20"),
    ("3/4 of $240, which is $240*(3/4) = $180", "180"),
    ("2024 - 2020, which is 4 years", "4"),
    # What follows is about the answer before it.
    ("12, which is 5 more than 7", "12"),
    ("12, which is 3 * 4", "12"),
    ("80 which is 25% of 320", "80"),
    ("3/4, which is 75%", "0.75"),
    ("12 (which is 3 * 4)", "12"),
    ("25% of 80, which is 1/4 of 80", "25"),
    ("12 - 5, which is 7 more than 0", "12"),
    # A sum in words; its first figure is no result.
    ("half of 12, which is 6", "6"),
    ("a third of 9, or 3.", "3"),
    ("half of the 12 apples is 6", "6"),
    ("**Two thirds of his $9**, which is **$6**.", "6"),
    (r"one-half of $12$, which is $\boxed{6}$", "6"),
    ("a quarter of 20 apples (or 5)", "5"),
    ("half of 12 minus 2, which equals 4. 3 more", "4"),
    ("half of 12, which is 12 / 3 + 2 = 6", "6"),
    ("half of the sum of 12 and 8 is equal to 10", "10"),
    ("twice 6, which is 12", "12"),
    ("half of 12", None),
    ("half of the 12 apples", None),
    ("half of 10 or 12", None),
    ("half of 12, which is 2 more than 4", None),
    ("half of them, 6", "6"),
    ("half past 12", "12"),
    ("the third of 9 children", "9"),
    ("6, which is half of 12", "6"),
    # Sums that nobody has worked.
    ("12 - 5", None),
    ("12 - 5.", None),
    ("**12 - 5**", None),
    ("$12 - 5$", None),
    (r"\(12 \times 5\)", None),
    ("(12 - 5) * 3", None),
    ("1,200 + 1.5", None),
    ("10 minus 4", None),
    ("2 x 3", None),
    ("12 - 5\n7", None),
    # These are numbers, or more than a sum.
    ("1 / 3", "1/3"),
    ("12 / 4", "3"),
    ("2.5 x 10^3", "2500"),
    ("- 5", "-5"),
    ("3 of 4", "3"),
    ("12 - 5 were eaten", "12"),
    # As in Europe, where it cannot be English.
    ("1.000,00 euros", "1000"),
    ("1.000.000", "1000000"),
    ("-1.234.567,8", "-1234567.8"),
    ("1.000", "1"),
    ("1.234,5", "1.234"),
    ("0.125,50", "0.125"),
    # The answer stands before the equation, or there is none.
    ("12. 3 + 5 = 8.", "12"),
    ("$12. 5*3=15", "12"),
    ("12; 3 + 5 = 8", "12"),
    ("12\n3 + 5 = 8", "12"),
    ("**12**. 3 + 5 = 8", "12"),
    (r"\boxed{12}. 3 + 5 = 8", "12"),
    ("10 years. 3 + 5 = 8", "10"),
    ("12 = 3 * 4", "12"),
    ("18 dollars because profit = 200 - 182.", "18"),
    ("24 because 3 x 8 = 24 or 3 x 9 = 27", "24"),
    ("4 where x = 3", "4"),
    ("4 >= 3", "4"),
    ("3 + 4 = seven", "3"),
    ("-5.", "-5"),
    ("2 1/2 cups", "2.5"),
    ("1/0", None),
    ("seven", None),
    ("", None),
]


@pytest.mark.parametrize("text, expected", STATED)
def test_the_number_that_a_text_states(text, expected):
    found = stated_number(text)
    assert (None if found is None else number_text(found)) == expected


@pytest.mark.parametrize(
    "piece",
    [
        "5 x -5 ",
        "5 apples + ",
        "5 a",
        "5=",
        "+",
        " ",
        "5" + " " * 99,
        "a" * 99,
        "5. ",
        "5 \\text{",
        "111 ",
        "minus ",
        "5 - ",
        "5 - 5",
        "(5) + ",
        "5 + 5, which is ",
        "5 + 5, which is 5 ",
        "1.000",
        "1.000,",
        "5 +" + " " * 99,
        "half of ",
        "half of 5 is ",
        "half of 5, which is 5 more ",
        "twice " + " " * 99,
    ],
)
def test_long_babble_takes_no_longer_than_it_is_long(piece):
    text = (piece * 100_000)[:100_000]
    start = time.thread_time()
    stated_number(text)
    assert time.thread_time() - start < 5  # below half a second; what backtracks takes minutes
