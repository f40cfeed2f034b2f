"""What a model's answers are worth: a score for each task, their mean, two models compared."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imm_jax.analysis.verdict import compare_paired, signed
from imm_jax.choices import ChoiceAnswer
from imm_jax.evaluation import Answer, score
from imm_jax.statistics import (
    bootstrap_interval,
    ladder,
    mean_interval,
    pass_at_k,
    wilson_interval,
)
from imm_jax.tasks.votes import majority, same_answers


class Share(NamedTuple):
    """A share of right answers with its 95 % interval."""

    accuracy: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One model on one task.

    Attributes:
      accuracy: share of right answers, over all samples of all questions.
      low, high: its 95 % Wilson interval, over questions.
      questions: how many.
      samples: answers to each question.
      truncated: share of answers that ran into the token limit; None where none was generated.
      unread: share of responses in which no answer was found, counted as wrong; None likewise.
      pass_at_k: for some k the mean over questions of :func:`imm_jax.statistics.pass_at_k`; empty
        with one sample a question.
      pass_at_k_interval: for the same k its 95 % bootstrap interval, over questions.
      majority: share of questions whose most common answer is right (self-consistency, Wang et al.,
        arXiv 2203.11171); None with one sample a question.
      normalised: by length-normalised log-likelihood; None where answers were generated.
    """

    accuracy: float
    low: float
    high: float
    questions: int
    samples: int = 1
    truncated: float | None = None
    unread: float | None = None
    pass_at_k: dict[int, float] = dataclasses.field(default_factory=dict)
    pass_at_k_interval: dict[int, tuple[float, float]] = dataclasses.field(default_factory=dict)
    majority: Share | None = None
    normalised: Share | None = None


class Comparison(NamedTuple):
    """Two models on the same questions, of one task or of several.

    Attributes:
      both, only_first, only_second, neither: questions, of all tasks, that they answer right.
      p_value: that of McNemar's exact test over these questions.
      difference: the first's accuracy less the second's, each task of the same weight.
      low, high: its 95 % interval, of the paired bootstrap over questions.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float
    difference: float
    low: float
    high: float


def score_answers(answers: Sequence[Answer], answer_type: str) -> TaskScore:
    """The score of generated answers, as many to each question."""
    plain, rows = score(answers), list(by_question(answers).values())
    samples = len(rows[0])
    found = {
        "accuracy": plain.accuracy,
        "low": plain.low,
        "high": plain.high,
        "questions": plain.questions,
        "samples": samples,
        "truncated": plain.truncated,
        "unread": sum(answer.answer is None for answer in answers) / len(answers),
    }
    if samples > 1:
        right = [sum(answer.correct for answer in row) for row in rows]
        chances = {k: [pass_at_k(samples, count, k) for count in right] for k in ladder(samples)}
        found["pass_at_k"] = {k: sum(values) / len(rows) for k, values in chances.items()}
        found["pass_at_k_interval"] = {k: bootstrap_interval(v) for k, v in chances.items()}
        found["majority"] = _share(verdicts(answers, answer_type).values())
    return TaskScore(**found)


def score_choices(answers: Sequence[ChoiceAnswer]) -> TaskScore:
    """The score of options ranked by log-likelihood: plain as accuracy, and length-normalised."""
    plain = _share([answer.correct for answer in answers])
    normalised = _share([answer.correct_normalised for answer in answers])
    return TaskScore(**plain._asdict(), questions=len(answers), normalised=normalised)


def verdicts(answers: Sequence[Answer], answer_type: str) -> dict[str, bool]:
    """For each question, by id, whether its most common answer is right.

    With one sample a question that is the sample's own verdict. Without any answer it is False.
    """
    questions = by_question(answers)
    stated = [[answer.answer for answer in row] for row in questions.values()]
    votes = [majority(places) for places in same_answers(answer_type, stated)]
    return {
        name: bool(vote.winners) and row[vote.winners[0]].correct
        for (name, row), vote in zip(questions.items(), votes)
    }


def mean_score(scores: Sequence[TaskScore]) -> Share:
    """The mean accuracy over tasks, each of the same weight whatever its size."""
    return Share(*mean_interval([(s.accuracy, s.low, s.high) for s in scores]))


def compare(first: Mapping[str, bool], second: Mapping[str, bool]) -> Comparison:
    """Compares two models on the questions, by id, of one task.

    Raises:
      ValueError: the questions are not the same.
    """
    return compare_tasks({"": first}, {"": second})


def compare_tasks(
    first: Mapping[str, Mapping[str, bool]], second: Mapping[str, Mapping[str, bool]]
) -> Comparison:
    """Counts the questions of all tasks that two models answer right, and tests the difference.

    Raises:
      ValueError: the tasks or their questions are not the same.
    """
    if {t: v.keys() for t, v in first.items()} != {t: v.keys() for t, v in second.items()}:
        raise ValueError("compare: expected verdicts on the same questions")
    both = sum(right and second[t][q] for t, rows in first.items() for q, right in rows.items())
    found = compare_paired({0: first}, {0: second}, list(first))
    return Comparison(
        both=both,
        only_first=found.only_first,
        only_second=found.only_second,
        neither=found.questions - both - found.only_first - found.only_second,
        p_value=found.p_value,
        difference=found.difference,
        low=found.low,
        high=found.high,
    )


def score_table(scores: Mapping[str, TaskScore]) -> str:
    """A row a task, and the mean where there are several; in brackets 95 % intervals."""
    one = next(iter(scores.values()))
    extra = [f"pass@{k}" for k in one.pass_at_k if k > 1]
    extra += ["majority"] if one.majority else []
    shares = [name for name in ("truncated", "unread") if getattr(one, name) is not None]
    extra += shares
    extra += ["normalised", "95 % interval"] if one.normalised else []
    lines = [["task", "accuracy", "95 % interval", "questions", *extra]]
    for name, found in scores.items():
        cells = [name, *_cells(found), str(found.questions)]
        cells += [
            " ".join(_cells(Share(share, *found.pass_at_k_interval[k])))
            for k, share in found.pass_at_k.items()
            if k > 1
        ]
        cells += [" ".join(_cells(found.majority))] if found.majority else []
        cells += [f"{getattr(found, name):.3f}" for name in shares]
        lines.append(cells + (_cells(found.normalised) if found.normalised else []))
    if len(scores) > 1:
        lines.append(["mean", *_cells(mean_score(list(scores.values())))])
    return aligned(lines)


def comparison_table(comparisons: Mapping[str, Comparison]) -> str:
    """A row a task: which model is right where, the p-value, how far they are apart."""
    counts = ["both", "only first", "only second", "neither"]
    lines = [["task", *counts, "McNemar p", "first - second", "95 % interval"]]
    for name, found in comparisons.items():
        apart = [signed(found.difference), f"[{signed(found.low)}, {signed(found.high)}]"]
        lines.append([name, *map(str, found[: len(counts)]), f"{found.p_value:.4f}", *apart])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in lines if i < len(row)) for i in range(len(lines[0]))]
    texts = []
    for row in lines:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def _cells(share: Share | TaskScore) -> list[str]:
    return [f"{share.accuracy:.3f}", f"[{share.low:.3f}, {share.high:.3f}]"]


def _share(right) -> Share:
    right = list(right)
    accuracy = sum(right) / len(right)
    return Share(accuracy, *wilson_interval(accuracy, len(right)))


def by_question(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """The answers to each question, questions and answers in their order."""
    questions: dict[str, list[Answer]] = {}
    for answer in answers:
        questions.setdefault(answer.id, []).append(answer)
    return questions
