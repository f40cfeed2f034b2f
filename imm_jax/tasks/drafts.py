"""What the built-in kinds of question are made with: a portable random source and drafts."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Random choices that stay the same on every platform and Python version.

    Only ``random.Random.random`` is used: it is the one method whose sequence Python promises.
    """

    def __init__(self, seed: str):
        self.random = random.Random(seed).random

    def integer(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + int(self.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different positions of ``options``, in random order."""
        pool = list(options)
        return [pool.pop(self.integer(0, len(pool) - 1)) for _ in range(count)]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A question before it gets an id.

    Attributes:
      key: what the question asks, without its wording ("14 + 23"). Two drafts with the same key
        always fall into the same split, so no fact is both trained on and tested. Questions that
        give one another's answers away need the same key.
      question, answer, choices: as in ``Example``.
      working: the worked solution without its last sentence, "The answer is X."; may be empty.
    """

    key: str
    question: str
    answer: str
    working: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of question.

    Attributes:
      answer_type: how its answers are checked (``types.ANSWER_TYPES``).
      variants: the sorts of question in it, which take turns; at most four, so that four worked
        examples cover them.
      draft: draws a question of a variant, or None where the numbers drawn do not work out.
      test_percent: how much of all possible keys belongs to the test split.
      version: raise it when a template, a word list, a key or the drawing changes: the questions
        change too. Results are recorded with it.
    """

    answer_type: str
    variants: tuple[str, ...]
    draft: Callable[[Draw, str], Draft | None]
    test_percent: int = 30
    version: int = 1


def digest(text: str) -> str:
    """64 hexadecimal digits, the same in every process (Python's ``hash`` is not)."""
    return hashlib.sha256(text.encode()).hexdigest()


def listing(words: Sequence[str]) -> str:
    """``"a, b and c"``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
