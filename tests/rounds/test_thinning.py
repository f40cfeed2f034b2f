"""Equations, duplicates and quotas, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imm_jax.rounds.thinning import cap, deduplicate, equation_key, equations, quotas, text_key
from tests.rounds.samples import names, sample, samples


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3 + 5 = 8. 8 * 2 = 16. The answer is 16.", ["3+5=8", "8*2=16"]),
        ("He has 3+5=8 left, then $8.00 × 2 = $16.", ["3+5=8", "8*2=16"]),
        ("1,200.0 / 4 = 300", ["1200/4=300"]),
        (r"2 \times 3 = 6 and 6 \div 2 = 3", ["2*3=6", "6/2=3"]),
        ("4 x 5 = 20", ["4*5=20"]),
        ("10 − 4 = 6 = 2 * 3", ["10-4=6=2*3"]),
        ("(2 + 3) * 4 = 20", ["(2+3)*4=20"]),
        ("She pays 2*3=<<2*3=6>>6 and 6 + 1 = <<6+1=7>>7.", ["2*3=6", "6+1=7"]),
        ("3 + 5 = 8\n2 + 2 = 4", ["3+5=8", "2+2=4"]),
        ("5 - -2 = 7", ["5--2=7"]),
        ("x = 5, so 7 = 7, and 12 people on 3-4 days", []),
        ("5 apples + 3 apples = 8 apples", []),
        ("", []),
    ],
)
def test_equations(text, found):
    assert list(equations(text)) == found


@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from("+-*/"), st.integers(0, 99)), max_size=5
    ),
    st.sampled_from(["{} {} {} = {}", "{}{}{}={}", "{} {}  {} = {}"]),
    st.sampled_from([". ", ".\n", ", then "]),
)
def test_equations_are_found_in_order_however_they_are_spaced(steps, form, seam):
    text = seam.join(form.format(*step, 7) for step in steps)
    assert list(equations(text)) == [f"{a}{sign}{b}=7" for a, sign, b in steps]


def test_duplicates_by_text_and_by_equations():
    rows = [
        sample("a", 0, text="3 + 5 = 8. The answer is 8."),
        sample("a", 1, text="3 + 5  = 8.\nThe answer is 8."),
        sample("a", 2, text="So 3+5=8, 8 it is."),
        sample("a", 3, text="5 + 3 = 8. The answer is 8."),
        sample("b", 0, text="3 + 5 = 8. The answer is 8."),
        sample("b", 1, text="It is 8."),
        sample("b", 2, text="Eight, I think."),
        sample("b", 3, text="It is  8."),
    ]
    assert names(deduplicate(rows, text_key)) == ["a0", "a2", "a3", "b0", "b1", "b2"]
    # Without an equation a sample goes by its text.
    assert names(deduplicate(rows, equation_key)) == ["a0", "a3", "b0", "b1", "b2"]


def test_a_cap_keeps_the_first():
    rows = samples(a="xyz", b="xyz", c="x")
    assert names(cap(rows, {"a": 2, "b": 0, "c": 5})) == ["a0", "a1", "c0"]
    assert cap(rows, {}) == rows


def test_quotas_follow_difficulty():
    rows = samples(
        easy="AAAAAAAA", middle="AAAAxxxx", hard="Axxxxxxx", never="xxxxxxxx", odd="AAAAAAAx"
    )
    passed = [row for row in rows if row.correct]
    # Fail rates 0, 1/2, 7/8 and 1/8; the hardest that was solved keeps 8, the rest 8/7 of 8 rates.
    assert quotas(passed, rows, 8) == {"easy": 1, "middle": 5, "hard": 8, "odd": 1}
    assert quotas(passed, rows, 2) == {"easy": 1, "middle": 1, "hard": 2, "odd": 1}
    same = samples(a="AA", b="AA")
    assert quotas(same, same, 3) == {"a": 3, "b": 3}
    assert quotas([], rows, 3) == {}
