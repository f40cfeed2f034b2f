"""Selection rules that need no model: which samples may be trained on.

A rule is a function ``(answers, config, aids) -> those that pass``, in their order. Most decide
question by question.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from imm_jax.evaluation import Answer
from imm_jax.select_config import SelectConfig
from imm_jax.tasks import verify
from imm_jax.tasks.types import Example, Task
from imm_jax.tasks.votes import majority, same_answers


class Judge(Protocol):
    """A model to put questions to."""

    def __call__(self, name: str, asked: Sequence[Example]) -> list[list[str]]:
        """What it says, several times, to each of ``asked``.

        Args:
          name: of the round of questions, unique in the selection.
          asked: each with an id of its own; ``question`` is what the model reads.

        Returns:
          For each its responses; none where the model has no room for it.
        """


class Scorer(Protocol):
    """A model to put questions with options to."""

    def __call__(self, name: str, asked: Sequence[Example]) -> list[list[float]]:
        """How likely it finds each option of each of ``asked``: log-probabilities, in nats.

        Args:
          name: of the round of questions, unique in the selection.
          asked: each with an id of its own and ``choices``, which the model is not shown.

        Returns:
          For each its options' log-probabilities; none where the model has no room for it.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aids:
    """What a rule may use beside the samples.

    Attributes:
      task: the questions with their gold answers, and how answers are compared.
      judge: a model to ask.
      scorer: a model to ask for the likelihood of options.
    """

    task: Task | None = None
    judge: Judge | None = None
    scorer: Scorer | None = None

    def questions(self) -> dict[str, Example]:
        """The task's questions by their id."""
        return {example.id: example for example in (*self.task.train, *self.task.test)}


def by_text(answers: Sequence[Answer]) -> dict[tuple[str, str], Answer]:
    """The first sample of each question and text: what a model is asked about once."""
    first: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        first.setdefault((answer.id, answer.text), answer)
    return first


def by_question(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """The samples of each question, questions and samples in their order."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.id, []).append(answer)
    return groups


def correct(answers: Sequence[Answer], config: SelectConfig, aids: Aids) -> list[Answer]:
    """Samples whose answer equals the gold one, as the task compares (Yuan et al., 2503.02103)."""
    return [answer for answer in answers if answer.correct]


def finished(answers: Sequence[Answer], config: SelectConfig, aids: Aids) -> list[Answer]:
    """Rejection without an answer key: samples that state an answer and end by themselves."""
    return [a for a in answers if a.answer is not None and a.finish_reason == "stop"]


def math_verify(
    answers: Sequence[Answer],
    config: SelectConfig,
    aids: Aids,
    *,
    verifier: verify.Verifier | None = None,
) -> list[Answer]:
    """Samples whose answer equals the gold one as mathematics, whatever the task's answer type.

    So ``0.5`` and ``2^{-1}`` pass for a gold ``1/2``. By math-verify in worker processes; tasks of
    type ``math`` are graded so in the first place.
    """
    gold = {name: example.answer for name, example in aids.questions().items()}
    pairs = [(gold[a.id], a.answer) for a in answers if a.answer is not None and not a.correct]
    if pairs:
        verdicts = (verifier or verify.shared_verifier()).equivalent(pairs)
        right = {pair for pair, verdict in zip(pairs, verdicts) if verdict}
    else:
        right = set()
    return [a for a in answers if a.correct or (gold[a.id], a.answer) in right]


def majority_vote(answers: Sequence[Answer], config: SelectConfig, aids: Aids) -> list[Answer]:
    """Samples that give their question's most common answer (Huang et al., arXiv 2210.11610).

    Of answers equally common the one given first wins. Samples without an answer have no vote, but
    count in the share that ``config.min_share`` asks of the winner; a question that falls short
    keeps nothing.
    """
    groups = list(by_question(answers).values())
    stated = [[answer.answer for answer in group] for group in groups]
    kept = set()
    for group, places in zip(groups, same_answers(_answer_type(aids), stated)):
        vote = majority(places)
        if vote.share >= (config.min_share or 0.0):
            kept |= {(group[i].id, group[i].sample) for i in vote.winners}
    return [answer for answer in answers if (answer.id, answer.sample) in kept]


def sharpening(answers: Sequence[Answer], config: SelectConfig, aids: Aids) -> list[Answer]:
    """Of each question's samples the one the model itself finds likeliest.

    Maximum-likelihood sharpening (Huang et al., arXiv 2412.01951): fine-tune on ``argmax_i log
    pi(y_i | x)`` of ``n`` samples; with ``config.length_normalised`` on ``argmax_i log pi(y_i | x)
    / |y_i|``, tokens counted with the end. Of equals the first. A sample cut off at the token limit
    is no whole ``y`` and does not compete.
    """

    def reward(answer: Answer) -> float:
        return answer.logprob / (answer.tokens if config.length_normalised else 1)

    whole = [answer for answer in answers if answer.finish_reason == "stop"]
    best = {name: max(group, key=reward) for name, group in by_question(whole).items()}
    return [answer for answer in whole if answer is best[answer.id]]


RuleFunction = Callable[[Sequence[Answer], SelectConfig, Aids], list[Answer]]


def _answer_type(aids: Aids) -> str:
    return aids.task.answer_type if aids.task else "text"
