"""Self-verification: the model says which of its samples are right."""

import re
from collections.abc import Sequence

from imm_jax.evaluation import Answer
from imm_jax.rounds.rules import Aids, by_text
from imm_jax.select_config import SelectConfig
from imm_jax.tasks.prompts import question_text
from imm_jax.tasks.types import Example

VERSION = 1  # raised when the text changes
# "Check whether the answer is correct" says nothing yet.
VERDICT = re.compile(
    r"(?:(?<!\bif )(?<!\bwhether )(?<!\bthe )(?<!\bthis )"
    r"\b(?:(?:the|this)(?: (?:final|proposed))?|final|proposed) (?:answer|solution)"
    r"(?: (?:of )?[$0-9.,]+)? is\W+(?:indeed\W+)?|^[ \t*_#>]*(?:answer|verdict)[ \t*_]*:\W*)"
    r"(correct|right|incorrect|wrong|not (?:correct|right))\b",
    re.IGNORECASE | re.MULTILINE,
)
# "I don't think that the answer is correct": all in one clause.
DOUBT = re.compile(
    r"n['’]t\b|\b(?:not|cannot|never|hardly|unlikely|(?<!no )(?<!without )doubt(?:ful)?)\b",
    re.IGNORECASE,
)
CLAUSE_END = re.compile(r"[.,;:!?\n]|\b(?:and|but|so)\b", re.IGNORECASE)
TEXT = """Here is a question and a proposed solution. Is the solution right?

The question is: {question}

The proposed solution is: {solution}

Check the solution step by step. Then say "The answer is correct." or "The answer is incorrect.\""""


def self_verify(answers: Sequence[Answer], config: SelectConfig, aids: Aids) -> list[Answer]:
    """Samples that the judge takes as right; no gold answers.

    Song et al., arXiv 2412.02674: a proxy utility for each generation, from the model's own
    verification, and rejection below a threshold. Of their verifications this is chain of thought
    with a binary verdict. The utility is the share of ``config.judge_samples`` verdicts that say
    "correct" (one that cannot be read does not); at least ``config.min_share``, one half by
    default, passes. What it gains is ``analysis.gap.generation_verification_gap``.
    """
    least = 0.5 if config.min_share is None else config.min_share
    return [answer for answer, share in zip(answers, utilities(answers, aids)) if share >= least]


def utilities(answers: Sequence[Answer], aids: Aids) -> list[float]:
    """The share of the judge's verdicts that say "correct", for each sample.

    Samples of a question with the same text are judged once.
    """
    questions, first = aids.questions(), by_text(answers)
    said = aids.judge("verify", [_ask(questions[a.id], a) for a in first.values()])
    shares = {key: _share(responses) for key, responses in zip(first, said)}
    return [shares[answer.id, answer.text] for answer in answers]


def asked(config: SelectConfig) -> list[str]:
    """What the judge is told beside a question and a sample."""
    return [TEXT.format(question="", solution="")]


def _ask(example: Example, answer: Answer) -> Example:
    text = TEXT.format(question=question_text(example), solution=answer.text.strip())
    return Example(id=f"verify/{answer.id}/{answer.sample}", question=text, answer="correct")


def _share(responses: Sequence[str]) -> float:
    return sum(map(_says_correct, responses)) / max(len(responses), 1)


def _says_correct(response: str) -> bool:
    """Whether the last verdict is "correct": a check on the way may say more than one."""
    *_, last = (None, *VERDICT.finditer(response))
    if last is None or last[1].lower() not in ("correct", "right"):
        return False
    clause = CLAUSE_END.split(response[: last.start()])[-1]
    return not DOUBT.search(clause)
