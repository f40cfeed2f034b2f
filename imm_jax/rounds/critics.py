"""An ensemble of critics: the model looks at a sample from several sides."""

from collections.abc import Sequence

from imm_jax.evaluation import Answer
from imm_jax.rounds.rules import Aids, by_text
from imm_jax.select_config import CRITICS, SelectConfig
from imm_jax.tasks.prompts import question_text
from imm_jax.tasks.types import Example

VERSION = 1  # raised when the text changes
TEXT = """Here is a question and a proposed solution.

The question is: {question}

The proposed solution is: {solution}

{critic} Answer Yes or No."""
OPTIONS = ("Yes", "No")


def n_critics(answers: Sequence[Answer], config: SelectConfig, aids: Aids) -> list[Answer]:
    """Samples of which enough of ``config.critics`` approve; no gold answers.

    An ensemble of critics after Mousavi et al. (N-Critics, arXiv 2310.18679). There several models
    criticise an answer and the answer is refined; here, in our reading for a selection, one model
    is several critics by way of as many prompts, and what too few approve of is left out. A critic
    approves where the model finds "Yes" likelier than "No"; the share of critics has to be at least
    ``config.min_share``, one half by default.
    """
    least = 0.5 if config.min_share is None else config.min_share
    shares = approvals(answers, config.critics, aids)
    return [answer for answer, share in zip(answers, shares) if share >= least]


def approvals(answers: Sequence[Answer], critics: Sequence[str], aids: Aids) -> list[float]:
    """The share of critics that approve, for each sample.

    Samples of a question with the same text are judged once. A critic whose prompt is longer than
    the model's context does not approve.

    Args:
      answers: the samples.
      critics: names in ``CRITICS``, or questions to be answered yes or no.
      aids: the task and the scorer.
    """
    questions, first = aids.questions(), by_text(answers)
    counts = dict.fromkeys(first, 0)
    for number, critic in enumerate(critics):
        asked = [
            _ask(questions[answer.id], answer, number, CRITICS.get(critic, critic))
            for answer in first.values()
        ]
        for key, logprobs in zip(first, aids.scorer(f"critic-{number}", asked)):
            counts[key] += bool(logprobs) and logprobs[0] > logprobs[1]
    return [counts[answer.id, answer.text] / len(critics) for answer in answers]


def asked(config: SelectConfig) -> list[str]:
    """What each critic is told beside a question and a sample."""
    return [
        TEXT.format(question="", solution="", critic=CRITICS.get(critic, critic).strip())
        for critic in config.critics
    ]


def _ask(example: Example, answer: Answer, number: int, critic: str) -> Example:
    text = TEXT.format(
        question=question_text(example), solution=answer.text.strip(), critic=critic.strip()
    )
    name = f"critic-{number}/{answer.id}/{answer.sample}"
    return Example(id=name, question=text, answer="A", choices=OPTIONS)
