"""A run's own model as the judge of its samples: it answers, or says how likely answers are."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from imm_jax import hosts
from imm_jax.choices import ask_choices, choice_prompts
from imm_jax.config import RunConfig
from imm_jax.likelihood import encode
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.rules import Judge, Scorer
from imm_jax.rounds.stages import Later, Stages
from imm_jax.sampling.engine import generate
from imm_jax.tasks.prompts import get_style, render, training_style
from imm_jax.tasks.types import Example, Task

logger = logging.getLogger("imm_jax")

# The questions have no answer of their own: what counts is how likely their options are.
OPTIONS = Task(name="options", train=(), test=(), answer_type="choice")


def make_judge(
    config: RunConfig,
    model: Decoder,
    tokenizer: Any,
    weights: Later[PyTree],
    key: jax.Array,
    stages: Stages,
    label: str,
    should_stop: Callable[[], bool] | None,
) -> Judge:
    """Puts questions to the model, zero-shot in the style it is trained in, as samples are drawn.

    Responses are kept block by block in ``judge/``, so that a run that was cut off goes on.

    Args:
      config: the run's; reads sampling, data.sample_style, select.judge_samples and block.
      model: the decoder.
      tokenizer: its Hugging Face tokenizer.
      weights: its parameters, as decoding takes them.
      key: the random key of the responses.
      stages: where they are kept.
      label: stands before each progress bar.
      should_stop: asked between small steps of work.
    """
    style = training_style(config.data.sample_style)
    room = model.config.max_position_embeddings - config.sampling.max_new_tokens

    def fits(example: Example) -> bool:
        prompt = render(style, example, (), tokenizer)
        special = prompt.add_special_tokens
        return len(tokenizer(prompt.whole, add_special_tokens=special)["input_ids"]) <= room

    def ask(params: PyTree, name: str, block: Sequence[Example]) -> list[dict]:
        fitting = _fitting(name, block, fits)
        prompts = [render(style, example, (), tokenizer) for example in fitting]
        drawn = generate(
            model,
            params,
            tokenizer,
            [prompt.whole for prompt in prompts],
            config=config.sampling,
            samples=config.select.judge_samples,
            stop=get_style(style).stops,
            seed=key,
            ids=[example.id for example in fitting],
            add_special_tokens=all(prompt.add_special_tokens for prompt in prompts),
            label=name,
            should_stop=should_stop,
        )
        said = {e.id: [sample.text for sample in row] for e, row in zip(fitting, drawn)}
        return [{"id": example.id, "said": said.get(example.id, [])} for example in block]

    def judge(name: str, asked: Sequence[Example]) -> list[list[str]]:
        rows = _in_blocks(
            config, stages, name, asked, lambda own: ask(weights(), f"{label}: {name}", own)
        )
        return [row["said"] for row in rows]

    return judge


def make_scorer(
    config: RunConfig,
    model: Decoder,
    tokenizer: Any,
    weights: Later[PyTree],
    key: jax.Array,
    stages: Stages,
    label: str,
    should_stop: Callable[[], bool] | None,
) -> Scorer:
    """Scores options after a question, zero-shot in the style the model is trained in.

    Nothing is drawn, so ``key`` has no part in it. Scores are kept block by block in ``judge/``.
    Other arguments as for :func:`make_judge`.
    """
    style = training_style(config.data.sample_style)
    lead, room = get_style(style).lead, model.config.max_position_embeddings

    def fits(example: Example) -> bool:
        [prompt] = choice_prompts(OPTIONS, [example], style, 0, tokenizer)
        return all(
            len(encode(tokenizer, prompt.whole, lead + text, prompt.add_special_tokens)[0]) <= room
            for text in example.choices
        )

    def ask(params: PyTree, name: str, block: Sequence[Example]) -> list[dict]:
        fitting = _fitting(name, block, fits)
        scored = {}
        if fitting:
            answers = ask_choices(
                model,
                params,
                tokenizer,
                OPTIONS,
                fitting,
                style=style,
                batch_size=config.sampling.batch_size,
                label=name,
                should_stop=should_stop,
            )
            scored = {answer.id: list(answer.logprobs) for answer in answers}
        return [{"id": example.id, "logprobs": scored.get(example.id, [])} for example in block]

    def scorer(name: str, asked: Sequence[Example]) -> list[list[float]]:
        rows = _in_blocks(
            config, stages, name, asked, lambda own: ask(weights(), f"{label}: {name}", own)
        )
        return [row["logprobs"] for row in rows]

    return scorer


MAKERS = {"judge": make_judge, "scorer": make_scorer}  # by the field of ``rules.Aids``


def _fitting(name: str, block: Sequence[Example], fits: Callable[[Example], bool]) -> list[Example]:
    fitting = [example for example in block if fits(example)]
    if len(fitting) < len(block):
        logger.warning(f"{name}: {len(block) - len(fitting)} prompts exceed the context; unasked")
    return fitting


def _in_blocks(
    config: RunConfig,
    stages: Stages,
    name: str,
    asked: Sequence[Example],
    ask: Callable[[Sequence[Example]], list[dict]],
) -> list[dict]:
    """A row for each of ``asked``, kept ``config.block`` at a time; each process asks a share."""
    rows = []
    for number, start in enumerate(range(0, len(asked), config.block)):
        block = asked[start : start + config.block]
        rows += stages.rows(
            f"judge/{name}-{number:05d}",
            lambda block=block: hosts.share(block, ask),
        )
    return rows
