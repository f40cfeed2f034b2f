"""One vocabulary for all models: from which row of which embedding each token's is taken."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from imm_jax.errors import InputError
from imm_jax.models.sources import ResolvedModel
from imm_jax.models.tokenizer import load_tokenizer
from imm_jax.recipes.tokenizer import add_all, load_stripped
from imm_jax.recipes.types import Model, TokenRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ABSENT = -1  # in Vocabulary.rows and donor_rows
MEAN, ZERO, PADDING = -1, -2, -3  # in Vocabulary.fill, beside the positions of models
CHUNK = 1 << 20  # elements of an embedding that are averaged at once


class Donor(NamedTuple):
    """A token whose embedding the recipe decides: the token, its row, and where from.

    ``model`` None stands for zeros; ``donor_row`` is -1 where the model has no such token.
    """

    token: str
    row: int
    model: Model | None
    donor_row: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The rows of the merged model's embedding, for models whose own vocabularies differ.

    Row i of the aligned embedding of model m is its own row ``rows[m, i]``. All models that have
    none get the same one, by ``fill[i]``.

    Attributes:
      tokenizer: of the merged model.
      size: rows of its embedding and head: the configuration's ``vocab_size``.
      models: in the order of the arrays.
      rows: int64 ``[models, size]``: a model's own row, or -1.
      fill: int64 ``[size]``: the position in ``models`` of the one whose row is taken; -1: the
        mean over those that have one; -2: zeros; -3: there is no token, the mean of all tokens'
        rows in the model's aligned embedding.
      donor_rows: int64 ``[size]``: which row of model ``fill[i]`` is taken, or -1.
      donors: tokens whose embedding the recipe decides.
    """

    tokenizer: "PreTrainedTokenizerFast"
    size: int
    models: tuple[Model, ...]
    rows: np.ndarray
    fill: np.ndarray
    donor_rows: np.ndarray
    donors: tuple[Donor, ...] = ()

    def among(self, models: Sequence[Model], base: Model | None) -> "Vocabulary":
        """The vocabulary where only some of the models are merged, as in a slice.

        Args:
          models: their order is that of the new arrays.
          base: whose rows the other models get where it has them.

        Raises:
          InputError: a token's embedding is to come from a model that is none of them.
        """
        rows = self.rows[[self.models.index(model) for model in models]]
        fill, donor_rows = _fill(rows, self.fill != PADDING, models, base, self.donors)
        return replace(self, models=tuple(models), rows=rows, fill=fill, donor_rows=donor_rows)


def align(
    source: Literal["base", "union"] | ResolvedModel | None,
    base: Model | None,
    models: Mapping[Model, ResolvedModel],
    pad_to_multiple_of: int | None = None,
    tokens: Sequence[TokenRule] = (),
) -> Vocabulary | None:
    """Brings the vocabularies of all models onto one. Reads tokenizers and no weights.

    As mergekit does: a token that only one model has gets that model's row; one that the base has,
    the base's; another the mean of those that have it; one that none has, zeros. Tokens past a
    model's ``vocab_size`` count as absent, and are left out of the base's tokenizer. Other than in
    mergekit, tokens that only the recipe adds are never taken for one of the base's padding rows,
    and a model without a tokenizer is not supposed to have the base's.

    Args:
      source: whose tokens the merged model has: the base's (the first model's without one), all
        models', or those of one model. None: the vocabularies must agree already.
      base: one of the models.
      models: every model of the recipe.
      pad_to_multiple_of: of the number of rows.
      tokens: rules for single tokens.

    Returns:
      The vocabulary, or None if ``source`` is.

    Raises:
      InputError: a tokenizer is missing, cannot be read or reduced, or a rule names a token that
        its model does not have.
    """
    if source is None:
        return None
    from imm_jax.models.load import read_config  # and Flax, which most merges can do without

    first = next(iter(models)) if base is None else base
    sizes = {model: read_config(found).vocab_size for model, found in models.items()}
    tokenizers = {
        model: load_stripped(found) if model == first else load_tokenizer(found)
        for model, found in models.items()
    }
    own = {model: tokenizer.get_vocab() for model, tokenizer in tokenizers.items()}
    if source == "union":
        order = [first, *(model for model in models if model != first)]
        others = [(tokenizers[model], sizes[model]) for model in order]
        tokenizer = add_all(load_stripped(models[first]), others)
    else:
        tokenizer = tokenizers[first] if source == "base" else load_tokenizer(source)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([rule.token for rule in tokens if rule.token not in known])

    vocabulary = tokenizer.get_vocab()
    multiple = pad_to_multiple_of or 1
    size = math.ceil((max(vocabulary.values()) + 1) / multiple) * multiple
    rows = np.full((len(models), size), ABSENT, np.int64)
    ids = np.fromiter(vocabulary.values(), np.int64, len(vocabulary))
    for i, model in enumerate(models):
        found = np.fromiter((own[model].get(t, ABSENT) for t in vocabulary), np.int64, len(ids))
        rows[i, ids] = np.where(found < sizes[model], found, ABSENT)
    used = np.zeros(size, bool)
    used[ids] = True
    donors = [_donor(rule, vocabulary[rule.token], own, sizes) for rule in tokens]
    rows[:, [vocabulary[rule.token] for rule in tokens if rule.force]] = ABSENT
    fill, donor_rows = _fill(rows, used, tuple(models), base, donors)
    return Vocabulary(
        tokenizer=tokenizer,
        size=size,
        models=tuple(models),
        rows=rows,
        fill=fill,
        donor_rows=donor_rows,
        donors=tuple(donors),
    )


