import re
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax.errors import InputError
from imm_jax.tasks.answers import RULES, grade_all
from imm_jax.tasks.arithmetic import solve
from imm_jax.tasks.drafts import Draw, digest
from imm_jax.tasks.generators import KINDS, generate, split_of
from imm_jax.tasks.prompts import response_text

ALL = sorted(KINDS)
SMALL = {"commonsense": 40}  # a hand-written table has only so many
# Version and digest of each kind's questions. A changed digest means changed questions: then raise
# the kind's version with it, for recorded results belong to a version.
GOLDEN = {
    "calendar": (1, "a6a2321d19d5f95d"),
    "coin_flip": (2, "8adb084dde64e583"),
    "commonsense": (1, "ee95cc2fe3d2d019"),
    "comparison": (1, "06b80d1bc4f8a7ae"),
    "instruction": (1, "aa30525acb2f55fd"),
    "last_letter": (2, "7fdad7045d63ed9d"),
    "letter_count": (2, "5b634a7075414ee3"),
    "one_step": (1, "6e808adb99c92100"),
    "reverse_words": (1, "832d3b1ff3534785"),
    "sequence": (2, "0a4023dc2a231043"),
    "sort_words": (1, "d8f51c8df4e9916d"),
    "swaps": (1, "e137f09b247cfa8b"),
    "two_step": (1, "a0d0a5c40072fd78"),
}


def everything(task):
    return (*task.train, *task.test, *task.shots)


@pytest.mark.parametrize("kind", ALL)
@given(seed=st.integers(0, 2**40), other=st.integers(0, 2**40))
@settings(max_examples=8, deadline=None)
def test_splits_never_meet_even_across_seeds(kind, seed, other):
    first = generate(kind, seed=seed, train_size=60, test_size=60)
    second = generate(kind, seed=other, train_size=60, test_size=60)
    train = {e.question for e in first.train + second.train}
    test = {e.question for e in first.test + second.test}
    shots = {e.question for e in first.shots}
    assert not train & test and not train & shots and not test & shots
    assert first.shots == second.shots


@pytest.mark.parametrize("kind", ALL)
@given(seed=st.integers(0, 2**40))
@settings(max_examples=8, deadline=None)
def test_every_draft_with_one_key_lands_in_one_split(kind, seed):
    draw = Draw(str(seed))
    for variant in KINDS[kind].variants:
        draft = KINDS[kind].draft(draw, variant)
        if draft is not None:
            assert split_of(kind, draft.key) in ("train", "test", "shots")
    task = generate(kind, seed=seed, train_size=30, test_size=30)
    assert len({e.id for e in everything(task)}) == len(everything(task))
    assert len({e.question for e in everything(task)}) == len(everything(task))


@pytest.mark.parametrize("kind", ALL)
def test_worked_solutions_end_with_the_answer_and_are_graded_correct(kind):
    task = generate(kind, seed=3)
    assert len(task.test) >= SMALL.get(kind, 200)
    for example in everything(task):
        assert f" {example.solution}".endswith(f" The answer is {example.answer}.")
        assert "  " not in example.question and "{" not in example.question + example.solution
    for rule in RULES:
        grades = grade_all(task, [(e, response_text(e)) for e in everything(task)], rule=rule)
        assert all(g.correct for g in grades)


@pytest.mark.parametrize("kind", ALL)
def test_wrong_answers_are_graded_wrong(kind):
    task = generate(kind, seed=4, train_size=0, test_size=60)
    answers = [e.answer for e in task.test]
    for example, answer in zip(task.test, answers[1:] + answers[:1]):
        response = f"The answer is {answer}."
        (grade,) = grade_all(task, [(example, response)])
        assert grade.correct == (answer == example.answer)


@pytest.mark.parametrize("kind", ["one_step", "two_step", "comparison"])
def test_equations_in_solutions_hold_and_use_the_numbers_of_the_question(kind):
    task = generate(kind, seed=5, train_size=400, test_size=200)
    for example in everything(task):
        known = {int(n) for n in re.findall(r"\d+", example.question)}
        equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", example.solution)
        assert len(equations) >= 1 + (kind == "two_step")
        for left, operator, right, result in equations:
            a, b = Fraction(left), Fraction(right)
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]
            assert value == int(result) >= 2
            assert int(left) in known and int(right) in known
            known.add(int(result))
        assert example.answer == equations[-1][3]


@pytest.mark.parametrize("kind", ALL)
def test_four_worked_examples_cover_every_variant(kind):
    shots = generate(kind, train_size=0, test_size=0).shots
    variants = KINDS[kind].variants
    assert len(variants) <= 4
    assert {e.kind for e in shots[:4]} == set(variants)


@pytest.mark.parametrize("kind", ALL)
def test_variants_are_balanced(kind):
    test = generate(kind, seed=1, train_size=0, test_size=40).test
    counts = Counter(e.kind for e in test)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("kind", ALL)
def test_a_larger_size_only_appends(kind):
    small = generate(kind, seed=2, train_size=10, test_size=5)
    large = generate(kind, seed=2, train_size=25, test_size=30)
    assert large.train[:10] == small.train and large.test[:5] == small.test


