"""reasoning-gym's tasks. What needs the package is skipped without it (extra reasoning-gym)."""

import importlib.util
import logging
import sys

import pytest

from imm_jax.errors import InputError
from imm_jax.tasks import extract, grade_all, gym, make_task, response_text
from imm_jax.tasks._worker import harmless
from imm_jax.tasks.verify import Verifier

needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning_gym is not installed"
)


@pytest.mark.parametrize(
    "text",
    [
        "8*(5*1 - 2)",
        "-(3 + 4) / 2.5",
        "sqrt(x) * exp(-2*x**2) + 3*Integral(cos(x), x) + C",
        "[['_', 'Q'], ['Q', '_']]",
        "3 4 _ _\n1 9 8",
        "",
    ],
)
def test_mathematics_and_lists_may_be_evaluated(text):
    assert harmless(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('x')",
        "print (1)",
        "[print][0](1)",
        "(print)(1)",
        "'a'.join([])",
        "x. __class__",
        "1 .real",
        "().__class__",
        "{1: 2}",
        "lambda: 0",
        "f'{x}'",
        "ｅval(1)",
        "sqrt.__self__",
        "a; b",
        "x = 1",
        "exec\n(x)",
    ],
)
def test_what_calls_or_reaches_into_objects_may_not(text):
    assert not harmless(text)


@pytest.mark.parametrize(
    "response, rule, answer",
    [
        (" The answer is 1 2\n3 4", "first", "1 2\n3 4"),
        (" 1 2\n3 4\n", "first", "1 2\n3 4"),
        ("Hm. <answer> 5 </answer> The answer is 6", "first", "5"),
        ("The answer is 5. No, the answer is 6", "first", "5. No, the answer is 6"),
        ("The answer is 5. No, the answer is 6", "last", "6"),
        ("  ", "any", None),
    ],
)
def test_an_answer_is_all_that_is_said(response, rule, answer):
    assert extract("reasoning_gym", response, rule=rule) == answer


def test_without_the_extra(monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text(
        'print(\'{"error": "ModuleNotFoundError: No module named reasoning_gym"}\')'
    )
    monkeypatch.setattr(gym, "WORKER", tmp_path / "worker.py")
    with pytest.raises(InputError, match=r"pip install 'imm-jax\[reasoning-gym\]'"):
        make_task("reasoning_gym:leg_counting")
    (tmp_path / "worker.py").write_text("raise SystemExit(1)")
    with pytest.raises(InputError, match="the process that makes the questions died"):
        make_task("reasoning_gym:leg_counting")


@needs_gym
def test_splits_do_not_meet_and_sizes_only_add():
    spec = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,name=sums"
    task = make_task(spec, seed=1, train_size=6, test_size=5)
    assert (task.name, task.answer_type, len(task.shots)) == ("sums", "reasoning_gym", 8)
    assert len(task.train) == 6 and len(task.test) == 5
    asked = [e.question for e in (*task.train, *task.test, *task.shots)]
    assert len(set(asked)) == len(asked)
    assert make_task(spec, seed=1, train_size=0, test_size=3).test[0].question == asked[6]
    assert make_task(spec, seed=2, train_size=0, test_size=5).test != task.test
    pairs = [(e, response_text(e)) for e in task.test] + [(task.test[0], "The answer is -1.")]
    assert [g.correct for g in grade_all(task, pairs)] == [True] * 5 + [False]


@needs_gym
def test_scorers_decide_by_the_rules_of_the_question():
    """Many answers are right, and only the scorer knows."""
    task = make_task("reasoning_gym:puzzle24", seed=5, train_size=0, test_size=1)
    [example] = task.test
    gold = example.answer
    said = {f" The answer is {gold}.": True, f"({gold})": True, "24": False, f"{gold} + 1": False}
    assert [g.correct for g in grade_all(task, [(example, s) for s in said])] == list(said.values())


@needs_gym
def test_what_a_model_says_is_not_run(tmp_path):
    """Two scorers that evaluate answers: with SymPy's parser, and with eval itself."""
    mark = tmp_path / "mark"
    evil = f"__import__('pathlib').Path({str(mark)!r}).write_text('x')"
    huge = "9**9**9**9"
    with Verifier(workers=1, judge="reasoning_gym", time_limit=20.0) as verifier:
        for name in ("countdown", "spiral_matrix"):
            [example] = make_task(f"reasoning_gym:{name}", train_size=0, test_size=1).test
            pairs = [(example, text) for text in (evil, f"[{evil}]", example.answer)]
            grades = grade_all("reasoning_gym", pairs, verifier=verifier)
            assert [g.correct for g in grades] == [False, False, True]
        # To make a question anew, eval is reasoning-gym's own to use: also after such an answer.
        [sums] = make_task("reasoning_gym:basic_arithmetic", train_size=0, test_size=1).test
        pairs = [(example, evil), (sums, sums.answer)]
        assert [g.correct for g in grade_all("reasoning_gym", pairs, verifier=verifier)] == [
            False,
            True,
        ]
    assert not mark.exists()
    with Verifier(workers=1, judge="reasoning_gym", time_limit=2.0) as verifier:
        [example] = make_task("reasoning_gym:countdown", train_size=0, test_size=1).test
        grades = grade_all("reasoning_gym", [(example, huge)], verifier=verifier)
        assert not grades[0].correct


@needs_gym
@pytest.mark.parametrize(
    "spec, message",
    [
        ("leg_countin", r"unknown name 'leg_countin' \(did you mean 'leg_counting'\?\)"),
        ("chain_sum,min_term=2", r"unknown name 'min_term' .*'min_terms'"),
        ("chain_sum,min_terms=0", "reasoning_gym:chain_sum: AssertionError: min_terms"),
        ("chain_sum,min_terms=x", "reasoning_gym:chain_sum: TypeError"),
    ],
)
def test_specs_that_cannot_be_used(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        make_task(f"reasoning_gym:{spec}", test_size=1)
    assert "\n" not in str(caught.value)


@needs_gym
@pytest.mark.slow
def test_every_task_is_asked_and_its_own_answer_is_right(caplog):
    """But those that know no answer, only whether one is right."""
    from reasoning_gym.factory import DATASETS

    orders = [
        {"name": name, "config": {}, "seed": 5, "size": 1}
        for name in sorted(set(DATASETS) - {"composite"})
    ]
    examples = [
        example
        for order, rows in zip(orders, gym._make(orders))
        for example in gym._examples("test", order, rows, set())
    ]
    assert len(examples) == len(orders) > 100
    unknown = {e.id.split("/")[0] for e in examples if not e.answer}
    pairs = [(e, response_text(e)) for e in examples if e.answer]
    with (
        caplog.at_level(logging.WARNING, logger="imm_jax"),
        Verifier(judge="reasoning_gym", time_limit=300.0) as verifier,
    ):
        grades = grade_all("reasoning_gym", pairs, verifier=verifier)
    assert [e.id for (e, _), found in zip(pairs, grades) if not found.correct] == []
    assert unknown <= {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
    assert not caplog.text


@needs_gym
def test_a_mixture_of_tasks(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # to import it here is an error
    spec = "reasoning_gym:composite,datasets=[{name: gcd, weight: 1}, {name: lcm, weight: 1}]"
    task = make_task(spec, train_size=0, test_size=4)
    grades = grade_all(task, [(e, response_text(e)) for e in task.test])
    assert [g.correct for g in grades] == [True] * 4
