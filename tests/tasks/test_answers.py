import time

import pytest

from imm_jax.errors import InputError
from imm_jax.tasks.answers import extract, grade, grade_all, is_correct
from imm_jax.tasks.types import Example, Task

FRUITS = ("a pear", "the plum", "fig", "fig jam")
YES_NO = ("Yes", "No")
AMOUNTS = ("4,000", "$78.20", "32.51%", "$5", "5%", "D/(M-3)")

# answer type, rule, response, choices, expected
AWKWARD = [
    # numbers
    ("number", "first", "The answer is 5 apples.", None, "5"),
    ("number", "first", "The answer is: $1,234.50.", None, "1234.5"),
    ("number", "first", "the answer is\n\n42", None, "42"),
    ("number", "first", "The answer is **42**!", None, "42"),
    ("number", "first", r"The answer is \boxed{42}.", None, "42"),
    ("number", "first", r"The answer is $\frac{1}{2}$.", None, "0.5"),
    ("number", "first", "The answer is -3 degrees", None, "-3"),
    ("number", "first", "The answer is −3", None, "-3"),
    ("number", "first", "The answer is 75%.", None, "75"),
    ("number", "first", "The answer is 12 + 5 = 17.", None, "17"),
    ("number", "first", "The answer is 2 x 3 + 4 = 6 + 4 = 10 cups", None, "10"),
    ("number", "first", "The answer is $4 * 3 = $12.", None, "12"),
    ("number", "first", "The answer is 6*7=<<6*7=42>>42.", None, "42"),
    ("number", "first", "The answer is 3 + 4 = seven.", None, "3"),
    ("number", "first", "The answer is 8 because 3 + 5 = 9", None, "8"),
    ("number", "first", "The answer is 7. The answer is 9.", None, "7"),
    ("number", "last", "The answer is 7. The answer is 9.", None, "9"),
    ("number", "last", "The answer is 7. So 3 are left of 10", None, "10"),
    ("number", "first", "so the final answer is 3 * 5 cups\nThe answer is 15.", None, "15"),
    ("number", "first", "Hence the final answer is 15.", None, "15"),
    ("number", "first", "I think 15.", None, None),
    ("number", "any", "I think 14 or 15.", None, "15"),
    ("number", "first", "The answer is seven.", None, "7"),
    ("number", "first", "The answer is **Twelve** apples.", None, "12"),
    ("number", "first", r"So it is \boxed{\text{twelve}}.", None, "12"),
    ("number", "first", "The answer is half.", None, "0.5"),
    ("number", "first", "The answer is a dozen.", None, "12"),
    ("number", "first", "The answer is no apples.", None, "0"),
    ("number", "first", "The answer is none.", None, None),
    ("number", "first", "The answer is no.", None, None),
    ("number", "first", "The answer is one of these: 7.", None, "7"),
    ("number", "first", "The answer is twelve, of which 5 are red.", None, "5"),
    ("number", "first", "The answer is twelve. 5 are red.", None, "12"),
    ("number", "last", "The answer is twelve of 30.", None, "30"),
    ("number", "first", "The answer is 25% of 80, which is 20.", None, "20"),
    ("number", "first", "The answer is 1.000,00 euros.", None, "1000"),
    ("number", "first", "The answer is 12 - 5.", None, None),
    ("number", "first", r"The answer is \boxed{12 - 5}.", None, None),
    ("number", "first", "The answer is 12 - 5. The answer is 7.", None, "7"),
    ("number", "first", "The answer is 12 - 5. So 3 * 4. The answer is seven.", None, "7"),
    ("number", "first", "The answer is 5 / 30.", None, "1/6"),
    ("text", "first", "The answer is seven.", None, "seven"),
    ("choice", "first", "The answer is none.", ("1", "none"), "B"),
    ("number", "first", "The answer is " + "9" * 5000, None, None),
    ("number", "first", "The answer is 1/0.", None, None),
    ("number", "first", "", None, None),
    ("number", "first", "The answer is", None, None),
    ("number", "first", "The answer is 1 1/2 cups", None, "1.5"),
    ("number", "first", "The answer is 10-4 = 6", None, "6"),
    ("number", "first", r"The answer is 1\frac{1}{2} cups", None, "1.5"),
    ("number", "first", "The answer is 12. 3 + 5 = 8.", None, "12"),
    ("number", "first", "The answer is 9 eggs * $2 = $18.", None, "18"),
    ("number", "first", "The answer is 5 000 cups.", None, "5000"),
    ("number", "first", "The answer is 3 150 ml bottles.", None, "3"),
    ("number", "first", "The answer is negative 5.", None, "-5"),
    ("number", "first", "The answer is 10 minus 4 = 6.", None, "6"),
    ("number", "first", "The answer is 10 cups plus 4 cups = 14 cups.", None, "14"),
    ("number", "first", "The answer is $1.5 million.", None, "1500000"),
    ("number", "first", r"The answer is $1.5 \times 10^{3}$.", None, "1500"),
    ("number", "first", "The answer is 10^3 = 1000.", None, "1000"),
    ("number", "first", "The answer is 2½ cups.", None, "2.5"),
    ("number", "first", r"So \boxed{12} apples, since 3 of 5 left.", None, "12"),
    ("number", "last", r"\boxed{11}. No: \boxed{12}, of 30.", None, "12"),
    ("number", "any", r"\boxed{12} apples, since 3 of 5 left.", None, "12"),
    ("number", "first", r"\boxed{11}. The answer is 12.", None, "12"),
    ("number", "first", "3 * 4 = <<3*4=12>>12\n#### 12\n", None, "12"),
    ("number", "first", "It is 5.\n**Final Answer:** $12$", None, "12"),
    ("number", "first", "<answer>12</answer> of 30", None, "12"),
    ("number", "first", "Answer the question: 12", None, None),
    # A bullet, a dash or a list's number is no part of the number.
    ("number", "first", "The answer is:\n\n- 6 apples", None, "6"),
    ("number", "first", "The answer is:\n- twelve apples", None, "12"),
    ("number", "first", "**The answer is:**\n\n* **6** apples", None, "6"),
    ("number", "first", "The answer is:\n\n- -6", None, "-6"),
    ("number", "first", "The answer is:\n\n-6", None, "-6"),
    ("number", "first", "The answer is:\n\n− 6", None, "-6"),
    ("number", "first", "The answer is – 5 apples.", None, "5"),
    ("number", "first", "The answer is — 5.", None, "5"),
    ("number", "first", "The answer is –5.", None, "-5"),
    ("number", "first", "The answer is - 5.", None, "-5"),
    ("number", "first", "The answer is: - 5.", None, "-5"),
    ("number", "first", "The answer is:\n1. 6 apples\n2. 7 pears", None, "6"),
    ("number", "first", "The answer is:\n1.5", None, "1.5"),
    ("number", "first", "The answer is:\n1. So 3 are left", None, "1"),
    ("number", "first", "The answer is 1. 6 apples are left", None, "1"),
    ("number", "last", "The answer is:\n- 5 pears\n- 6 apples", None, "6"),
    ("number", "last", "The answer is - 5.", None, "-5"),
    ("number", "last", "The answer is – 5.", None, "5"),
    # Corrected, in full, in parts.
    ("number", "first", "The answer is not 20 but 30.", None, "30"),
    ("number", "first", "The answer is not 2.5, but rather 3.5", None, "3.5"),
    ("number", "first", "The answer is not twenty but thirty.", None, "30"),
    ("number", "first", "The answer is not 20. But 30", None, "20"),
    ("number", "first", "The answer is 20, but 30 at night", None, "20"),
    ("number", "first", "The answer is $70K.", None, "70000"),
    ("number", "first", "The answer is 70k + 30k = 100k.", None, "100000"),
    ("number", "first", "The answer is 2M.", None, "2000000"),
    ("number", "first", "The answer is 5 m.", None, "5"),
    ("number", "first", "The answer is 3 and a half hours.", None, "3.5"),
    ("number", "first", "The answer is 3 ½ cups", None, "3.5"),
    ("number", "any", "I say 70k.", None, "70000"),
    ("number", "any", "Then:\n- 6", None, "6"),
    # choices
    ("choice", "first", "The answer is (B).", FRUITS, "B"),
    ("choice", "first", "Answer: B", FRUITS, "B"),
    ("choice", "first", "**Answer**: (b)", FRUITS, "B"),
    ("choice", "first", "The correct option is B.", FRUITS, "B"),
    ("choice", "first", r"\boxed{B}", FRUITS, "B"),
    ("choice", "first", "#### B", FRUITS, "B"),
    ("choice", "first", "<answer>B</answer>", FRUITS, "B"),
    ("choice", "first", "B", FRUITS, None),
    ("choice", "any", "B", FRUITS, "B"),
    ("choice", "any", "b.", FRUITS, "B"),
    ("choice", "any", "B)", FRUITS, "B"),
    ("choice", "any", "Option B\n", FRUITS, "B"),
    ("choice", "any", "Therefore, B is correct.", FRUITS, "B"),
    ("choice", "any", "Pears are dear.\n\nThe plum", FRUITS, "B"),
    ("choice", "any", "A train leaves.", FRUITS, None),
    ("choice", "any", "(E)", FRUITS, None),
    ("choice", "any", "Yes, it does.", YES_NO, "A"),
    ("choice", "any", "no", YES_NO, "B"),
    ("choice", "any", "Nobody knows.", YES_NO, None),
    ("choice", "first", "The answer is B.", FRUITS, "B"),
    ("choice", "first", "The answer is B) the plum", FRUITS, "B"),
    ("choice", "first", "The answer is option C", FRUITS, "C"),
    ("choice", "first", "The answer is (c) fig", FRUITS, "C"),
    ("choice", "first", "The answer is a pear.", FRUITS, "A"),
    ("choice", "first", "The answer is a plum.", FRUITS, "B"),
    ("choice", "first", "The answer is fig jam, of course.", FRUITS, "D"),
    ("choice", "first", "The answer is fig because it is sweet.", FRUITS, "C"),
    ("choice", "first", "The answer is a banana.", FRUITS, None),
    ("choice", "first", "The answer is A because pears grow.", FRUITS, "A"),
    ("choice", "first", "The answer is (E).", FRUITS, None),
    ("choice", "first", "The answer is **(D)**", FRUITS, "D"),
    ("choice", "first", "The answer is **D**", FRUITS, "D"),
    ("choice", "first", "The answer is yes, it does.", YES_NO, "A"),
    ("choice", "first", r"The answer is $\boxed{B}$.", FRUITS, "B"),
    ("choice", "first", r"The answer is \boxed{\text{(B)}}.", FRUITS, "B"),
    ("choice", "first", r"The answer is \boxed{\text{fig}}.", FRUITS, "C"),
    ("choice", "first", r"The answer is $\textbf{(B)}$.", FRUITS, "B"),
    ("choice", "first", "The answer is:\n\\[\n\\boxed{D}\n\\]", FRUITS, "D"),
    ("choice", "first", "The answer is A. No: \n$\\boxed{B}$", FRUITS, "A"),
    ("choice", "first", "The answer is **4,000**.", AMOUNTS, "A"),
    ("choice", "first", 'The answer is "4000".', AMOUNTS, "A"),
    ("choice", "first", "The answer is 4,000 because it is.", AMOUNTS, "A"),
    ("choice", "first", "The answer is **$78.20**.", AMOUNTS, "B"),
    ("choice", "first", 'The answer is "32.51%".', AMOUNTS, "C"),
    ("choice", "first", "The answer is 32.51 percent.", AMOUNTS, "C"),
    ("choice", "first", "The answer is 5%.", AMOUNTS, "E"),
    ("choice", "first", "The answer is $5.", AMOUNTS, "D"),
    ("choice", "first", "The answer is D/(M-3), which is right.", AMOUNTS, "F"),
    ("choice", "first", "The answer is 50 because it is.", AMOUNTS, None),
    ("choice", "first", "The answer is 4,0001.", AMOUNTS, None),
    ("choice", "first", "The answer is No.", YES_NO, "B"),
    ("choice", "first", "The answer is Rs. 20.", ("Rs. 10", "Rs. 20"), "B"),
    ("choice", "last", "The answer is (A). No, the answer is (B).", FRUITS, "B"),
    ("choice", "first", "It is (A) or (B).", FRUITS, None),
    ("choice", "any", "It is (A) or (B).", FRUITS, "B"),
    # text
    ("text", "first", "The answer is Paris. It is large.", None, "paris"),
    ("text", "first", "The answer is: the Seine", None, "seine"),
    ("text", "first", 'The answer is "stone, river lamp".', None, "stone river lamp"),
    ("text", "first", "The answer is Dr. Li.", None, "dr. li"),
    ("text", "first", "The answer is **1,200**.", None, "1200"),
    ("text", "first", "Paris", None, None),
    ("text", "any", "I say\nParis!\n", None, "paris"),
    # exact
    ("exact", "first", "The answer is FLUTE ISLAND.", None, "FLUTE ISLAND"),
    ("exact", "first", "The answer is `A-l-d-o`.", None, "A-l-d-o"),
    ("text", "first", r"The answer is \boxed{Paris}.", None, "paris"),
    ("text", "first", r"\boxed{\text{Paris}}", None, "paris"),
    ("text", "first", r"The answer is $\boxed{\text{Paris}}$. Or $\boxed{Rome}$.", None, "paris"),
    ("text", "first", "The answer is:\n\\[\n\\boxed{\\text{Paris}}\n\\]", None, "paris"),
    ("text", "first", "The answer is:\n\n- Paris", None, "paris"),
    ("text", "first", r"Or: \text{Paris}", None, None),
    ("exact", "first", r"The answer is \boxed{Paris}.", None, "Paris"),
    ("exact", "first", r"\boxed{\text{Paris}}", None, "Paris"),
    ("exact", "first", r"The answer is $\boxed{\text{Paris}}$. Or $\boxed{Rome}$.", None, "Paris"),
    ("exact", "first", "The answer is:\n\\[\n\\boxed{\\text{Paris}}\n\\]", None, "Paris"),
    ("exact", "first", "The answer is:\n\n- Paris", None, "Paris"),
    ("exact", "first", r"Or: \text{Paris}", None, None),
    # mathematics
    ("math", "first", r"so \boxed{\frac{1}{2}}.", None, r"\frac{1}{2}"),
    ("math", "first", r"The answer is $x^2 - 1$. Done.", None, "x^2 - 1"),
    ("math", "first", r"The answer is \boxed{3}.", None, "3"),
    ("math", "first", r"\boxed{1} no \boxed{\sqrt{2}}", None, r"\sqrt{2}"),
    ("math", "first", r"\boxed{1", None, None),
    ("math", "any", r"it is $1$, then $2$", None, "2"),
    ("math", "any", r"it is $1$, then \(2\).", None, "2"),
    ("math", "first", r"The answer is $\$18.90$.", None, r"\$18.90"),
    ("math", "first", r"The answer is \$18.90.", None, r"\$18.90"),
    ("math", "first", "The answer is:\n\\[\n144\n\\]", None, "144"),
    ("math", "first", "The answer is $$\n144\n$$", None, "144"),
    ("math", "first", r"The answer is \[[-2,7]\]", None, "[-2,7]"),
    ("math", "first", r"The answer is \((3,4)\).", None, "(3,4)"),
    ("math", "first", r"The answer is about \(3\pi\).", None, r"3\pi"),
    ("math", "first", r"The answer is $\boxed 2$.", None, "2"),
    ("math", "first", "The answer is 3.5.", None, "3.5"),
    ("math", "first", "The answer is 6 dollars.", None, "6"),
    ("math", "first", "The answer is six.", None, "6"),
    ("math", "first", "The answer is 6 or 7.", None, "6 or 7"),
    ("math", "first", "The answer is no roots.", None, "no roots"),
    ("math", "first", r"The answer is $\boxed{6}$ and not $\boxed{7}$.", None, "6"),
    ("math", "last", r"The answer is $\boxed{6}$, no, $\boxed{7}$.", None, "7"),
    ("math", "last", "The answer is 6 dollars.", None, "6"),
]


