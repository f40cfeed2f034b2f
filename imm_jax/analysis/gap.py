"""How much better a model's samples are after it has chosen among them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imm_jax.evaluation import Answer
from imm_jax.statistics import paired_bootstrap, ratio_bootstrap


class Gap(NamedTuple):
    """The generation-verification gap.

    Attributes:
      generated: share of right samples, the mean over questions.
      verified: share of right ones among the kept samples, likewise.
      gap: ``verified - generated``.
      relative: the gap as a share of what was left to gain, ``1 - generated``; 0 where nothing was.
      kept_questions: share of questions of which a sample was kept.
    """

    generated: float
    verified: float
    gap: float
    relative: float
    kept_questions: float


class GapInterval(NamedTuple):
    """95 % intervals of a gap and of the relative one, bootstrapped over questions."""

    low: float
    high: float
    relative_low: float
    relative_high: float


def generation_verification_gap(answers: Sequence[Answer], kept: Sequence[Answer]) -> Gap:
    """What a selection without gold answers gains (Song et al., arXiv 2412.02674, section 2).

    ``J(f[w]) - J(f)``: the expected utility, here whether the answer is right, of generations
    reweighted by the model's verification (1 for kept samples, else 0), less that of the
    generations. Where nothing of a question was kept the weights say nothing, and its generations
    stand as they are.

    Args:
      answers: all graded samples, at least one.
      kept: those that the selection let through, duplicates included.
    """
    drawn, chosen = _shares(answers), _shares(kept)
    generated = sum(drawn.values()) / len(drawn)
    verified = sum(chosen.get(name, share) for name, share in drawn.items()) / len(drawn)
    left = 1 - generated
    return Gap(
        generated=generated,
        verified=verified,
        gap=verified - generated,
        relative=(verified - generated) / left if left > 0 else 0.0,
        kept_questions=len(chosen) / len(drawn),
    )


def gap_interval(answers: Sequence[Answer], kept: Sequence[Answer]) -> GapInterval:
    """How sure :func:`generation_verification_gap` of the same arguments is.

    Questions are drawn again with all their samples and verdicts.
    """
    drawn, chosen = _shares(answers), _shares(kept)
    gains = np.array([chosen.get(name, share) - share for name, share in drawn.items()])
    left = 1 - np.array(list(drawn.values()))
    _, low, high = paired_bootstrap([gains[None]])
    return GapInterval(low, high, *ratio_bootstrap(gains, left))


def gap_figures(answers: Sequence[Answer], kept: Sequence[Answer]) -> dict[str, float]:
    """The gap and its intervals by their fields' names, as runs and analyses record them.

    Arguments as for :func:`generation_verification_gap`.
    """
    found = generation_verification_gap(answers, kept)
    return found._asdict() | gap_interval(answers, kept)._asdict()


def _shares(answers: Sequence[Answer]) -> dict[str, float]:
    questions: dict[str, list[bool]] = {}
    for answer in answers:
        questions.setdefault(answer.id, []).append(answer.correct)
    return {name: sum(right) / len(right) for name, right in questions.items()}
