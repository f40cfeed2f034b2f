"""Numbers in words, against words made from numbers, and by hand."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imm_jax.tasks.number_words import amount, number_in_words

# fmt: off
UNDER_TWENTY = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
                "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
                "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
# fmt: on
SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"))


def say(number: int, hyphen: str = "-", joint: str = " ") -> str:
    """English for 0 to 10**12; ``joint`` stands behind a hundred."""
    for size, name in SCALES:
        if number >= size:
            head, rest = divmod(number, size)
            return f"{say(head, hyphen, joint)} {name}" + (
                f" {say(rest, hyphen, joint)}" if rest else ""
            )
    if number >= 100:
        head, rest = divmod(number, 100)
        return f"{UNDER_TWENTY[head]} hundred" + (
            f"{joint}{say(rest, hyphen, joint)}" if rest else ""
        )
    if number >= 20:
        tens, rest = divmod(number, 10)
        return TENS[tens] + (f"{hyphen}{UNDER_TWENTY[rest]}" if rest else "")
    return UNDER_TWENTY[number]


def test_every_small_number():
    for number in range(2000):
        assert number_in_words(say(number)) == number


@given(
    st.integers(0, 10**8), st.sampled_from(["-", " "]), st.sampled_from([" ", " and "]),
    st.sampled_from(["", " apples", " red apples.", "**", " miles per hour"]), st.booleans(),
)  # fmt: skip
def test_numbers_alone_or_with_a_unit(number, hyphen, joint, unit, upper):
    text = say(number, hyphen, joint) + unit
    assert number_in_words(text.upper() if upper else text) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("half", "1/2"),
        ("a half", "1/2"),
        ("one-half", "1/2"),
        ("a third", "1/3"),
        ("two thirds", "2/3"),
        ("three quarters", "3/4"),
        ("one and a half", "3/2"),
        ("Two and a half hours", "5/2"),
        ("a dozen", "12"),
        ("half a dozen", "6"),
        ("a hundred", "100"),
        ("a thousand dollars", "1000"),
        ("twelve hundred", "1200"),
        ("fifty percent", "50"),
        ("minus three", "-3"),
        ("Negative twenty-one degrees", "-21"),
        ("two more apples", "2"),
        ("no apples", "0"),
        ("no red apples left", "0"),
        ("none left", "0"),
        ("none are left", "0"),
    ],
)
def test_by_hand(text, value):
    assert number_in_words(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "and", "-", "minus", "12", "twelve 12", "apples", "half of them", "half an hour",
        # May count what they name.
        "two dozen", "two dozen eggs", "one pair", "a couple", "three hundreds",
        # More than a number, or no answer.
        "two or three", "two of them", "two times three", "one that is left", "twelve minus five",
        "forty dollars and five cents", "seven point five", "one third grader", "third",
        "none", "none of the above", "no", "no idea", "no answer", "no solutions", "no one",
        "no difference", "no less", "nothing",
        # No English number.
        "five twenty", "twenty twelve", "one two three", "hundred", "hundred five", "two zero",
        "one thousand million", "one hundred and", "a a half", "five hundred hundred",
    ],
)  # fmt: skip
def test_what_is_left_unread(text):
    assert number_in_words(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("six", "6"),
        ("**six** dollars", "6"),
        ("6 dollars", "6"),
        ("$6 dollars", "6"),
        ("-6.5 square units", "-6.5"),
        ("1/2 hour", "0.5"),
        # More than an amount, or no amount.
        ("6", None),
        ("6 cm", None),
        ("6 pi", None),
        ("6 sqrt", None),
        ("6 squared", None),
        ("6 or seven", None),
        ("6 million", None),
        ("6 dozen", None),
        ("no real roots", None),
        ("6 x^2", None),
        ("six" * 100, None),
    ],
)
def test_an_amount_in_words_or_figures(text, value):
    assert amount(text) == value


@pytest.mark.parametrize("piece", ["one ", "one hundred and ", "a", "-", " ", "no s", "* a "])
def test_long_babble_takes_no_longer_than_it_is_long(piece):
    text = (piece * 100_000)[:100_000]
    start = time.thread_time()
    assert number_in_words(text) is None
    assert time.thread_time() - start < 1
