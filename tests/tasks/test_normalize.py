from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imm_jax.tasks.normalize import (
    canonical_exact,
    canonical_number,
    canonical_text,
    find_numbers,
    in_full,
    number_text,
    parse_number,
)

NUMBERS = [
    ("1,234", "1234"),
    ("-$5.50", "-5.5"),
    ("$-5.50", "-5.5"),
    ("3/4", "0.75"),
    ("1 1/2", "1.5"),
    ("1/3", "1/3"),
    ("50%", "50"),
    ("5.", "5"),
    ("3.0", "3"),
    (".5", "0.5"),
    ("1e3", "1000"),
    ("−7", "-7"),
    ("- 4", "-4"),
    ("+4", "4"),
    ("-0", "0"),
    ("5 000", "5000"),
    ("12 500 000.5", "12500000.5"),
    ("5\u2009250", "5250"),
    ("minus 4", "-4"),
    ("negative 1,200", "-1200"),
    ("2 thousand", "2000"),
    ("-$1.5 Million", "-1500000"),
    ("10^6", "1000000"),
    ("2.5 x 10^3", "2500"),
    (r"2.5 \times 10^{-1}", "0.25"),
    ("½", "0.5"),
    ("2¾", "2.75"),
    ("3 ½", "3.5"),
    ("3 and a half", "3.5"),
    ("3 and one quarter", "3.25"),
    ("3 and half", None),
    ("3 and a half dozen", None),
    ("3 and a half of 4", None),
    ("007", "7"),
    ("1{,}234", "1234"),
    (r"\frac{3}{4}", "0.75"),
    (r"-\dfrac{1}{8}", "-0.125"),
    (r"\frac12", "0.5"),
    (r"\tfrac{3}4", "0.75"),
    (r"1\frac{4}{5}", "1.8"),
    (r"-1 \frac45", "-1.8"),
    (r"10\,\frac{1}{2}", "10.5"),
    (r"\frac{1}{2}3", None),
    (r"\frac123", None),
    (r"2\cdot\frac{1}{2}", None),
    (r"\$18", "18"),
    ("12\u202f000", "12000"),
    ("€ 12", "12"),
    ("0.1", "0.1"),
    ("1/0", None),
    ("1" * 5000, None),
    ("1e999999999", None),
    ("5 apples", None),
    ("twelve", None),
    ("12,34", None),
    ("", None),
    (".", None),
    ("٣", None),
]


@pytest.mark.parametrize("text, expected", NUMBERS)
def test_canonical_number(text, expected):
    assert canonical_number(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("5-10", ["5", "10"]),
        ("5 - 10 = -5", ["5", "10", "-5"]),
        ("it is -10.", ["-10"]),
        ("1,2,3", ["1", "2", "3"]),
        ("A1 b2 x", []),
        ("$1,200.", ["1200"]),
        ("so...5", ["5"]),
        ("2 1/2 cups and 3/4", ["2.5", "0.75"]),
        ("1234567,890", ["1234567", "890"]),
        ("6km and 7eggs", ["6", "7"]),
        (r"1\frac{1}{2} cups and 2 - \frac34", ["1.5", "2", "0.75"]),
    ],
)
def test_find_numbers(text, expected):
    assert [number_text(value) for value in find_numbers(text)] == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("70k.", "70 thousand."),
        ("$70K", "$70 thousand"),
        ("$1,200.5K", "$1,200.5 thousand"),
        ("2M a year", "2 million a year"),
        ("70 k", "70 k"),
        ("5 m", "5 m"),
        ("5m", "5m"),
        ("300K", "300K"),  # kelvins
        ("5km", "5km"),
        ("2MB", "2MB"),
        ("D/(2-3M)", "D/(2-3M)"),
        ("A4k", "A4k"),
        ("2M + N", "2M + N"),
        ("2M + 3M", "2 million + 3 million"),
    ],
)
def test_thousands_and_millions_in_full(text, expected):
    assert in_full(text) == expected


@given(st.integers(), st.integers(min_value=1, max_value=10**6))
def test_text_of_a_number_parses_back(top, bottom):
    value = Fraction(top, bottom)
    if len(f"{top}{bottom}") < 40:
        assert parse_number(number_text(value)) == value


@given(st.decimals(min_value=-(10**12), max_value=10**12, places=6))
def test_decimals_are_exact_with_and_without_commas(value):
    expected = Fraction(value)
    assert parse_number(f"{value:f}") == expected
    assert parse_number(f"{value:,f}") == expected
    assert Fraction(Decimal(canonical_number(f"{value:f}"))) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Stone, river", "stone river"),
        (' "Yes!" ', "yes"),
        ("**an apple**", "apple"),
        ("A", "a"),
        ("1,200.0", "1200"),
        ("(B)", "b"),
        ("**1,200**.", "1200"),
        ("“$78.20”", "78.2"),
        ("`.5`", "0.5"),
        ("1,234,567 litres", "1234567 litres"),
        ("1,2,3 go", "1 2 3 go"),
    ],
)
def test_canonical_text(text, expected):
    assert canonical_text(text) == expected


def test_canonical_exact_keeps_case_and_inner_punctuation():
    assert canonical_exact(' "L-A  m.p". ') == "L-A m.p"
