"""Renumbered questions, checked by working them out, and the tests on the answers."""

import re

import pytest
from scipy.stats import fisher_exact

from imm_jax.analysis.memorisation import STORIES, matched, memorisation, renumber
from imm_jax.errors import InputError
from imm_jax.tasks.generators import generate, split_of
from imm_jax.tasks.types import Example
from tests.rounds.samples import samples

COMMUTES = {"+", "*"}


def skeleton(text: str) -> str:
    return re.sub(r"\d+", "#", text)


@pytest.mark.parametrize("kind", STORIES)
def test_other_numbers_in_the_same_words(kind):
    task = generate(kind, seed=3, train_size=120, test_size=0)
    trained = {question.question for question in task.train}
    made = [renumber(kind, question) for question in task.train]
    assert sum(question is not None for question in made) >= 0.9 * len(made)
    for question, other in zip(task.train, made):
        if other is None:
            continue
        assert other.question not in trained
        assert skeleton(other.question) == skeleton(question.question)
        assert skeleton(other.solution) == skeleton(question.solution)
        assert (other.id, other.kind) == (f"{question.id}/renumbered", question.kind)
        known, facts = set(re.findall(r"\d+", other.question)), []
        old = set(re.findall(r"\d+", question.question))
        shown = r"(\d+) ([-+*/]) (\d+) = (\d+)"
        steps = re.findall(shown, other.solution)
        for (a, sign, b, result), before in zip(steps, re.findall(shown, question.solution)):
            assert eval(f"{a} {sign} {b}") == int(result)
            # Operands are told, or found before; what is neither is a constant of the story.
            for new, original in ((a, before[0]), (b, before[2])):
                assert new in known or new == original or original in old
            known.add(result)
            first, second = sorted((int(a), int(b))) if sign in COMMUTES else (a, b)
            facts.append(f"{first} {sign} {second}")
        assert other.answer == steps[-1][3]
        assert split_of(kind, ";".join(facts)) == "test"


def test_each_seed_has_numbers_of_its_own():
    [question] = generate("one_step", train_size=1, test_size=0).train
    first, same, second = (renumber("one_step", question, seed) for seed in (0, 0, 1))
    assert first == same and first.question != second.question


def test_what_has_no_template_is_left_out():
    own = Example(id="a", question="How much is 3 apples and 4?", answer="7")
    assert renumber("one_step", own) is None
    [other] = generate("reverse_words", train_size=1, test_size=0).train
    assert renumber("reverse_words", other) is None and renumber("no_such_kind", own) is None


def test_scores_and_tests():
    trained = samples(a="A", b="B", c="C", d="x", e="E")
    again = samples(**{"a/renumbered": "x", "b/renumbered": "B", "c/renumbered": "."})
    new = samples(f="x", g="G", h="x", i="x")
    sets = {"trained": trained, "renumbered": again, "varied": [], "new": new}
    found = memorisation(sets, "text")
    accuracies = {name: score.accuracy for name, score in found.scores.items()}
    assert accuracies == {"trained": 4 / 5, "renumbered": 1 / 3, "new": 1 / 4}
    # d and e have no renumbered question
    assert found.renumbered[:4] == (1, 2, 0, 0) and found.renumbered.p_value == 0.5
    assert found.new_p_value == pytest.approx(fisher_exact([[4, 1], [1, 3]]).pvalue)
    varied = samples(**{"b/varied": ".", "d/varied": "D", "e/varied": "x"})
    sets = {"trained": trained, "renumbered": again, "varied": varied, "new": new}
    both = memorisation(sets, "text")
    assert both.renumbered == found.renumbered
    assert both.varied[:4] == (0, 2, 1, 0) and both.scores["varied"].accuracy == 1 / 3
    sets = {"trained": trained, "renumbered": [], "varied": [], "new": new}
    without = memorisation(sets, "text")
    assert (
        without.renumbered is None
        and without.varied is None
        and set(without.scores) == {"trained", "new"}
    )


def test_variations_repeat_the_ids_of_a_file_or_of_its_training_split():
    trained = [Example(id=i, question=i, answer="1") for i in ("train/a", "train/b", "c")]
    others = [Example(id=i, question=i, answer="2") for i in ("c", "b", "new", "train/a")]
    found = matched(trained, others)
    assert [(x.id, x.question) for x in found] == [
        ("c/varied", "c"), ("train/b/varied", "b"), ("train/a/varied", "train/a"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"none of 1 ids .* such as 'a'"):
        matched(trained, others[2:3])