def test_symbolic_answers_against_independent_solvers():
    def quoted(text):
        return re.search(r'"([^"]+)"', text)[1]

    for e in generate("last_letter", seed=8).test:
        assert e.answer == "".join(word[-1] for word in quoted(e.question).split())
    for e in generate("coin_flip", seed=8).test:
        flips = len(re.findall(r" flips the coin", e.question))
        assert e.answer == ("yes", "no")[flips % 2]
    for e in generate("reverse_words", seed=8).test:
        assert e.answer.split() == e.question.split(": ")[1].split()[::-1]
    for e in generate("sort_words", seed=8).test:
        assert e.answer.split() == sorted(e.question.split(": ")[1].split())
    for e in generate("letter_count", seed=8).test:
        letter, text = re.findall(r'"([^"]+)"', e.question)
        assert e.answer == str(text.count(letter))


def test_sequences_and_dates_against_independent_solvers():
    import datetime

    for e in generate("sequence", seed=8).test:
        items = re.search(r": (.*), \.\.\.", e.question)[1].split(", ")
        values = [int(i) if i.isdigit() else ord(i) for i in items]
        answer = int(e.answer) if e.answer.isdigit() else ord(e.answer)
        if e.kind == "growing":
            assert answer * values[0] == values[1] * values[-1]
        else:
            assert answer - values[-1] == values[1] - values[0]
    monday = datetime.date(2024, 1, 1)
    days = [(monday + datetime.timedelta(n)).strftime("%A") for n in range(7)]
    for e in generate("calendar", seed=8).test:
        count = int(re.search(r"\d+", e.question)[0]) * (-1 if " ago" in e.question else 1)
        if e.kind.startswith("day"):
            today = days.index(re.search(r"Today is (\w+)", e.question)[1])
            assert e.answer == (monday + datetime.timedelta(today + count)).strftime("%A")
        else:
            month = datetime.datetime.strptime(re.search(r"It is (\w+)", e.question)[1], "%B").month
            assert e.answer == datetime.date(2024, (month - 1 + count) % 12 + 1, 1).strftime("%B")


def test_swaps_against_an_independent_simulation():
    for e in generate("swaps", seed=8).test:
        holds = dict(re.findall(r"(\w+) has an? ([\w ]+?)(?:,| and|\.)", e.question))
        for a, b in re.findall(r"(\w+) and (\w+) swap", e.question):
            holds[a], holds[b] = holds[b], holds[a]
        assert e.answer == holds[re.search(r"What does (\w+) have", e.question)[1]]


def test_instructions_against_independent_solvers():
    place = {"first": 0, "second": 1, "third": 2}
    for e in generate("instruction", seed=8).test:
        if e.kind == "pick":
            words = e.question.split(": ")[1].split(", ")
            expected = words[place[re.search(r"only the (\w+)", e.question)[1]]]
        else:
            word = re.search(r'"([^"]+)"', e.question)[1]
            count = re.search(r"(\d) times", e.question)
            expected = {
                "repeat": " ".join([word] * int(count[1])) if count else "",
                "capital": word[0].upper() + word[1:],
                "brackets": f"[{word}]",
            }[e.kind]
        assert e.answer == expected


def test_the_table_of_everyday_questions_has_no_repeats():
    from imm_jax.tasks.everyday import ITEMS

    rows = [row for theme in ITEMS.values() for row in theme]
    assert len({row[0] for row in rows}) == len(rows) >= 100
    for row in rows:
        assert len(row) == 6 and len(set(row[1:5])) == 4


def test_options_are_not_always_in_the_same_place():
    counts = Counter(e.answer for e in generate("commonsense").test)
    assert set(counts) == set("ABCD") and max(counts.values()) < 40


def test_ten_thousand_questions_take_seconds():
    start = time.process_time()
    task = generate("one_step", train_size=10_000, test_size=100)
    assert len(task.train) == 10_000
    assert time.process_time() - start < 8


def test_a_kind_with_few_questions_gives_what_it_has(caplog):
    task = generate("commonsense", train_size=5, test_size=10_000)
    assert 40 < len(task.test) < 200
    assert "has only" in caplog.text


def fingerprints() -> dict[str, str]:
    tasks = {kind: generate(kind, seed=7, train_size=20, test_size=20) for kind in ALL}
    return {kind: digest(repr(everything(task)))[:16] for kind, task in tasks.items()}


def test_questions_are_the_same_in_another_process_and_as_recorded():
    here = fingerprints()
    code = "from test_generators import fingerprints; print(fingerprints())"
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=__file__.rsplit("/", 1)[0],
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(filter(None, sys.path))},
    ).stdout.strip()
    assert str(here) == there
    assert {kind: (KINDS[kind].version, digest) for kind, digest in here.items()} == GOLDEN


def test_the_version_of_a_kind_is_recorded():
    assert generate("one_step", seed=3).source == "builtin:one_step version 1 seed 3"
    assert generate("sequence", seed=3).source == "builtin:sequence version 2 seed 3"


def test_solve_refuses_what_a_story_cannot_say():
    assert solve({"a": 7, "b": 2}, "x = a / b") is None
    assert solve({"a": 3, "b": 5}, "x = a - b") is None
    assert solve({"a": 50, "b": 50}, "x = a * b") is None
    assert solve({"a": 5, "b": 3}, "x = a + b") == ("5 + 3 = 8", "3 + 5")


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(InputError, match=r"'one_stp'.*'one_step'"):
        generate("one_stp")
