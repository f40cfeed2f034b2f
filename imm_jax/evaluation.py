"""Questions to a model, its graded answers, and accuracy with intervals."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from imm_jax.errors import InputError, nearest
from imm_jax.models.decoder import Decoder
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import decode_weights
from imm_jax.sampling.engine import generate
from imm_jax.statistics import wilson_interval
from imm_jax.tasks.answers import RULES, grade_all
from imm_jax.tasks.prompts import Prompt, get_style, render
from imm_jax.tasks.types import Example, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One graded sample.

    Attributes:
      id: the question's.
      sample: its number among the question's samples.
      text: what the model said.
      answer: the answer read from it, None where there is none.
      correct: whether it equals the gold answer.
      tokens: how many tokens were sampled.
      logprob: the sum of their log-probabilities, at temperature 1.
      finish_reason: ``"stop"`` or ``"length"``.
    """

    id: str
    sample: int
    text: str
    answer: str | None
    correct: bool
    tokens: int
    logprob: float
    finish_reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy on a task.

    Attributes:
      accuracy: share of correct answers, over all samples of all questions.
      low, high: the 95 % Wilson interval (Wilson 1927); it takes questions as independent, so with
        several samples a question it uses the number of questions.
      questions: how many questions.
      truncated: share of answers that ran into the token limit.
    """

    accuracy: float
    low: float
    high: float
    questions: int
    truncated: float


def evaluate(
    model: Decoder, params: PyTree, tokenizer: Any, tasks: Sequence[Task], **settings: Any
) -> dict[str, Score]:
    """Accuracy on the test questions of each task, by its name.

    Arguments and errors as in :func:`answer_tasks`.
    """
    answers = answer_tasks(model, params, tokenizer, tasks, **settings)
    return {name: score(found) for name, found in answers.items()}


def answer_tasks(
    model: Decoder,
    params: PyTree,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    style: str = "few_shot",
    shots: int = 8,
    sampling: SamplingConfig = SamplingConfig(temperature=0.0),
    samples: int = 1,
    seed: int = 0,
    rule: str = "first",
) -> dict[str, list[Answer]]:
    """Graded answers to the test questions of each task.

    Args:
      model: the decoder.
      params: its parameters.
      tokenizer: a Hugging Face tokenizer.
      tasks: what to evaluate on; see ``imm_jax.tasks.make_task``.
      style: prompt style, a name in ``imm_jax.tasks.prompts.STYLES``.
      shots: worked examples in the prompt, at most as many as the task has.
      sampling: greedy by default.
      samples: answers to each question.
      seed: of the sampler.
      rule: which statement of the answer counts; see ``imm_jax.tasks.answers``.

    Returns:
      For each task, by name, its answers: question by question, sample by sample.

    Raises:
      InputError: a task without test questions or with another's name, an unknown style or rule,
        ``samples`` below 1, or a prompt that does not fit the model.
    """
    check_tasks(tasks)
    get_style(style)
    if rule not in RULES:
        raise InputError(
            f"rule: {rule!r} is unknown{nearest(rule, RULES)}, expected one of {', '.join(RULES)}"
        )
    for name, value, low in (("samples", samples, 1), ("shots", shots, 0)):
        if value < low:
            raise InputError(f"{name}: {value}, expected at least {low}")
    weights = decode_weights(params, model.dtype)
    settings = {
        "style": style,
        "shots": shots,
        "sampling": sampling,
        "samples": samples,
        "seed": seed,
        "rule": rule,
    }
    answers = {}
    for task in tasks:
        label = f"evaluate {task.name}"
        answers[task.name] = ask(
            model, weights, tokenizer, task, task.test, label=label, **settings
        )
    return answers


def ask(
    model: Decoder,
    params: PyTree,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Example],
    *,
    style: str,
    shots: int,
    sampling: SamplingConfig,
    samples: int,
    seed: int | jax.Array,
    rule: str = "first",
    label: str = "sample",
    should_stop: Callable[[], bool] | None = None,
) -> list[Answer]:
    """Samples and grades answers to ``questions``, in their order, ``samples`` of each."""
    prompts = make_prompts(task, questions, style, shots, tokenizer)
    drawn = generate(
        model,
        params,
        tokenizer,
        [prompt.whole for prompt in prompts],
        config=sampling,
        samples=samples,
        stop=get_style(style).stops,
        seed=seed,
        ids=[question.id for question in questions],
        add_special_tokens=all(prompt.add_special_tokens for prompt in prompts),
        label=label,
        should_stop=should_stop,
    )
    flat = [
        (question, number, sample)
        for question, row in zip(questions, drawn)
        for number, sample in enumerate(row)
    ]
    grades = grade_all(task, [(question, sample.text) for question, _, sample in flat], rule=rule)
    return [
        Answer(
            id=question.id,
            sample=number,
            text=sample.text,
            answer=grade.answer,
            correct=grade.correct,
            tokens=len(sample.tokens),
            logprob=float(sum(sample.logprobs)),
            finish_reason=sample.finish_reason,
        )
        for (question, number, sample), grade in zip(flat, grades)
    ]


def check_tasks(tasks: Sequence[Task]) -> None:
    """Raises InputError unless each task has test questions and a name of its own."""
    for number, task in enumerate(tasks):
        if not task.test:
            raise InputError(f"task {task.name} has no test questions, expected some")
        if task.name in {other.name for other in tasks[:number]}:
            raise InputError(f"two tasks are named {task.name}, expected distinct names")


def make_prompts(
    task: Task, questions: Sequence[Example], style: str, shots: int, tokenizer: Any
) -> list[Prompt]:
    """The prompts for ``questions`` with the task's first ``shots`` worked examples."""
    return [render(style, question, task.shots[:shots], tokenizer) for question in questions]


def score(answers: Sequence[Answer]) -> Score:
    """Accuracy of graded answers with its interval."""
    questions = len({answer.id for answer in answers})
    accuracy = sum(answer.correct for answer in answers) / len(answers)
    low, high = wilson_interval(accuracy, questions)
    return Score(
        accuracy=accuracy,
        low=low,
        high=high,
        questions=questions,
        truncated=sum(answer.finish_reason == "length" for answer in answers) / len(answers),
    )
