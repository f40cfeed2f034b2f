"""Which answers to a question are the same one, and which of them most samples give."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from imm_jax.tasks import verify
from imm_jax.tasks.answers import matches


class Vote(NamedTuple):
    """The outcome of one question's vote.

    Attributes:
      winners: places of the samples that give the most common answer, in order; empty where no
        sample states an answer.
      share: how many they are of all samples, those without an answer included.
    """

    winners: tuple[int, ...]
    share: float


def same_answers(
    answer_type: str,
    questions: Sequence[Sequence[str | None]],
    *,
    verifier: verify.Verifier | None = None,
) -> list[list[int | None]]:
    """For each question, which of its extracted answers are equal.

    Answers come in canonical form, so equal ones are equal strings; only mathematics is compared
    by rules and by math-verify as well. As that comparison need not be transitive, an answer joins
    the first earlier one that it equals.

    Args:
      answer_type: the task's, one of ``types.ANSWER_TYPES``.
      questions: for each question the answers of its samples, None for none.
      verifier: the worker processes for ``math``; by default the shared ones.

    Returns:
      For each answer the place of the first one that it equals, itself perhaps; None for None.
    """
    equal: set[tuple[str, str]] = set()
    if answer_type == "math":
        pairs = []
        for answers in questions:
            distinct = list(dict.fromkeys(answer for answer in answers if answer is not None))
            pairs += [(a, b) for i, b in enumerate(distinct) for a in distinct[:i]]
        equal = {pair for pair in pairs if matches("math", pair[1], pair[0])}
        doubtful = [pair for pair in dict.fromkeys(pairs) if pair not in equal]
        if doubtful:
            verdicts = (verifier or verify.shared_verifier()).equivalent(doubtful)
            equal |= {pair for pair, verdict in zip(doubtful, verdicts) if verdict}
    return [
        [
            None
            if answer is None
            else next(i for i, a in enumerate(answers) if a == answer or (a, answer) in equal)
            for answer in answers
        ]
        for answers in questions
    ]


def majority(places: Sequence[int | None]) -> Vote:
    """The most common answer of one question's samples; of equally common ones the first given.

    Self-consistency (Wang et al., arXiv 2203.11171, section 2).

    Args:
      places: as :func:`same_answers` gives them.
    """
    counts = Counter(place for place in places if place is not None)
    if not counts:
        return Vote((), 0.0)
    best = max(counts, key=lambda place: (counts[place], -place))
    winners = tuple(i for i, place in enumerate(places) if place == best)
    return Vote(winners, len(winners) / len(places))
