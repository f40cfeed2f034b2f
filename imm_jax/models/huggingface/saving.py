"""Models out, in Hugging Face layout: whole folders, written as a stream."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from imm_jax.errors import InputError
from imm_jax.files import atomic_folder
from imm_jax.models.config import ModelConfig
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.families import config_to_hf
from imm_jax.models.huggingface.tensor_files import NAMES, Planned, aligned_empty, write_tensors
from imm_jax.models.huggingface.weight_names import weight_sources
from imm_jax.models.huggingface.weights import (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    WEIGHTS,
    copy_into,
)
from imm_jax.models.layout import param_shapes
from imm_jax.models.tokenizer import save_tokenizer
from imm_jax.tree import path_str, stack_layers

SHARD_BYTES = 5_000_000_000


class Piece(NamedTuple):
    """One tensor to write and where it comes from: the array at ``path``, one layer of it."""

    tensor: Planned
    path: str
    layer: int | None
    transposed: bool


def save_model(
    folder: str | os.PathLike,
    model: Decoder,
    params: PyTree,
    *,
    tokenizer: Any = None,
    generation_config: Mapping[str, Any] | None = None,
    max_shard_bytes: float = SHARD_BYTES,
    card: str | None = None,
) -> None:
    """Writes a model folder that transformers and :func:`imm_jax.load_model` read.

    The folder appears whole or not at all; a model folder of that name is replaced. Weights keep
    their type and come back bit-equal. Arrays go to the host one at a time.

    Args:
      folder: where to write.
      model: the decoder; its ``config`` is written.
      params: the canonical tree, float32, bfloat16 or float16.
      tokenizer: a transformers tokenizer to save beside the weights.
      generation_config: what goes into ``generation_config.json``; by default the token ids of the
        config.
      max_shard_bytes: a file takes no more, unless for one tensor that is larger.
      card: the text of a model card, if there is to be one.

    Raises:
      InputError: params do not fit the model, the tokenizer has more tokens than the model, the
        architecture has no Hugging Face counterpart, ``folder`` holds something else, or it cannot
        be written.
    """
    folder = Path(folder)
    config = model.config
    params = stack_layers(params)
    leaves = {path_str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    _check_leaves(leaves, config)
    description = config_to_hf(config, max(leaves.values(), key=lambda leaf: leaf.nbytes).dtype)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's vocabulary "
            f"{config.vocab_size}"
        )
    _check_target(folder)
    shards = _plan(leaves, config, max_shard_bytes)
    try:
        with atomic_folder(folder) as beside:
            _write_json(beside / CONFIG, description)
            _write_json(beside / GENERATION_CONFIG, _generation(config, generation_config))
            if tokenizer is not None:
                save_tokenizer(tokenizer, beside)
            if card is not None:
                (beside / "README.md").write_text(card, encoding="utf-8")
            _write_shards(beside, shards, leaves)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _check_leaves(leaves: Mapping[str, Any], config: ModelConfig) -> None:
    shapes = param_shapes(config)
    for path in sorted(shapes.keys() ^ leaves.keys()):
        what = "is missing" if path in shapes else "has no place in the model"
        raise InputError(f"params: {path} {what}")
    for path, shape in shapes.items():
        leaf = leaves[path]
        if tuple(leaf.shape) != shape:
            raise InputError(
                f"params: {path} has shape {list(leaf.shape)}, but the model asks for {list(shape)}"
            )
        if np.dtype(leaf.dtype) not in NAMES:
            expected = ", ".join(dtype.name for dtype in NAMES)
            raise InputError(f"params: {path} is {leaf.dtype}, expected one of {expected}")


def _check_target(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: exists and is no model folder; it is left as it is")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: exists and is a file")


def _plan(leaves: Mapping[str, Any], config: ModelConfig, limit: float) -> list[list[Piece]]:
    """The tensors of each file: array by array, so that one array at a time is on the host."""
    shards: list[list[Piece]] = [[]]
    size = 0
    for path, source in weight_sources(config).items():
        stacked = path.startswith("layers/")
        for layer, name in enumerate(source.names):
            tensor = Planned(name, np.dtype(leaves[path].dtype), source.shape)
            if shards[-1] and size + tensor.nbytes > limit:
                shards.append([])
                size = 0
            size += tensor.nbytes
            shards[-1].append(Piece(tensor, path, layer if stacked else None, source.transposed))
    return [sorted(shard, key=lambda p: -p.tensor.dtype.itemsize) for shard in shards]


def _write_shards(folder: Path, shards: list[list[Piece]], leaves: Mapping[str, Any]) -> None:
    stem, ending = WEIGHTS.rsplit(".", 1)
    count = len(shards)
    files = [f"{stem}-{n:05d}-of-{count:05d}.{ending}" for n in range(1, count + 1)]
    files = [WEIGHTS] if count == 1 else files
    for file, shard in zip(files, shards):
        write_tensors(folder / file, [piece.tensor for piece in shard], _values(shard, leaves))
    if count > 1:
        total = sum(piece.tensor.nbytes for shard in shards for piece in shard)
        where = {p.tensor.name: file for file, shard in zip(files, shards) for p in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        _write_json(folder / INDEX, index)


def _values(shard: list[Piece], leaves: Mapping[str, Any]) -> Iterator[np.ndarray]:
    at, host = None, None
    for tensor, path, layer, transposed in shard:
        if path != at:
            at, host = path, np.asarray(leaves[path])
        value = host if layer is None else host[layer]
        if transposed:
            turned = aligned_empty(tensor.shape, tensor.dtype)
            copy_into(turned, value.T)
            value = turned
        yield value


def _generation(config: ModelConfig, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None:
        return dict(given)
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {key: value for key, value in ids.items() if value is not None}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
