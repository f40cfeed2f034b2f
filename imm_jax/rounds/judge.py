"""A run's own model as the judge of its samples."""

import logging
from collections.abc import Sequence
from functools import partial

import jax
from jaxtyping import PyTree

from imm_jax import hosts
from imm_jax.config import RunConfig
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.rules import Judge
from imm_jax.rounds.stages import Later, Stages
from imm_jax.sampling.engine import generate
from imm_jax.tasks.prompts import get_style, render, training_style
from imm_jax.tasks.types import Example

logger = logging.getLogger("imm_jax")


def make_judge(
    config: RunConfig,
    model: Decoder,
    tokenizer,
    weights: Later[PyTree],
    key: jax.Array,
    stages: Stages,
    label: str,
    should_stop,
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
        fitting = [example for example in block if fits(example)]
        if len(fitting) < len(block):
            logger.warning(
                f"{name}: {len(block) - len(fitting)} prompts exceed the context; unasked"
            )
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
        rows = []
        for number, start in enumerate(range(0, len(asked), config.block)):
            block = asked[start : start + config.block]
            rows += stages.rows(
                f"judge/{name}-{number:05d}",
                lambda block=block: hosts.share(block, partial(ask, weights(), f"{label}: {name}")),
            )
        return [row["said"] for row in rows]

    return judge
