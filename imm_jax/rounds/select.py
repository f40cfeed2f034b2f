"""Which samples to train on: a rule by name, then no duplicates and no more than is wanted."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from imm_jax.errors import InputError, nearest
from imm_jax.evaluation import Answer
from imm_jax.rounds import critics, rules, self_verification
from imm_jax.rounds.rules import Aids, Judge, RuleFunction, Scorer
from imm_jax.rounds.thinning import KEYS, cap, deduplicate, quotas
from imm_jax.select_config import SelectConfig
from imm_jax.tasks.types import Task


class NothingKept(InputError):
    """A selection left nothing to train on; ``found`` says so in short."""

    def __init__(self, found: str):
        super().__init__(
            f"select: {found}, so there is nothing to train on; expected at least one (more "
            "questions, more samples, an easier task, a longer sampling.max_new_tokens, or where "
            "shares are asked for a lower select.min_share)"
        )
        self.found = found


class Rule(NamedTuple):
    """A selection rule.

    Attributes:
      keep: samples, settings and aids to the samples that pass.
      gold: whether it reads the gold answers.
      needs: the fields of ``Aids`` that it cannot do without.
      asked: what it asks a model beside a question and a sample, by its settings.
    """

    keep: RuleFunction
    gold: bool = False
    needs: tuple[str, ...] = ()
    asked: Callable[[SelectConfig], list[str]] = lambda config: []


RULES = {
    "correct": Rule(rules.correct, gold=True),
    "math_verify": Rule(rules.math_verify, gold=True, needs=("task",)),
    "finished": Rule(rules.finished),
    "majority_vote": Rule(rules.majority_vote),
    "sharpening": Rule(rules.sharpening),
    "self_verify": Rule(
        self_verification.self_verify, needs=("task", "judge"), asked=self_verification.asked
    ),
    "n_critics": Rule(critics.n_critics, needs=("task", "scorer"), asked=critics.asked),
}


def check_rule(name: str) -> None:
    """Raises InputError unless ``name`` is a rule."""
    if name not in RULES:
        raise InputError(
            f"select.rule: {name!r} is unknown{nearest(name, RULES)}, "
            f"expected one of {', '.join(RULES)}"
        )


def select(
    answers: Sequence[Answer],
    config: SelectConfig,
    judge: Judge | None = None,
    task: Task | None = None,
    scorer: Scorer | None = None,
) -> list[Answer]:
    """Keeps the samples that ``config.rule`` lets through, in their order.

    Of several samples of a question that are the same the first stays; then at most
    ``samples_per_question`` of each question, fewer of easy ones where ``balance`` says so.

    Args:
      answers: graded samples, the samples of a question in their order.
      config: the settings.
      judge: the model that rules with a judge ask.
      task: the questions; ``math_verify`` and rules with a judge read it, and ``majority_vote``
        compares answers as its answer type says (as text without it).
      scorer: the model that rules with a scorer ask for the likelihood of options.

    Raises:
      InputError: an unknown rule, or a rule without the judge, scorer or task it needs.
      NothingKept: nothing is left, so that there would be nothing to train on.
    """
    passed = passing(answers, config, judge, task, scorer)
    kept = deduplicate(passed, KEYS[config.duplicates]) if config.deduplicate else passed
    kept = cap(kept, _quotas(passed, answers, config))
    if not kept:
        raise NothingKept(f"none of {len(answers)} samples passes the rule {config.rule!r}")
    return kept


def passing(
    answers: Sequence[Answer],
    config: SelectConfig,
    judge: Judge | None = None,
    task: Task | None = None,
    scorer: Scorer | None = None,
) -> list[Answer]:
    """The samples that the rule lets through, before duplicates and more than is wanted are left.

    Arguments and errors as in :func:`select`, but that nothing may be left.
    """
    check_rule(config.rule)
    rule, aids = RULES[config.rule], Aids(task=task, judge=judge, scorer=scorer)
    for name in rule.needs:
        if getattr(aids, name) is None:
            raise InputError(f"select.rule: {config.rule!r} needs a {name}, found none")
    return rule.keep(answers, config, aids)


def _quotas(
    passed: Sequence[Answer], answers: Sequence[Answer], config: SelectConfig
) -> dict[str, int]:
    most = config.samples_per_question
    if config.balance:
        drawn = Counter(answer.id for answer in answers)
        return quotas(passed, answers, most or max(drawn.values(), default=0))
    return {} if most is None else dict.fromkeys((answer.id for answer in passed), most)


def to_rows(answers: Sequence[Answer]) -> list[dict]:
    """Answers as JSON rows."""
    return [dataclasses.asdict(answer) for answer in answers]


def from_rows(rows: Sequence[dict]) -> list[Answer]:
    """Inverse of :func:`to_rows`."""
    return [Answer(**row) for row in rows]
