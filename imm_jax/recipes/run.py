"""Merging files into files: a recipe in, a model folder out, in the memory of a few blocks."""

import functools
import hashlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import imm_jax
from imm_jax.errors import InputError, Interrupted
from imm_jax.merging.streaming import Part, Read, Task, measure_model, merge_parts
from imm_jax.models.huggingface.tensor_files import Planned
from imm_jax.models.sources import resolve
from imm_jax.progress import Progress
from imm_jax.recipes.agreement import Input, Options
from imm_jax.recipes.asking import asks
from imm_jax.recipes.card import chat_template, check_tokenizer_files, write_beside
from imm_jax.recipes.checkpoint import Checkpoint, is_vocabulary, open_checkpoint
from imm_jax.recipes.finite import check_finite, is_finite
from imm_jax.recipes.plan import Output, donor_of, filter_notes, plan
from imm_jax.recipes.positions import position_notes
from imm_jax.recipes.recipe import load_recipe
from imm_jax.recipes.resolve import notes
from imm_jax.recipes.shards import (
    Shard,
    cut,
    require_new,
    require_room,
    unfinished,
    write_shards,
)
from imm_jax.recipes.types import Model, Recipe
from imm_jax.recipes.vocabulary import PADDING, Vocabulary, align, mean_row, take_rows

SHARD_BYTES = 5_000_000_000

logger = logging.getLogger("imm_jax")


