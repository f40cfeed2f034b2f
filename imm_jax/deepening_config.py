"""Settings of iterative deepening: samples that are asked to think again."""

import dataclasses
import math
from typing import Literal

from imm_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepeningConfig:
    """When training samples are interrupted, and what they are told; see ``rounds.deepening``.

    Attributes:
      initial_budget: tokens until the first look at a sample.
      gamma: each budget is so many times the one before it.
      trigger: the sentence that is appended where a sample is to think again.
      retry: which samples: those that are ``unfinished`` (cut off at the budget, or without an
        answer), or those that are ``wrong`` too, by the gold answers.
    """

    initial_budget: int = 64
    gamma: float = 2.0
    trigger: str = "Wait! Maybe I made some mistakes! I need to rethink from scratch."
    retry: Literal["unfinished", "wrong"] = "unfinished"

    def __post_init__(self):
        if self.initial_budget < 1:
            raise InputError(f"initial_budget: {self.initial_budget}, expected at least 1")
        if not 1 <= self.gamma < math.inf:
            raise InputError(f"gamma: {self.gamma}, expected at least 1")
        if not self.trigger.strip():
            raise InputError(f"trigger: {self.trigger!r}, expected a sentence")
