"""A question with its answer, a set of them, and the grade of one response."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from imm_jax.errors import InputError, nearest

# number: equal as exact numbers. choice: the letter of an option. math: equal as mathematics, by
# math-verify. text: equal but for case, articles and punctuation. exact: equal with its case.
# reasoning_gym: what the task's own scorer gives its full mark.
ANSWER_TYPES = ("number", "choice", "math", "text", "exact", "reasoning_gym")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question.

    Attributes:
      id: stable and unique in its task; it seeds the random numbers of its samples.
      question: the question alone, without options or prompt.
      answer: the gold answer; for a choice the option's letter, ``"A"`` for the first.
      choices: the options' texts, or None where the answer is free.
      solution: a worked solution that ends in ``The answer is X.``, where there is one.
      kind: what sort of question it is inside its task (``"add"``, ``"algebra"``), or empty.
      check: what a scorer of its own needs to know the question by, or empty.
    """

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] | None = None
    solution: str | None = None
    kind: str = ""
    check: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Training and test questions that are checked in the same way.

    Attributes:
      name: short name, unique among the tasks of a run.
      train: training questions; may be empty.
      test: test questions; may be empty.
      shots: worked examples for few-shot prompts, in neither split, one or more for each kind of
        question the task has.
      answer_type: one of ``ANSWER_TYPES``.
      source: where the questions came from, with its version, for a run's record.

    Raises:
      InputError: an unknown answer type, or an id that occurs twice.
    """

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    shots: tuple[Example, ...] = ()
    answer_type: str = "number"
    source: str = ""

    def __post_init__(self):
        check_answer_type(self.answer_type, f"task {self.name}")
        seen = set()
        for example in (*self.train, *self.test):
            if example.id in seen:
                raise InputError(f"task {self.name}: the id {example.id!r} occurs twice")
            seen.add(example.id)


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The answer read from a response (canonical, None where there is none) and its verdict."""

    answer: str | None
    correct: bool


def digest(items: Sequence) -> str:
    """A hash of questions or sequences, which are dataclasses of plain values."""
    return hashlib.sha256(repr(tuple(items)).encode()).hexdigest()[:16]


def check_answer_type(answer_type: str, where: str) -> None:
    """Raises InputError, naming ``where``, unless ``answer_type`` is one of ``ANSWER_TYPES``."""
    if answer_type not in ANSWER_TYPES:
        raise InputError(
            f"{where}: unknown answer type {answer_type!r}{nearest(answer_type, ANSWER_TYPES)}; "
            f"known: {', '.join(ANSWER_TYPES)}"
        )
