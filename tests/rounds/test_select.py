"""The selection as a whole: rule, duplicates, caps."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imm_jax.config import RunConfig
from imm_jax.errors import InputError
from imm_jax.rounds.select import RULES, check_rule, from_rows, select, to_rows
from imm_jax.select_config import SelectConfig
from imm_jax.settings import build
from tests.rounds.samples import names, sample, samples


def one_pass(answers, config):
    """What a single loop over the samples keeps, under the rule ``correct``."""
    kept, seen, counts = [], defaultdict(set), defaultdict(int)
    for answer in answers:
        text = " ".join(answer.text.split())
        if not answer.correct or (config.deduplicate and text in seen[answer.id]):
            continue
        most = config.samples_per_question
        if most is not None and counts[answer.id] >= most:
            continue
        seen[answer.id].add(text)
        counts[answer.id] += 1
        kept.append(answer)
    return kept


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", " x", "x y"]), st.booleans()),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
    st.sampled_from([None, 1, 2]),
)
def test_the_papers_rule(drawn, deduplicate, most):
    answers = [sample(q, i, text=t, correct=c) for i, (q, t, c) in enumerate(drawn)]
    config = SelectConfig(samples_per_question=most, deduplicate=deduplicate)
    expected = one_pass(answers, config)
    if expected:
        assert select(answers, config) == expected
    else:
        with pytest.raises(InputError, match="passes the rule 'correct'"):
            select(answers, config)


def test_defaults_are_the_papers():
    assert SelectConfig() == SelectConfig(
        rule="correct",
        samples_per_question=None,
        deduplicate=True,
        duplicates="text",
        balance=False,
    )


def test_settings_after_the_rule():
    rows = samples(easy="AAAA", hard="Axxx")
    assert names(select(rows, SelectConfig())) == ["easy0", "easy1", "easy2", "easy3", "hard0"]
    assert names(select(rows, SelectConfig(balance=True))) == ["easy0", "hard0"]
    assert names(select(rows, SelectConfig(samples_per_question=2))) == ["easy0", "easy1", "hard0"]
    same = [sample("a", i, text=t, correct=True) for i, t in enumerate(["1+1=2", "So 1 + 1 = 2"])]
    assert names(select(same, SelectConfig())) == ["a0", "a1"]
    assert names(select(same, SelectConfig(duplicates="equations"))) == ["a0"]


def test_rules_without_gold_answers_do_not_see_them():
    """Turning every verdict around changes nothing."""
    one = samples(a="xYY", b="Xyyx", c="x")
    other = [row.__class__(**{**vars(row), "correct": not row.correct}) for row in one]
    for name, rule in RULES.items():
        if not rule.gold and not rule.needs:
            config = SelectConfig(rule=name)
            assert names(select(one, config)) == names(select(other, config)), name


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.needs])
def test_what_a_rule_needs_is_asked_for(name):
    with pytest.raises(InputError, match=f"select.rule: '{name}' needs a"):
        select(samples(a="A"), SelectConfig(rule=name))


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match=r"'majority' is unknown \(did you mean 'majority_vote'"):
        check_rule("majority")
    small = {"model": "m", "data": {"in_domain": "t"}}
    for select_, message in (
        ({"min_share": 1.5}, "select.min_share: 1.5, expected 0 to 1"),
        ({"judge_samples": 0}, "select.judge_samples: 0, expected at least 1"),
        ({"samples_per_question": 0}, "select.samples_per_question: 0, expected at least 1"),
        ({"duplicates": "words"}, "select.duplicates: 'words' is not valid"),
    ):
        with pytest.raises(InputError, match=f"here: {message}"):
            build(RunConfig, small | {"select": select_}, "here")


def test_rows_and_back():
    rows = samples(a="A.", b="x")
    assert from_rows(to_rows(rows)) == rows
