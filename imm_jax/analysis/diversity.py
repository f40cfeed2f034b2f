"""How much the answers differ from one another, and when they no longer do."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imm_jax.analysis.bleu import self_bleu
from imm_jax.analysis.scores import by_question, score_answers
from imm_jax.evaluation import Answer
from imm_jax.tasks.votes import same_answers

COLLAPSED = 0.5
# For each figure what falls as samples grow alike.
FALLING: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "distinct_2": lambda row: row["distinct_2"],
    "self_bleu": lambda row: None if row["self_bleu"] is None else 1 - row["self_bleu"],
    "answer_entropy": lambda row: row["answer_entropy"],
    "token_entropy": lambda row: row["token_entropy"],
    "unique_correct": lambda row: row["unique_correct"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diversity:
    """Figures of one round's samples. All but ``self_bleu`` fall as samples grow alike.

    Attributes:
      samples, questions: how many.
      distinct_1, distinct_2, distinct_3: see :func:`distinct_n`, over all samples.
      self_bleu: the mean over questions of how alike a question's samples are; see
        ``analysis.bleu``. None with one sample a question.
      answer_entropy: the mean over questions of the entropy, in nats, of the answers that its
        samples state; no answer counts as an answer. At most the logarithm of samples a question.
      token_entropy: nats a token. The mean of ``-log p`` of the tokens drawn, from the sampler's
        log-probabilities, which are those at temperature 1. Drawn at temperature 1 without cuts,
        that is an unbiased estimate of the mean entropy of the next token; drawn otherwise, it is
        the cross entropy of what was drawn from and the model.
      correct: how many samples are right.
      unique_correct: how many of those differ in text (white space apart), question by question.
      pass_at_k: see :func:`imm_jax.statistics.pass_at_k`; k = 1 is the share of right samples.
    """

    samples: int
    questions: int
    distinct_1: float
    distinct_2: float
    distinct_3: float
    self_bleu: float | None
    answer_entropy: float
    token_entropy: float
    correct: int
    unique_correct: int
    pass_at_k: dict[int, float]


def diversity(answers: Sequence[Answer], answer_type: str = "text") -> Diversity:
    """Figures of graded samples, as many of each question, at least one.

    Args:
      answers: the samples.
      answer_type: the task's, one of ``tasks.types.ANSWER_TYPES``; decides which answers are equal.
    """
    texts = [answer.text for answer in answers]
    groups = list(by_question(answers).values())
    alike = [self_bleu([answer.text for answer in group]) for group in groups]
    alike = [value for value in alike if value is not None]
    right = [answer for answer in answers if answer.correct]
    score = score_answers(answers, answer_type)
    return Diversity(
        samples=len(answers),
        questions=len(groups),
        distinct_1=distinct_n(texts, 1),
        distinct_2=distinct_n(texts, 2),
        distinct_3=distinct_n(texts, 3),
        self_bleu=sum(alike) / len(alike) if alike else None,
        answer_entropy=answer_entropy(groups, answer_type),
        token_entropy=-sum(a.logprob for a in answers) / max(1, sum(a.tokens for a in answers)),
        correct=len(right),
        unique_correct=len({(answer.id, " ".join(answer.text.split())) for answer in right}),
        pass_at_k=score.pass_at_k or {1: score.accuracy},
    )


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams over all n-grams of the texts (Li et al., arXiv 1510.03055, section 5.2).

    Words are what white space separates. The figure falls as the number of texts grows, so compare
    equal numbers. 0 where no text has ``n`` words.
    """
    grams = [
        tuple(words[i : i + n])
        for words in (text.split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def answer_entropy(groups: Sequence[Sequence[Answer]], answer_type: str = "text") -> float:
    """The mean over questions of the entropy of their samples' answers, in nats.

    The plug-in estimate, ``-sum_a s_a log s_a`` over the shares ``s_a`` of distinct answers, which
    is too small by about (answers - 1) / (2 samples).

    Args:
      groups: for each question its samples.
      answer_type: decides which answers are equal.
    """
    stated = [[answer.answer for answer in group] for group in groups]
    entropies = []
    for places in same_answers(answer_type, stated):
        shares = [count / len(places) for count in Counter(places).values()]
        entropies.append(-sum(share * math.log(share) for share in shares))
    return abs(sum(entropies) / len(entropies))  # no -0.0


def rounds_to_collapse(values: Sequence[float], share: float = COLLAPSED) -> int | None:
    """The round from which a figure stays below a share of where it began.

    Our definition; the paper has none. ``values[0]`` is of the samples of round 1, which the
    original model draws. The answer is the first round t such that in t and every later round the
    figure is below ``share`` (one half by default) of that, so a dip that is made good is no
    collapse; None where there is none, or where the figure begins at 0.

    Args:
      values: of the rounds 1, 2, ...; a figure that falls as samples grow alike.
      share: over 0 and at most 1.
    """
    found = None
    for number, value in enumerate(values, 1):
        if value >= share * values[0]:
            found = None
        elif found is None:
            found = number
    return found


def collapse_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each seed, arm and figure the ``rounds`` to collapse, None for no collapse.

    Args:
      rows: figures as in :class:`Diversity` with ``seed``, ``arm`` and ``round``, rounds in order.
    """
    found = []
    for seed, arm in dict.fromkeys((row["seed"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["seed"], row["arm"]) == (seed, arm)]
        for name, value in FALLING.items():
            values = [value(row) for row in own]
            if None not in values:
                rounds = rounds_to_collapse(values)
                found.append({"seed": seed, "arm": arm, "figure": name, "rounds": rounds})
    return found
