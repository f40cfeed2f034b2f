"""Merging files into files: a recipe in, a model folder out, in the memory of a few blocks."""

import functools
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
from imm_jax.merging.streaming import Part, Read, measure_model, merge_part
from imm_jax.models.huggingface.tensor_files import DTYPES, Planned, TensorReader, read_header
from imm_jax.models.sources import resolve
from imm_jax.progress import Progress
from imm_jax.recipes.agreement import Input, Options
from imm_jax.recipes.card import check_tokenizer_files, write_beside
from imm_jax.recipes.checkpoint import Checkpoint, is_vocabulary, open_checkpoint
from imm_jax.recipes.finite import check_finite
from imm_jax.recipes.plan import Output, plan
from imm_jax.recipes.recipe import load_recipe
from imm_jax.recipes.resolve import notes
from imm_jax.recipes.shards import cut, require_room, unfinished, write_shards
from imm_jax.recipes.types import Model, Recipe
from imm_jax.recipes.vocabulary import Vocabulary, align, mean_row, take_rows

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
    described = load_recipe(recipe)
    for note in notes(described):
        logger.info(note)
    checkpoints = {model: open_checkpoint(model) for model in described.models}
    vocabulary = _vocabulary(described, checkpoints)
    options = Options(untie, truncate_vocabulary)
    outputs = plan(described, checkpoints, vocabulary and vocabulary.size, options)
    sizes = [output.shape[0] for output in outputs if is_vocabulary(output.name)]
    if vocabulary is None and sizes:
        check_tokenizer_files(described, checkpoints, sizes[0])
    shards = cut([Planned(o.name, o.dtype, o.shape) for o in outputs], max_shard_bytes)
    require_room(folder, shards)
    parts = {o.name: _part(o, vocabulary) for o in outputs}
    check_finite(i for output in outputs for i in output.inputs)

    key = jax.random.key(seed, impl="threefry2x32")
    fingerprint = _fingerprint(described, checkpoints, seed, max_shard_bytes, options)
    total = sum(shard.nbytes for shard in shards)
    with unfinished(folder, fingerprint) as beside, Progress("merge", total, unit="B") as progress:
        shared = _measure(outputs, parts, key)

        def pieces(name: str) -> Iterator[np.ndarray]:
            output = by_name[name]
            if should_stop():
                raise Interrupted(f"{folder}: stopped")
            for piece in merge_part(parts[name], output.transforms, key, shared.get(name)):
                yield piece
                progress.update(piece.nbytes)
            for checkpoint, tensor in output.inputs:  # of what an aligned embedding has mapped
                checkpoint.reader.release([tensor])

        by_name = {output.name: output for output in outputs}
        write_shards(beside, shards, pieces, progress.update)
        write_beside(beside, described, checkpoints, outputs, vocabulary, seed, folder.name)


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
    checkpoints: Mapping[Model, Checkpoint],
    seed: int,
    max_shard_bytes: float,
    options: Options,
) -> dict[str, Any]:
    """What finished shards depend on."""
    files = {entry.file for c in checkpoints.values() for entry in c.tensors.values()}
    stats = {str(file): file.stat() for file in files}
    return {
        "version": imm_jax.__version__,
        "recipe": recipe.text,
        "options": [seed, max_shard_bytes, *options],
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(stats.items())},
        "folders": [str(checkpoint.folder) for checkpoint in checkpoints.values()],
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
    read = _aligned_reader(output, vocabulary) if aligned else _reader
    reads = {i: read(i) for i in output.inputs}
    return Part(
        name=output.name,
        shape=output.shape,
        base=reads[output.base],
        tuned=tuple(reads[i] for i in output.models),
        weights=tuple(_weight(w, output) for w in output.weights),
        dtype=output.dtype,
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
        padding = functools.cache(lambda: mean_row(views, among, position))

        def read(start: int, stop: int) -> np.ndarray:
            first, last = start // row, -(-stop // row)
            rows = take_rows(views, among, position, first, last, padding())
            return rows.reshape(-1)[start - first * row : stop - first * row]

        return read

    return reader


def _weight(weight: float | str, output: Output) -> float | Read:
    """A number as it is; a file's tensor of the output's name, with a weight for each element."""
    if not isinstance(weight, str):
        return weight
    entries = _header(weight)
    entry = entries.get(output.name)
    if entry is None or entry.shape != output.shape or entry.dtype not in DTYPES:
        found = "nothing" if entry is None else f"{entry.dtype} {list(entry.shape)}"
        raise InputError(
            f"{weight}: {output.name}: found {found}, expected floating numbers "
            f"{list(output.shape)}"
        )
    reader = TensorReader(entries)
    return lambda start, stop: reader.read(output.name, start, stop).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _header(path: str):
    return read_header(path)