@pytest.mark.parametrize("answer_type, rule, response, choices, expected", AWKWARD)
def test_extract(answer_type, rule, response, choices, expected):
    assert extract(answer_type, response, rule=rule, choices=choices) == expected


@pytest.mark.parametrize("piece", ["The answer is ", "The answer is 1 + 1. ", "the answer is a "])
def test_many_markers_take_no_longer_than_they_are_long(piece):
    text = (piece * 100_000)[:100_000]
    start = time.thread_time()
    assert extract("number", text) is None
    assert time.thread_time() - start < 5  # below half a second


def test_extract_names_unknown_types_and_rules():
    with pytest.raises(InputError, match=r"'numbr'.*'number'"):
        extract("numbr", "")
    with pytest.raises(InputError, match=r"'firsst'.*'first'"):
        extract("number", "", rule="firsst")


@pytest.mark.parametrize(
    "answer_type, gold, response, correct",
    [
        ("number", "3", "The answer is 3.0", True),
        ("number", "1,234", "The answer is $1234.", True),
        ("number", "0.1", "The answer is 1/10", True),
        ("number", "0.3", "The answer is 0.30000000000000004", False),
        ("number", "9007199254740993", "The answer is 9007199254740992", False),
        ("number", "12", "The answer is 21", False),
        ("number", "12", "12", False),
        ("number", "1.5", r"The answer is 1\frac{1}{2}.", True),
        ("math", r"1\frac{4}{5}", "The answer is $9/5$.", True),
        ("math", r"1\frac{4}{5}", "The answer is $1.8$.", True),
        ("math", r"1\frac{4}{5}", "The answer is $14/5$.", False),
        ("math", r"\$18.90", r"The answer is $\$18.90$.", True),
        ("math", "6", "The answer is 6 dollars.", True),
        ("math", "six", "The answer is six.", True),
        ("math", r"\text{six}", "The answer is 6.", True),
        ("math", r"2\sqrt{3}", "The answer is 2√3.", True),
        ("math", "2√3", r"The answer is $2\sqrt{3}$.", True),
        ("math", r"2\sqrt{3}", "The answer is 2√5.", False),
        ("text", r"\text{Paris}", r"The answer is \boxed{\text{Paris}}.", True),
        ("text", "1,200", "The answer is **1,200**.", True),
        ("text", "yes", "The answer is yes, it is still up", True),
        ("text", "yes", "The answer is no, not yes", False),
        ("text", "marble", "The answer is the Marble.", True),
        ("exact", "FLUTE", "The answer is flute.", False),
        ("exact", "FLUTE", "The answer is FLUTE.", True),
    ],
)
def test_is_correct(answer_type, gold, response, correct):
    example = Example(id="x", question="?", answer=gold)
    assert is_correct(answer_type, response, example) is correct


def test_grade_of_a_choice_task():
    example = Example(id="x", question="?", answer="B", choices=FRUITS)
    task = Task(name="fruit", train=(), test=(example,), answer_type="choice")
    assert grade(task, example, " It is round. The answer is the plum.").correct
    grades = grade_all(task, [(example, "The answer is A."), (example, "")])
    assert [(g.answer, g.correct) for g in grades] == [("A", False), (None, False)]


def test_a_task_refuses_ids_that_occur_twice_and_unknown_types():
    example = Example(id="x", question="?", answer="1")
    with pytest.raises(InputError, match=r"'x' occurs twice"):
        Task(name="t", train=(example,), test=(example,))
    with pytest.raises(InputError, match=r"unknown answer type 'nmber'"):
        Task(name="t", train=(), test=(), answer_type="nmber")
