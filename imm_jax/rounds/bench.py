"""What a run works with, and its prompts, which are written once before anything else."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from imm_jax.choices import choice_rows, is_ranked
from imm_jax.config import RunConfig
from imm_jax.errors import InputError
from imm_jax.evaluation import make_prompts
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.costs import Meter
from imm_jax.rounds.flops import PromptTokens, prompt_tokens, ranking_flops
from imm_jax.rounds.stages import Later
from imm_jax.sampling.checks import check_lengths
from imm_jax.tasks.prompts import prompt_version, training_style
from imm_jax.tasks.types import Task


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a run works with.

    Attributes:
      config: the run's.
      model: the decoder.
      tokenizer: its Hugging Face tokenizer.
      tasks: the in-domain task, then the others.
      should_stop: asked between small steps of work.
      meter: of what the stages cost.
      prompts: lengths of the prompts, by ``(task's name, "train" or "test")``.
      teacher: the model that draws the training samples in a distillation, and its parameters.
    """

    config: RunConfig
    model: Decoder
    tokenizer: Any
    tasks: tuple[Task, ...]
    should_stop: Callable[[], bool]
    meter: Meter = dataclasses.field(default_factory=Meter)
    prompts: dict[tuple[str, str], PromptTokens] = dataclasses.field(default_factory=dict)
    teacher: tuple["Bench", Later[PyTree]] | None = None


def check_prompts(bench: Bench) -> dict[tuple[str, str], PromptTokens]:
    """Writes and measures every prompt of the run, before any weight is read.

    Returns:
      Their lengths, as in :class:`Bench`.

    Raises:
      InputError: a style needs worked examples or a chat template that are not there, or a prompt
        leaves no room for its answer in the model's context.
    """
    config, data = bench.config, bench.config.data
    practised = bench.tasks[0]
    sampled, _ = bench.teacher or (bench, None)
    plans = [(sampled, practised, "train", data.sample_style, config.sampling)]
    plans += [(bench, task, "test", data.evaluate_style, config.evaluation) for task in bench.tasks]
    lengths = {}
    for asked, task, split, style, sampling in plans:
        questions = getattr(task, split)
        prompts = make_prompts(task, questions, style, data.shots, asked.tokenizer)
        encoded = asked.tokenizer(
            [prompt.whole for prompt in prompts],
            add_special_tokens=all(prompt.add_special_tokens for prompt in prompts),
        )
        try:
            check_lengths(asked.model, encoded["input_ids"], sampling.max_new_tokens)
        except InputError as error:
            raise InputError(f"task {task.name}: {error}") from error
        ids = [question.id for question in questions]
        found = prompt_tokens(ids, encoded["input_ids"])
        if split == "test" and is_ranked(config.evaluation.scoring, task, questions):
            given = {"style": style, "shots": data.shots}
            rows = choice_rows(asked.model, asked.tokenizer, task, questions, **given)
            found = found._replace(ranking=ranking_flops(asked.model.config, rows))
        lengths[task.name, split] = found
    make_prompts(practised, practised.train, train_style(config), 0, bench.tokenizer)
    return lengths


def prompt_versions(config: RunConfig) -> dict[str, str]:
    """The prompt styles of a run with their versions, by what they are for."""
    data = config.data
    styles = {"sample": data.sample_style, "evaluate": data.evaluate_style}
    styles["train"] = train_style(config)
    return {use: prompt_version(style) for use, style in styles.items()}


def train_style(config: RunConfig) -> str:
    """The prompt style of training sequences."""
    return config.data.train_style or training_style(config.data.sample_style)
