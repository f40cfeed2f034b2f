"""A recipe's merge: of files in blocks, or of whole models that are asked questions."""

import logging
import math
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from imm_jax.asking_methods import ASKED, Job
from imm_jax.asking_prompts import Questions, make_questions, solutions
from imm_jax.errors import InputError, Interrupted
from imm_jax.inputs import check_alike, open_model
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface import weights as huggingface
from imm_jax.models.load import read_config
from imm_jax.recipes import run
from imm_jax.recipes.asking import asks
from imm_jax.recipes.recipe import load_recipe
from imm_jax.recipes.resolve import Resolved, notes, resolve
from imm_jax.recipes.types import Recipe
from imm_jax.recipes.whole import check_decoder, plan_whole, write_whole

logger = logging.getLogger("imm_jax")


def merge_files(
    recipe: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    max_shard_bytes: float = run.SHARD_BYTES,
    untie: bool = False,
    truncate_vocabulary: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Merges models on disk as a recipe says, and writes a model folder.

    Most methods work block by block: see :func:`imm_jax.recipes.run.merge_files`, for arguments and
    errors too. Those that ask the models questions (``regmean``, ``adamerging``, ``greedy_soup``,
    and ``fisher`` with a task) hold all models in memory, 4 bytes a parameter, beside a merged one
    and what they collect. They too check everything but the weights before these are read, write
    nothing before they are done, and leave nothing when stopped. ``seed``, ``untie`` and
    ``truncate_vocabulary`` are not for them.
    """
    described = load_recipe(recipe)
    if not asks(described):
        run.merge_files(
            recipe,
            folder,
            seed=seed,
            max_shard_bytes=max_shard_bytes,
            untie=untie,
            truncate_vocabulary=truncate_vocabulary,
            should_stop=should_stop,
        )
        return
    method = described.merge_method
    if untie or truncate_vocabulary:
        raise InputError(f"--untie, --truncate-vocabulary: not for {method}, which runs the models")
    if seed:
        raise InputError(f"--seed: {seed}, expected it as parameters.seed of {recipe}")
    try:
        _merge_asking(described, folder, max_shard_bytes, should_stop)
    except Interrupted as error:
        error.saved = False
        raise


def _merge_asking(
    recipe: Recipe, folder: str | os.PathLike, max_shard_bytes: float, should_stop: Callable
) -> None:
    for note in notes(recipe):
        logger.warning(note)
    whole = plan_whole(recipe, folder, max_shard_bytes)
    (part,) = recipe.slices
    donor, tokenizer = open_model(str(whole.donor.folder))
    for checkpoint in whole.checkpoints.values():
        check_alike(str(whole.donor.folder), donor, str(checkpoint.folder), checkpoint.resolved)
    if whole.template is not None:
        tokenizer.chat_template = whole.template
    model = Decoder(config=read_config(donor))
    check_decoder(whole, model.config)
    resolved = resolve(recipe, part, "all tensors", ["all tensors"] * len(part.sources), 0.0)
    settings = resolved.shared
    asked = _questions(recipe, resolved, model, tokenizer)
    responses = [
        solutions(questions, settings["style"], model, tokenizer, f"{recipe.path}: parameters")
        for questions in asked
        if settings.get("labels") == "solutions"
    ]

    gigabytes = 4e-9 * sum(math.prod(output.shape) for output in whole.outputs)
    logger.info(
        f"{recipe.path}: {recipe.merge_method} holds {len(part.sources)} models in memory, "
        f"{gigabytes:.2f} GB each"
    )
    params = {}
    for source in part.sources:
        if should_stop():
            raise Interrupted(f"{folder}: stopped")
        checkpoint = whole.checkpoints[source.model]
        params[source.model] = huggingface.read_params(
            checkpoint.folder, read_config(checkpoint.resolved), dtype=jnp.float32,
            reader=checkpoint.reader,
        )  # fmt: skip
    job = Job(
        model=model,
        tokenizer=tokenizer,
        base=params.get(part.base),
        tuned=[params[source.model] for source in part.models],
        names=[str(source.model) for source in part.models],
        asked=asked,
        responses=responses,
        settings=settings,
        should_stop=should_stop,
    )
    found = ASKED[recipe.merge_method](job)
    for line in found.lines:
        logger.info(f"{recipe.merge_method}: {line}")
    if should_stop():
        raise Interrupted(f"{folder}: stopped")
    write_whole(whole, model.config, found.params, found=found.lines, should_stop=should_stop)


def _questions(
    recipe: Recipe, resolved: Resolved, model: Decoder, tokenizer: Any
) -> list[Questions]:
    """The questions for each merged model; a task that several share is made once."""
    settings, where = resolved.shared, f"{recipe.path}: parameters"
    sampled = recipe.merge_method == "greedy_soup" or settings.get("labels") == "samples"
    new = settings["max_new_tokens"] if sampled else 0
    specs = [own.get("task", settings.get("task")) for own in resolved.each]
    made = {
        spec: make_questions(spec, settings, model, tokenizer, where, new)
        for spec in dict.fromkeys(specs)
    }
    return [made[spec] for spec in specs]
