"""Iterative deepening: samples that did not come to a good end are told to think again."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from imm_jax.deepening_config import DeepeningConfig
from imm_jax.evaluation import Answer, make_prompts
from imm_jax.models.decoder import Decoder
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.engine import generate
from imm_jax.sampling.text import Sample
from imm_jax.tasks.answers import grade_all
from imm_jax.tasks.prompts import get_style
from imm_jax.tasks.types import Example, Grade, Task

logger = logging.getLogger("imm_jax")


@dataclasses.dataclass
class Trail:
    """A sample under way: what it said in each stretch, and how that was graded."""

    question: Example
    number: int
    prompt: str
    attempts: list[Sample]
    grades: list[Grade] = dataclasses.field(default_factory=list)

    def text(self, trigger: str) -> str:
        """All it has said, with the trigger between attempts."""
        *before, last = (attempt.text for attempt in self.attempts)
        return "".join(f"{text.rstrip()}\n{trigger}" for text in before) + last

    def again(self, trigger: str) -> str:
        """The prompt that has it think again."""
        return f"{self.prompt}{self.text(trigger).rstrip()}\n{trigger}"


def budgets(total: int, initial: int, gamma: float) -> list[int]:
    """The tokens of each stretch: ``initial * gamma**k``; the last takes all that is left.

    They add up to ``total``, and no stretch between the first and the last is cut short.
    """
    spans, left, size = [], total, float(initial)
    while left > 0:
        span = int(size)
        size = min(size * gamma, float(total))
        if left < span or (spans and left - span < int(size)):
            span = left
        spans.append(span)
        left -= span
    return spans


def ask_deepening(
    model: Decoder,
    params: PyTree,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Example],
    *,
    deepening: DeepeningConfig,
    style: str,
    shots: int,
    sampling: SamplingConfig,
    samples: int,
    seed: int | jax.Array,
    rule: str = "first",
    label: str = "sample",
    should_stop: Callable[[], bool] | None = None,
) -> list[Answer]:
    """Samples and grades answers as :func:`imm_jax.evaluation.ask`, and has poor ones go on.

    After Iterative Deepening Sampling (Chen et al., arXiv 2502.05449): a self-correction is
    triggered at intervals that grow geometrically. Our reading: a stretch has ``initial_budget``
    tokens, the next ``gamma`` times as many, all together ``sampling.max_new_tokens``. At the end
    of each, a sample that was cut off, or stopped without an answer (or with a wrong one, where
    ``retry`` says so), gets the trigger sentence appended on a line of its own and is sampled on
    from there; the others are done.

    An :class:`Answer` holds the whole text, trigger sentences included, for that is what a
    fine-tune should see; ``tokens`` and ``logprob`` count sampled tokens alone. Its answer is that
    of the newest attempt that states one, read in that attempt alone. A sample that no longer fits
    the model's context stays as it is. A stretch's random key comes from the question's id, the
    sample's and the stretch's number.

    Args:
      deepening: budgets, the trigger sentence, and which samples go on.
      questions: with distinct ids.

    Other arguments and errors as in :func:`imm_jax.evaluation.ask`.
    """
    prompts = make_prompts(task, questions, style, shots, tokenizer)
    special = all(prompt.add_special_tokens for prompt in prompts)

    def draw(texts: list[str], ids: list[str], count: int, limit: int, name: str):
        return generate(
            model,
            params,
            tokenizer,
            texts,
            config=dataclasses.replace(sampling, max_new_tokens=limit),
            samples=count,
            stop=get_style(style).stops,
            seed=seed,
            ids=ids,
            add_special_tokens=special,
            label=name,
            should_stop=should_stop,
        )

    def fits(text: str, limit: int) -> bool:
        length = len(tokenizer(text, add_special_tokens=special)["input_ids"])
        return length + limit <= model.config.max_position_embeddings

    first, *later = budgets(sampling.max_new_tokens, deepening.initial_budget, deepening.gamma)
    drawn = draw([p.whole for p in prompts], [q.id for q in questions], samples, first, label)
    trails = [
        Trail(question, number, prompt.whole, [sample])
        for question, prompt, row in zip(questions, prompts, drawn)
        for number, sample in enumerate(row)
    ]
    _grade(task, trails, rule)
    under_way = trails
    for stretch, limit in enumerate(later, 1):
        asked = [trail for trail in under_way if goes_on(trail, deepening.retry)]
        under_way = [trail for trail in asked if fits(trail.again(deepening.trigger), limit)]
        if len(under_way) < len(asked):
            logger.warning(
                f"{label}: {len(asked) - len(under_way)} samples fill the context; left as they are"
            )
        drawn = draw(
            [trail.again(deepening.trigger) for trail in under_way],
            [f"{trail.question.id}/{trail.number}/{stretch}" for trail in under_way],
            1,
            limit,
            f"{label}, again",
        )
        for trail, [sample] in zip(under_way, drawn):
            trail.attempts.append(sample)
        _grade(task, under_way, rule)
    return [_answer(trail, deepening.trigger) for trail in trails]


def goes_on(trail: Trail, retry: str) -> bool:
    """Whether its newest attempt asks for another."""
    cut, grade = trail.attempts[-1].finish_reason == "length", trail.grades[-1]
    return cut or grade.answer is None or (retry == "wrong" and not grade.correct)


def _grade(task: Task, trails: Sequence[Trail], rule: str) -> None:
    """Reads and checks each trail's newest attempt."""
    pairs = [(trail.question, trail.attempts[-1].text) for trail in trails]
    for trail, grade in zip(trails, grade_all(task, pairs, rule=rule)):
        trail.grades.append(grade)


def _answer(trail: Trail, trigger: str) -> Answer:
    stated = [grade for grade in trail.grades if grade.answer is not None]
    grade = (stated or trail.grades)[-1]
    return Answer(
        id=trail.question.id,
        sample=trail.number,
        text=trail.text(trigger),
        answer=grade.answer,
        correct=grade.correct,
        tokens=sum(len(sample.tokens) for sample in trail.attempts),
        logprob=float(sum(sum(sample.logprobs) for sample in trail.attempts)),
        finish_reason=trail.attempts[-1].finish_reason,
    )
