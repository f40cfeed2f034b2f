"""Whether models fit together: architectures, tensors, tied heads, vocabulary sizes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imm_jax.errors import InputError
from imm_jax.models.huggingface.tensor_files import Entry
from imm_jax.recipes.checkpoint import (
    Checkpoint,
    TensorFiles,
    find_embedding,
    is_head,
    is_vocabulary,
    layer_of,
    listed,
)


class Input(NamedTuple):
    """A tensor on disk: of which model, or of which file of weights, and its name there."""

    checkpoint: Checkpoint | TensorFiles
    name: str

    @property
    def entry(self) -> Entry:
        """Where it lies."""
        return self.checkpoint.tensors[self.name]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that its elements come from."""
        added = self.checkpoint.adapter
        return (self.entry.file, *([] if added is None else [added]))


class Options(NamedTuple):
    """What a user allows explicitly.

    ``untie``: where some models tie their head to the embedding and others do not, the merged model
    has a head of its own. ``truncate_vocabulary``: vocabularies of different sizes are cut to the
    smallest.
    """

    untie: bool = False
    truncate_vocabulary: bool = False


def check_names(
    donor: Checkpoint,
    checkpoints: Iterable[Checkpoint],
    templates: set[str],
    outside: set[str],
    heads: "Heads",
) -> None:
    """Every model has the same tensors, besides the numbers of its layers.

    Args:
      donor: the model whose tensors the others must have.
      checkpoints: all models.
      templates: the donor's layer tensors, ``{}`` in place of the number.
      outside: its other tensors.
      heads: what the models' output heads are called.

    Raises:
      InputError: tensors are missing, or there are others; names them.
    """
    for checkpoint in checkpoints:
        found = {name: layer_of(name) for name in heads.names(checkpoint)}
        theirs = {at[1] for at in found.values() if at}
        rest = {name for name, at in found.items() if at is None}
        missing = (templates - theirs) | (outside - rest)
        if missing:
            raise InputError(
                f"{checkpoint.folder}: tensors are missing that {donor.folder} has: "
                f"{listed(name.format('*') for name in missing)}"
            )
        extra = (theirs - templates) | (rest - outside)
        if extra:
            raise InputError(
                f"{checkpoint.folder}: tensors that {donor.folder} does not have: "
                f"{listed(name.format('*') for name in extra)}"
            )
        for template in templates:
            has = {at[0] for at in found.values() if at and at[1] == template}
            odd = set(range(checkpoint.layers)) - has
            reference = {n for n in range(donor.layers) if template.format(n) not in donor.tensors}
            if odd and (checkpoint.layers != donor.layers or odd != reference):
                raise InputError(
                    f"{checkpoint.folder}: tensors are missing: "
                    f"{listed(template.format(n) for n in odd)}"
                )


ALIKE = ("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size", "hidden_act")  # fmt: skip


def check_alike(donor: Checkpoint, checkpoints: Iterable[Checkpoint]) -> None:
    """Refuses models that compute different things from tensors of the same shapes.

    How they encode positions is no reason: see :mod:`imm_jax.recipes.positions`.

    Raises:
      InputError: names the file, the key and both values.
    """
    for other in checkpoints:
        for key in ALIKE:
            one, two = donor.text.get(key), other.text.get(key)
            if one != two and not (one is None or two is None):
                raise InputError(
                    f"{other.folder}/config.json: {key} is {two!r}, but {one!r} in {donor.folder}: "
                    "different architectures cannot be merged"
                )


