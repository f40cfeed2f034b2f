"""Settings of the selection: which samples to train on."""

import dataclasses
from typing import Literal

from imm_jax.errors import InputError, nearest

# Built-in critics of the rule n_critics: what each asks of a solution, to be answered yes or no.
CRITICS = {
    "answer": "Is the final answer right?",
    "steps": "Does every step follow from what comes before it?",
    "arithmetic": "Is every calculation right?",
    "question": "Does the solution use everything the question says and answer what it asks?",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which samples to train on.

    Attributes:
      rule: a name in ``rounds.select.RULES``; ``correct`` is the paper's.
      samples_per_question: kept samples of a question at most; None keeps all.
      deduplicate: keep the first of several samples of a question that are the same.
      duplicates: what makes two samples the same: their ``text`` (white space apart), or the list
        of ``equations`` they work through.
      balance: keep fewer samples of easy questions; see ``rounds.thinning.quotas``.
      min_share: ``majority_vote``: the share of a question's samples that its most common answer
        needs (None: any). ``self_verify``: the share of verdicts for a sample that it needs (None:
        one half). ``n_critics``: the share of critics that approve (None: one half).
      length_normalised: ``sharpening`` ranks by the mean log-probability of a token, not the sum.
      judge_samples: times that a rule with a judge asks it about each sample.
      critics: ``n_critics``: names in ``CRITICS``, or questions of your own about a solution that a
        yes approves.
    """

    rule: str = "correct"
    samples_per_question: int | None = None
    deduplicate: bool = True
    duplicates: Literal["text", "equations"] = "text"
    balance: bool = False
    min_share: float | None = None
    length_normalised: bool = False
    judge_samples: int = 4
    critics: tuple[str, ...] = tuple(CRITICS)

    def __post_init__(self):
        for name in ("samples_per_question", "judge_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: {value}, expected at least 1")
        if self.min_share is not None and not 0 <= self.min_share <= 1:
            raise InputError(f"min_share: {self.min_share}, expected 0 to 1")
        if not self.critics or len(set(self.critics)) < len(self.critics):
            raise InputError(
                f"critics: {list(self.critics)}, expected one or more that are not the same"
            )
        for critic in self.critics:
            if critic not in CRITICS and len(critic.split()) < 2:  # a question has words
                raise InputError(
                    f"critics: {critic!r} is unknown{nearest(critic, CRITICS)}, expected one of "
                    f"{', '.join(CRITICS)}, or a question to be answered yes or no"
                )
