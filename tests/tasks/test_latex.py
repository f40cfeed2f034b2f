import pytest

from imm_jax.tasks.latex import displayed, first_boxed, formulas, in_latex, last_boxed, untexted


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"\boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        # As in a few solutions of MATH.
        (r"so it is $\boxed 2$.", "2"),
        (r"so it is $\boxed \frac{1}{2}$ of $3$.", r"\frac{1}{2}"),
        (r"\[x = \boxed 9\]", "9"),
        ("It is \\boxed 9.\nDone.", "9"),
        (r"$\boxed{1}$, no, $\boxed 2$", "2"),
        (r"$\boxed 1$, no, $\boxed{2}$", "2"),
        (r"$\fbox{7}$", "7"),
        (r"$\boxed{1}$ \fbox{note}", "1"),
        (r"\boxed{1", None),
        (r"\boxed{}", None),
        (r"write it in \boxed.", None),
        (r"\boxedness", None),
        ("1", None),
    ],
)
def test_the_last_box(text, expected):
    assert last_boxed(text) == expected


def test_the_first_box():
    assert first_boxed(r"$\boxed{6}$ and not $\boxed{7}$") == "6"
    assert first_boxed(r"$\boxed 6$ and not $\boxed{7}$") == "6"
    assert first_boxed("6") is None


def test_roots_in_latex():
    assert in_latex("2√3 + √(x+1)√x") == r"2\sqrt{3} + \sqrt{x+1}\sqrt{x}"
    assert in_latex("√") == "√"


def test_formulas_between_dollar_signs_and_brackets():
    assert formulas(r"$1$ and \( 2 \), \[3\]") == ["1", "2", "3"]
    assert formulas(r"$\$5 + \$6$ or \$7 and \$8") == [r"\$5 + \$6"]
    assert formulas("$5 or\n$6") == []
    assert formulas(r"\\[2pt] x \]") == []  # a line break of a matrix


def test_a_formula_at_the_beginning_may_take_lines():
    assert displayed(":\n\\[\n144\n\\]\nDone") == "144"
    assert displayed(" $$\n1 + 1\n$$") == "1 + 1"
    assert displayed(r"**\(5\)**") == "5"
    assert displayed(r"x = \(5\)") is None
    assert displayed("\\[ 5") is None


def test_text_in_a_formula():
    assert untexted(r"\text{(B)} or \textbf{C}, 5\mathrm{ cm}") == "(B) or C, 5 cm"