def merge_files(
    recipe: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    max_shard_bytes: float = SHARD_BYTES,
    untie: bool = False,
    truncate_vocabulary: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Merges models on disk as a mergekit YAML file says, and writes a model folder.

    Everything is computed in float32 and rounded once, block by block. All checks come before the
    first byte is written, NaN and infinite weights included. The folder appears whole or not at
    all; after a kill, the same call goes on behind the last finished shard and ends with the same
    bytes.

    Args:
      recipe: the YAML file.
      folder: a new folder: safetensors, index, configuration, tokenizer, generation configuration,
        a model card and the recipe.
      seed: for methods that draw random numbers. Which elements they drop depends on it and on
        the tensor's name alone.
      max_shard_bytes: a file takes no more, unless for one tensor that is larger.
      untie: give the merged model a head of its own where some models tie theirs to the embedding
        and others do not; otherwise such models are refused.
      truncate_vocabulary: cut vocabularies of different sizes to the smallest; otherwise they are
        refused, unless the recipe has a ``tokenizer_source``.
      should_stop: asked before each tensor.

    Raises:
      InputError: names the file, the key or tensor, what it holds and what was expected.
      Interrupted: ``should_stop`` said so; what is finished is kept.
    """
    folder = Path(folder)
    require_new(folder)
    described = load_recipe(recipe)
    if asks(described):
        raise InputError(
            f"{recipe}: {described.merge_method} asks the models questions, use imm_jax.merge_files"
        )
    for note in notes(described):
        logger.warning(note)
    checkpoints = {model: open_checkpoint(model) for model in described.models}
    vocabulary = _vocabulary(described, checkpoints)
    options = Options(untie, truncate_vocabulary)
    outputs = plan(described, checkpoints, vocabulary and vocabulary.size, options)
    positions = position_notes(donor_of(described, checkpoints), checkpoints.values())
    for note in (*positions, *filter_notes(described, outputs)):
        logger.warning(note)
    sizes = [output.shape[0] for output in outputs if is_vocabulary(output.name)]
    if vocabulary is None and sizes:
        check_tokenizer_files(described, checkpoints, sizes[0])
    template = chat_template(described, checkpoints)
    shards = cut([Planned(o.name, o.dtype, o.shape) for o in outputs], max_shard_bytes)
    require_room(folder, shards)
    parts = {o.name: _part(o, vocabulary) for o in outputs}
    inputs = [i for output in outputs for i in (*output.inputs, *output.weight_inputs)]
    check_finite(inputs)

    random = any(item.random for output in outputs for item in output.transforms)
    key = jax.random.key(seed, impl="threefry2x32") if random else None
    fingerprint = _fingerprint(described, shards, inputs, vocabulary, seed)
    total = sum(shard.nbytes for shard in shards)
    with (
        unfinished(folder, fingerprint, shards) as beside,
        Progress("merge", total, unit="B") as progress,
    ):
        shared = _measure(outputs, parts, key)

        def tasks(names: Sequence[str]) -> Iterator[Task]:
            for name in names:
                if should_stop():
                    raise Interrupted(f"{folder}: stopped")
                yield Task(parts[name], by_name[name].transforms, shared.get(name))

        def tensors(names: Sequence[str]) -> Iterator[Iterator[np.ndarray]]:
            merged = merge_parts(tasks(names), key)
            for name, pieces in itertools.groupby(merged, key=lambda item: item[0].name):
                yield checked(by_name[name], (piece for _, piece in pieces))
                for checkpoint, tensor in by_name[name].inputs:
                    checkpoint.reader.release([tensor])  # what an aligned embedding has mapped

        def checked(output: Output, pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            for piece in pieces:
                if not is_finite(piece):
                    raise InputError(
                        f"{recipe}: tensor {output.name} would have values that {output.dtype} "
                        "cannot hold"
                    )
                yield piece
                progress.update(piece.nbytes)

        by_name = {output.name: output for output in outputs}
        write_shards(beside, shards, tensors, progress.skip)
        write_beside(
            beside,
            described,
            checkpoints,
            outputs,
            vocabulary,
            template,
            seed,
            options,
            name=os.path.basename(os.path.abspath(folder)),
        )


def _vocabulary(recipe: Recipe, checkpoints: Mapping[Model, Checkpoint]) -> Vocabulary | None:
    settings = recipe.tokenizer
    if settings is None:
        return None
    source = settings.source
    if isinstance(source, Model):
        source = resolve(source.source, revision=source.revision)
    resolved = {model: checkpoint.resolved for model, checkpoint in checkpoints.items()}
    return align(source, recipe.base_model, resolved, settings.pad_to_multiple_of, settings.tokens)


def _fingerprint(
    recipe: Recipe,
    shards: Sequence[Shard],
    inputs: Sequence[Input],
    vocabulary: Vocabulary | None,
    seed: int,
) -> dict[str, Any]:
    """What finished shards depend on."""
    stats = {str(file): file.stat() for file in {f for i in inputs for f in i.files}}
    digest = hashlib.sha256()
    for array in (vocabulary.rows, vocabulary.fill, vocabulary.donor_rows) if vocabulary else ():
        digest.update(array.tobytes())
    return {
        "version": imm_jax.__version__,
        "recipe": recipe.text,
        "seed": seed,
        "shards": [[s.file, [(t.name, t.dtype.name, t.shape) for t in s.tensors]] for s in shards],
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        "inputs": [(*map(str, i.files), i.name) for i in inputs],
        "vocabulary": digest.hexdigest(),
    }


def _measure(
    outputs: Sequence[Output], parts: Mapping[str, Part], key: jax.Array
) -> dict[str, list[Any]]:
    """What transforms measure over all tensors that share them."""
    chains = {}
    for output in outputs:
        if any(item.measure is not None and item.scope == "model" for item in output.transforms):
            chains.setdefault(output.transforms, []).append(output.name)
    found = {}
    for transforms, names in chains.items():
        shared = measure_model([parts[name] for name in names], transforms, key)
        found |= dict.fromkeys(names, shared)
    return found


def _part(output: Output, vocabulary: Vocabulary | None) -> Part:
    aligned = is_vocabulary(output.name) and vocabulary is not None
    if aligned:
        _require_own_rows(output, vocabulary)
    read = _aligned_reader(output, vocabulary) if aligned else _reader
    reads = {i: read(i) for i in output.inputs}
    return Part(
        name=output.name,
        shape=output.shape,
        base=reads[output.base],
        tuned=tuple(reads[i] for i in output.models),
        weights=tuple(_reader(w) if isinstance(w, Input) else w for w in output.weights),
        dtype=output.dtype,
    )


def _require_own_rows(output: Output, vocabulary: Vocabulary) -> None:
    """Weights in a file are those of the model's own rows."""
    for model, weight in zip(output.models, output.weights, strict=True):
        rows = vocabulary.rows[vocabulary.models.index(model.checkpoint.model)]
        if isinstance(weight, Input) and not np.array_equal(rows, np.arange(len(rows))):
            raise InputError(
                f"{weight.entry.file}: tensor {weight.name} has weights for the vocabulary of "
                f"{model.checkpoint.folder}, and the merged model has another"
            )


def _reader(source: Input) -> Read:
    return functools.partial(source.checkpoint.reader.read, source.name)


def _aligned_reader(output: Output, vocabulary: Vocabulary) -> Callable[[Input], Read]:
    """Readers of embeddings whose rows are those of the common vocabulary."""
    order = (*output.models, *(() if output.base in output.models else (output.base,)))
    among = vocabulary.among([i.checkpoint.model for i in order], output.part.base_model)
    views = [i.checkpoint.reader[i.name] for i in order]
    row = math.prod(output.shape[1:])

    def reader(source: Input) -> Read:
        position = order.index(source)
        padded = (among.fill == PADDING).any()
        padding = functools.cache(lambda: mean_row(views, among, position) if padded else None)

        def read(start: int, stop: int) -> np.ndarray:
            first, last = start // row, -(-stop // row)
            rows = take_rows(views, among, position, first, last, padding())
            return rows.reshape(-1)[start - first * row : stop - first * row]

        return read

    return reader
