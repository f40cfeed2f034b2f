"""What a run supports: arms compared on the same questions, and the sentence that follows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from imm_jax.statistics import mcnemar, paired_bootstrap

# By seed, then by task: whether each question, by its id, is answered right.
Verdicts = Mapping[int, Mapping[str, Mapping[str, bool]]]

LEVEL = 0.05


class Paired(NamedTuple):
    """Two models on the same questions of some tasks, each task of the same weight.

    Attributes:
      first, second: mean accuracies.
      difference, low, high: first less second, with its 95 % interval
        (:func:`imm_jax.statistics.paired_bootstrap`).
      only_first, only_second: questions that one of them alone answers right, over all seeds.
      p_value: McNemar's exact test over the questions of all tasks; None with several seeds, whose
        questions are the same.
      questions, tasks, seeds: how many.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float | None
    questions: int
    tasks: int
    seeds: int

    @property
    def word(self) -> str:
        """What the interval and, with one seed, the test say of the first beside the second."""
        apart = [not self.low <= 0 <= self.high]
        apart += [] if self.p_value is None else [self.p_value < LEVEL]
        if all(apart):
            return "higher than" if self.difference > 0 else "lower than"
        return "not clearly different from" if any(apart) else "not distinguishable from"

    @property
    def clear(self) -> bool:
        """Whether they say that there is a difference."""
        return not self.word.startswith("not")

    @property
    def alike(self) -> bool:
        """Whether both are right on the same questions."""
        return self.only_first == self.only_second == 0


def compare_paired(first: Verdicts, second: Verdicts, tasks: Sequence[str]) -> Paired | None:
    """Compares two models on the questions of ``tasks`` that both answered, in all seeds.

    None where there is no such seed or task.
    """
    seeds = [seed for seed in first if seed in second]
    pairs = []
    for task in tasks:
        tables = [table[seed].get(task, {}) for seed in seeds for table in (first, second)]
        names = (
            [name for name in tables[0] if all(name in table for table in tables)] if tables else []
        )
        if not names:
            return None
        pairs.append(
            [
                np.array([[table[seed][task][name] for name in names] for seed in seeds], float)
                for table in (first, second)
            ]
        )
    if not pairs:
        return None
    differences = [one - other for one, other in pairs]
    only_first, only_second = (
        int(sum((difference == sign).sum() for difference in differences)) for sign in (1, -1)
    )
    mean, low, high = paired_bootstrap(differences)
    return Paired(
        first=float(np.mean([one.mean() for one, _ in pairs])),
        second=float(np.mean([other.mean() for _, other in pairs])),
        difference=mean,
        low=low,
        high=high,
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second) if len(seeds) == 1 else None,
        questions=sum(difference.shape[1] for difference in differences),
        tasks=len(tasks),
        seeds=len(seeds),
    )


def sentence(first: str, second: str, what: str, t: int, found: Paired) -> str:
    """What a comparison supports, in one sentence.

    Args:
      first, second: the models' names.
      what: the score's, such as ``"out-of-domain accuracy"``.
      t: the round after which they are compared.
      found: the comparison.
    """
    counted = [_count(found.questions, "question")]
    counted += [_count(found.tasks, "task")] if found.tasks > 1 else []
    counted += [_count(found.seeds, "seed")]
    lead = f"{first}'s {what} after round {t} is {found.word} {second}'s"
    if found.alike:
        return (
            f"{lead}: both answer the same questions right "
            f"({found.first:.3f} each; {', '.join(counted)})."
        )
    test = "" if found.p_value is None else f", McNemar's exact p = {found.p_value:.2g}"
    return (
        f"{lead}: {found.first:.3f} against {found.second:.3f}, difference "
        f"{signed(found.difference)}, 95 % interval {signed(found.low)} to {signed(found.high)}"
        f"{test} ({', '.join(counted)})."
    )


def signed(value: float) -> str:
    """``+0.012``, ``−0.012``, ``0.000``."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
