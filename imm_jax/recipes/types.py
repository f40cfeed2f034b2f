"""A merge as a file describes it: plain data."""

from dataclasses import dataclass, field
from typing import Literal

from imm_jax.models.sources import place_of
from imm_jax.recipes.parameters import Settings


@dataclass(frozen=True)
class Model:
    """A model: a path, relative to the current directory, or a hub id, with its revision.

    ``adapter`` is the LoRA adapter that is added to it, named in the same way. Two that name the
    same folder in other words (``b``, ``./b``, a link to it) are equal.
    """

    source: str = field(compare=False)  # as written, for messages and cards
    revision: str | None = None
    adapter: "Model | None" = None
    place: str = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "place", place_of(self.source))

    def __str__(self) -> str:
        own = f"{self.source}@{self.revision}" if self.revision else self.source
        return f"{own}+{self.adapter}" if self.adapter else own


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model's part in a slice.

    Attributes:
      model: which.
      layer_range: its layers, from the first to before the last; None: all of them.
      parameters: set for this model alone.
    """

    model: Model
    layer_range: tuple[int, int] | None = None
    parameters: Settings


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Layers that are merged together.

    Attributes:
      sources: in the file's order. A base model that ``models`` does not list comes last, as in
        mergekit.
      base_model: the slice's base model, or the recipe's, whether or not the method takes one.
      base: the model among the sources that the method takes as its base, or None.
      parameters: set for this slice.
    """

    sources: tuple[Source, ...]
    base_model: Model | None
    base: Model | None
    parameters: Settings

    @property
    def models(self) -> tuple[Source, ...]:
        """The sources that are merged: all but the base."""
        return tuple(source for source in self.sources if source.model != self.base)


@dataclass(frozen=True, kw_only=True)
class TokenRule:
    """Where a token's embedding comes from, by ``tokenizer.tokens``.

    Attributes:
      token: it is added to the tokenizer if it is not there.
      model: the donor; None: the embedding is 0.
      donor: the donor's token or its id; None: the same token.
      force: models that have the token get that embedding too.
    """

    token: str
    model: Model | None = None
    donor: str | int | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Which tokens the merged model has.

    Attributes:
      source: the base's (without a base, the first model's), all models' together, or one model's.
      tokens: tokens with embeddings of their own.
      pad_to_multiple_of: what the number of rows of the embedding is a multiple of.
    """

    source: Literal["base", "union"] | Model
    tokens: tuple[TokenRule, ...] = ()
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a file asks for.

    Attributes:
      path: the file, for messages.
      text: the file's text, for the model card.
      merge_method: a name in :data:`~imm_jax.merging.METHODS`, or of a method that asks.
      base_model: where one is given.
      slices: in the order of the merged model's layers. ``models`` is one slice of all layers.
      parameters: set for all slices.
      dtype: of the merged model; None: what is stored. mergekit also computes in it, and rounds
        the models to it first; here everything is computed in float32.
      out_dtype: of the merged model, before ``dtype``.
      tokenizer: None: the base model's files are copied, and all vocabularies must agree.
      chat_template: a Jinja template, or ``"auto"``: the one that most models have.
    """

    path: str
    text: str
    merge_method: str
    base_model: Model | None
    slices: tuple[Slice, ...]
    parameters: Settings
    dtype: str | None
    out_dtype: str | None
    tokenizer: TokenizerSettings | None
    chat_template: str | None

    @property
    def models(self) -> tuple[Model, ...]:
        """Every model, the base first, the others in the order in which they appear."""
        found = [] if self.base_model is None else [self.base_model]
        for part in self.slices:
            found += [] if part.base_model is None else [part.base_model]
            found += [source.model for source in part.sources]
        return tuple(dict.fromkeys(found))
