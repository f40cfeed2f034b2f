"""Multiple choice by log-likelihood: which option's text the model finds likeliest."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from imm_jax.errors import InputError
from imm_jax.evaluation import Answer, ask, make_prompts
from imm_jax.likelihood import Row, encode, score_rows
from imm_jax.models.decoder import Decoder
from imm_jax.sampling.config import SamplingConfig
from imm_jax.tasks.options import option_letters
from imm_jax.tasks.prompts import get_style
from imm_jax.tasks.types import Example, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceAnswer:
    """How likely the model finds each option of one question.

    Attributes:
      id: the question's.
      logprobs: of each option's text after the prompt, in nats: the sum over its tokens.
      lengths: of each option's text, in characters.
      gold: the place of the right option.
    """

    id: str
    logprobs: tuple[float, ...]
    lengths: tuple[int, ...]
    gold: int

    @property
    def correct(self) -> bool:
        """The likeliest option is the right one: ``acc`` of lm-evaluation-harness."""
        return int(np.argmax(self.logprobs)) == self.gold

    @property
    def correct_normalised(self) -> bool:
        """So is the likeliest for each character of its text: ``acc_norm`` there."""
        return int(np.argmax(np.divide(self.logprobs, self.lengths))) == self.gold


def ask_choices(
    model: Decoder,
    params: PyTree,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Example],
    *,
    style: str,
    shots: int = 0,
    batch_size: int = 16,
    label: str = "score",
    should_stop: Callable[[], bool] | None = None,
) -> list[ChoiceAnswer]:
    """Scores every option of ``questions``, in their order.

    The prompt holds the question alone; each option's text follows it as an answer would, and so do
    the right options' texts in the worked examples.

    Args:
      model: the decoder; its ``dtype`` is the type it computes in.
      params: its parameters, stacked or with unstacked layers. Weights in another floating type
        are cast once.
      tokenizer: a Hugging Face tokenizer.
      task: of the questions; gives the worked examples.
      questions: with options.
      style: prompt style, a name in ``imm_jax.tasks.prompts.STYLES``.
      shots: worked examples in the prompt, at most as many as the task has.
      batch_size: rows, one an option, that go through the model together.
      label: what the progress bar says.
      should_stop: asked between batches; gives up where it returns true.

    Raises:
      InputError: a question without options, an unknown style, a row longer than the model's
        context, or a model whose logits are not finite.
      Interrupted: ``should_stop`` said so.
    """
    rows = choice_rows(model, tokenizer, task, questions, style=style, shots=shots)
    if not rows:
        return []
    names = [f"task {task.name}, question {q.id}" for q in questions for _ in q.choices]
    sums, _ = score_rows(model, params, rows, batch_size, label, should_stop, names)
    answers, at = [], 0
    for question in questions:
        count = len(question.choices)
        answers.append(
            ChoiceAnswer(
                id=question.id,
                logprobs=tuple(map(float, sums[at : at + count])),
                lengths=tuple(map(len, question.choices)),
                gold=option_letters(count).index(question.answer),
            )
        )
        at += count
    return answers


def choice_rows(
    model: Decoder,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Example],
    *,
    style: str,
    shots: int = 0,
) -> list[Row]:
    """A row for every option of every question, in their order.

    Arguments and errors as in :func:`ask_choices`.
    """
    check_choices(task, questions)
    if not questions:
        return []
    prompts, lead = choice_prompts(task, questions, style, shots, tokenizer), get_style(style).lead
    rows = [
        encode(tokenizer, prompt.whole, lead + text, prompt.add_special_tokens)
        for prompt, question in zip(prompts, questions)
        for text in question.choices
    ]
    room, longest = model.config.max_position_embeddings, max(len(tokens) for tokens, _ in rows)
    if longest > room:
        raise InputError(
            f"task {task.name}: a question with an option has {longest} tokens, expected at most "
            f"the model's context of {room}"
        )
    return rows


def examine(
    model: Decoder,
    params: PyTree,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Example],
    *,
    scoring: str,
    sampling: SamplingConfig,
    seed: int,
    rule: str,
    **settings: Any,
) -> list[Answer]:
    """One graded answer to each question, as a run evaluates.

    Where :func:`is_ranked` says so, by the likeliest option, in no sampled tokens, and
    ``sampling.batch_size`` rows go through the model together; else in words. ``settings`` and
    other arguments are those of :func:`ask_choices` and :func:`imm_jax.evaluation.ask`, errors too.
    """
    asked = model, params, tokenizer, task, questions
    if not is_ranked(scoring, task, questions):
        return ask(*asked, sampling=sampling, samples=1, seed=seed, rule=rule, **settings)
    answers, ranked = [], ask_choices(*asked, batch_size=sampling.batch_size, **settings)
    for question, found in zip(questions, ranked):
        best = int(np.argmax(found.logprobs))
        answers.append(
            Answer(
                id=question.id,
                sample=0,
                text=question.choices[best],
                answer=option_letters(len(question.choices))[best],
                correct=found.correct,
                tokens=0,
                logprob=found.logprobs[best],
                finish_reason="stop",
            )
        )
    return answers


def is_ranked(scoring: str, task: Task, questions: Sequence[Example]) -> bool:
    """Whether a run whose ``scoring`` is this ranks the options of these questions."""
    return scoring == "loglikelihood" and has_choices(task, questions)


def has_choices(task: Task, questions: Sequence[Example]) -> bool:
    """Whether every question has options to score."""
    asked = task.answer_type == "choice"
    return asked and all(question.choices and all(question.choices) for question in questions)


def check_choices(task: Task, questions: Sequence[Example]) -> None:
    """Raises InputError unless every question has options."""
    if not has_choices(task, questions):
        raise InputError(
            f"task {task.name}: its questions have no options to score, "
            "expected a multiple-choice task (or --scoring generate)"
        )


def choice_prompts(
    task: Task, questions: Sequence[Example], style: str, shots: int, tokenizer: Any
) -> list:
    """The prompts that options are scored after: without a list of options, as lm-eval has them."""
    examples = tuple(map(_cloze, task.shots[:shots]))
    asked = dataclasses.replace(task, train=(), test=(), shots=examples)
    return make_prompts(asked, list(map(_cloze, questions)), style, shots, tokenizer)


def _cloze(example: Example) -> Example:
    """The question without its options, answered by the right option's text."""
    if not example.choices:
        return example
    text = example.choices[option_letters(len(example.choices)).index(example.answer)]
    return dataclasses.replace(example, choices=None, solution=text)