def _donor(
    rule: TokenRule, row: int, own: Mapping[Model, Mapping[str, int]], sizes: Mapping[Model, int]
) -> Donor:
    """The row that a rule speaks of.

    Raises:
      InputError: the rule names a token or id, and its model has no row for it.
    """
    if rule.model is None:
        return Donor(rule.token, row, None, ABSENT)
    size, named = sizes[rule.model], rule.donor
    found = named
    if not isinstance(named, int):
        found = own[rule.model].get(rule.token if named is None else named, ABSENT)
    if not 0 <= found < size:
        if named is not None:
            raise InputError(
                f"tokenizer.tokens.{rule.token}.source: {rule.model} has no token {named!r} among "
                f"its {size}"
            )
        found = ABSENT
    return Donor(rule.token, row, rule.model, found)


def _fill(
    rows: np.ndarray,
    used: np.ndarray,
    models: Sequence[Model],
    base: Model | None,
    donors: Sequence[Donor],
) -> tuple[np.ndarray, np.ndarray]:
    """``Vocabulary.fill`` and ``donor_rows``, by the rules in :func:`align`."""
    has = rows >= 0
    count = has.sum(axis=0)
    fill = np.where(count == 1, has.argmax(axis=0), MEAN)
    if base in models:
        fill[has[models.index(base)]] = models.index(base)
    fill[count == 0] = ZERO
    fill[~used] = PADDING
    donor_rows = np.where(fill >= 0, rows[np.maximum(fill, 0), np.arange(len(fill))], ABSENT)
    for donor in donors:
        if has[:, donor.row].all():
            continue
        if donor.model is not None and (donor.model not in models or donor.donor_row < 0):
            why = "has no such token" if donor.model in models else "is not merged with it"
            raise InputError(f"tokenizer.tokens.{donor.token}.source: {donor.model} {why}")
        fill[donor.row] = ZERO if donor.model is None else models.index(donor.model)
        donor_rows[donor.row] = donor.donor_row
    return fill, donor_rows


def take_rows(
    embeddings: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    model: int,
    start: int,
    stop: int,
    padding: np.ndarray | None = None,
) -> np.ndarray:
    """Rows ``start`` to ``stop`` of one model's aligned embedding, or of its head.

    Args:
      embeddings: of ``vocabulary.models``, ``[V_m, ...]`` each; only the rows needed are read.
      vocabulary: the common vocabulary.
      model: whose, by its position.
      start: the first row.
      stop: the row after the last.
      padding: what :func:`mean_row` gave; without it, it is computed where it is needed, which
        reads the whole embedding.

    Returns:
      ``[stop - start, ...]`` in the narrowest type that holds all the embeddings' types. Means are
      in float64, rounded once.
    """
    rows, fill = vocabulary.rows[model, start:stop], vocabulary.fill[start:stop]
    out = np.zeros((len(rows), *embeddings[model].shape[1:]), _common_dtype(embeddings))
    mine = rows >= 0
    out[mine] = embeddings[model][rows[mine]]
    fill = np.where(mine, ZERO, fill)
    for donor in np.unique(fill[fill >= 0]):
        at = fill == donor
        out[at] = embeddings[donor][vocabulary.donor_rows[start:stop][at]]
    if (at := fill == MEAN).any():
        out[at] = _mean(embeddings, vocabulary.rows[:, start:stop][:, at])
    if (at := fill == PADDING).any():
        out[at] = mean_row(embeddings, vocabulary, model) if padding is None else padding
    return out


def _common_dtype(embeddings: Sequence[np.ndarray]) -> np.dtype:
    dtype = embeddings[0].dtype
    for embedding in embeddings[1:]:
        dtype = jnp.promote_types(dtype, embedding.dtype)
    return np.dtype(dtype)


def _mean(embeddings: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The mean over the models that have each row; ``rows`` is ``[models, n]``."""
    total = np.zeros((rows.shape[1], *embeddings[0].shape[1:]), np.float64)
    for embedding, own in zip(embeddings, rows, strict=True):
        total[own >= 0] += embedding[own[own >= 0]].astype(np.float64)
    count = (rows >= 0).sum(axis=0)
    return total / count.reshape(-1, *[1] * (total.ndim - 1))


def mean_row(embeddings: Sequence[np.ndarray], vocabulary: Vocabulary, model: int) -> np.ndarray:
    """The mean over all tokens of one model's aligned embedding: what its padding rows hold.

    Returns:
      float64, of an embedding's shape without the first axis.
    """
    used = vocabulary.fill != PADDING
    shape = embeddings[model].shape[1:]
    total = np.zeros(shape, np.float64)
    step = max(1, CHUNK // math.prod(shape))
    nothing = np.zeros(shape)
    for start in range(0, vocabulary.size, step):
        stop = min(start + step, vocabulary.size)
        rows = take_rows(embeddings, vocabulary, model, start, stop, padding=nothing)
        total += rows[used[start:stop]].astype(np.float64).sum(axis=0)
    return total / used.sum()