class Heads:
    """Which name each model's output head has, where some tie it to the embedding."""

    def __init__(self, checkpoints: Any, options: Options):
        checkpoints = list(checkpoints)
        tied = [c for c in checkpoints if c.tied]
        self.untied = bool(tied) and len(tied) < len(checkpoints)
        if self.untied and not options.untie:
            other = next(c for c in checkpoints if not c.tied)
            raise InputError(
                f"{tied[0].folder} ties its head to the embedding (tie_word_embeddings) and "
                f"{other.folder} does not: --untie gives the merged model a head of its own"
            )
        heads = [n for c in checkpoints if not c.tied for n in c.tensors if is_head(n)]
        self.head = heads[0] if self.untied and heads else None
        for checkpoint in tied:
            _check_tied(checkpoint)

    def names(self, checkpoint: Checkpoint) -> list[str]:
        """The tensors of a checkpoint; a tied head is one only where others have one."""
        names = [n for n in checkpoint.tensors if not (checkpoint.tied and is_head(n))]
        return [*names, self.head] if checkpoint.tied and self.head else names

    def input(self, checkpoint: Checkpoint, name: str) -> Input:
        """Where the tensor is found."""
        if checkpoint.tied and name == self.head:
            return Input(checkpoint, find_embedding(checkpoint))
        return Input(checkpoint, name)


def _check_tied(checkpoint: Checkpoint) -> None:
    """A head beside a tied embedding is a copy of it, or file and configuration disagree."""
    embedding = find_embedding(checkpoint)
    for head in filter(is_head, checkpoint.tensors):
        one, two = checkpoint.tensors.get(embedding), checkpoint.tensors[head]
        same = one and (one.dtype, one.shape) == (two.dtype, two.shape)
        if not same or not np.array_equal(
            checkpoint.flat(embedding).view(np.uint8), checkpoint.flat(head).view(np.uint8)
        ):
            raise InputError(
                f"{two.file}: tensor {head} differs from {embedding}, but the config says "
                "tie_word_embeddings"
            )


def merged_shape(
    name: str, inputs: Sequence[Input], vocabulary_size: int | None, options: Options
) -> tuple[int, ...]:
    """The shape that a tensor has in all models, or is brought to.

    Args:
      name: in the merged model.
      inputs: the models' tensors.
      vocabulary_size: rows where vocabularies are aligned; None: they must agree.
      options: whether they may be cut.

    Raises:
      InputError: shapes differ.
    """
    shapes = [i.entry.shape for i in inputs]
    if is_vocabulary(name) and vocabulary_size is not None:
        _require_same(inputs, 1)
        _require_rows(inputs)
        return (vocabulary_size, *shapes[0][1:])
    if is_vocabulary(name) and len({shape[:1] for shape in shapes}) > 1:
        _require_same(inputs, 1)
        if not options.truncate_vocabulary:
            sizes = ", ".join(
                f"{s[0]} in {i.checkpoint.folder}" for i, s in zip(inputs, shapes, strict=True)
            )
            raise InputError(
                f"{name}: vocabularies of different sizes: {sizes}; set tokenizer_source in the "
                "recipe, or cut them to the smallest with --truncate-vocabulary"
            )
        return (min(shape[0] for shape in shapes), *shapes[0][1:])
    _require_same(inputs, 0)
    return shapes[0]


def _require_rows(inputs: Sequence[Input]) -> None:
    """Aligned tokens are counted by the configurations, so these must be right."""
    for checkpoint, name in inputs:
        entry, said = checkpoint.tensors[name], checkpoint.text.get("vocab_size")
        if isinstance(said, int) and entry.shape[0] < said:
            raise InputError(
                f"{entry.file}: tensor {name} has {entry.shape[0]} rows, but the config says "
                f"vocab_size {said}"
            )


def _require_same(inputs: Sequence[Input], from_axis: int) -> None:
    first = inputs[0]
    reference = first.entry.shape
    for other in inputs[1:]:
        shape = other.entry.shape
        if len(shape) != len(reference) or shape[from_axis:] != reference[from_axis:]:
            raise InputError(
                f"{other.entry.file}: tensor {other.name} has shape {list(shape)}, but "
                f"{first.name} in {first.checkpoint.folder} {list(reference)}"
            )
