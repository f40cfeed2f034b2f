"""From a recipe and the models' headers to the list of tensors to write, with every check.

Nothing here reads a weight.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from imm_jax.errors import InputError
from imm_jax.merging.protocol import Chain, chain
from imm_jax.merging.table import METHODS
from imm_jax.models.huggingface.tensor_files import DTYPES
from imm_jax.recipes.agreement import (
    Heads,
    Input,
    Options,
    check_alike,
    check_names,
    merged_shape,
)
from imm_jax.recipes.asking import known_parameters
from imm_jax.recipes.checkpoint import (
    Checkpoint,
    TensorFiles,
    is_head,
    is_vocabulary,
    layer_of,
    open_tensors,
)
from imm_jax.recipes.resolve import Resolved, depth, resolve
from imm_jax.recipes.types import Model, Recipe, Slice


@dataclass(frozen=True, kw_only=True, eq=False)
class Output:
    """A tensor of the merged model.

    Attributes:
      name: its name.
      shape: its shape.
      dtype: its type.
      base: what task vectors start from.
      models: what is merged.
      weights: each model's weight: a number, or a tensor on disk with one for each element.
      transforms: the method's chain.
      part: the slice that it belongs to.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    base: Input
    models: tuple[Input, ...]
    weights: tuple[float | Input, ...]
    transforms: Chain
    part: Slice

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Every model's tensor that is read, each once."""
        return tuple(dict.fromkeys((self.base, *self.models)))

    @property
    def weight_inputs(self) -> tuple[Input, ...]:
        """Every tensor of weights that is read."""
        return tuple(w for w in self.weights if isinstance(w, Input))


def plan(
    recipe: Recipe,
    checkpoints: Mapping[Model, Checkpoint],
    vocabulary_size: int | None,
    options: Options,
) -> list[Output]:
    """The tensors of the merged model, in the order of the base's files.

    Args:
      recipe: what is asked for.
      checkpoints: every model of it.
      vocabulary_size: rows of the embedding where vocabularies are aligned; None: they must agree.
      options: see :class:`Options`.

    Raises:
      InputError: the models do not fit together, or the recipe does not fit the models.
    """
    donor = donor_of(recipe, checkpoints)
    check_alike(donor, checkpoints.values())
    heads = Heads(checkpoints.values(), options)
    open_weights = functools.cache(open_tensors)
    outputs = []
    for place in _places(recipe, donor, checkpoints, heads):
        models = [checkpoints[source.model] for source in place.part.sources]
        inputs = [heads.input(c, n) for c, n in zip(models, place.inputs, strict=True)]
        shape = merged_shape(place.output, inputs, vocabulary_size, options)
        outputs.append(_output(recipe, place, shape, inputs, open_weights))
    return outputs


def filter_notes(recipe: Recipe, outputs: Sequence[Output]) -> tuple[str, ...]:
    """A line to tell the user for each filter that no tensor has: its value is used nowhere."""
    table = known_parameters(recipe.merge_method)
    meets: dict[tuple[str, str], bool] = {}
    for output in outputs:
        part, names = output.part, tuple(i.name for i in output.models)
        # A model's own settings are filtered by its own tensor's name, as mergekit does it.
        scopes = [(source.parameters, (n,)) for source, n in zip(part.models, names, strict=True)]
        for settings, own in (*scopes, (part.parameters, names), (recipe.parameters, names)):
            for name, conditions in settings.items():
                tensors = own if table[name].each else (output.name,)
                for condition in conditions:
                    if condition.filter is not None and table[name].use != "unused":
                        key = (condition.where, condition.filter)
                        meets[key] = meets.get(key, False) or any(map(condition.matches, tensors))
    return tuple(
        f"{recipe.path}: {where}: {text!r} is in no tensor's name"
        for (where, text), met in meets.items()
        if not met
    )


def donor_of(recipe: Recipe, checkpoints: Mapping[Model, Checkpoint]) -> Checkpoint:
    """The model whose configuration, tokenizer and tensor names the merged model has."""
    return checkpoints[recipe.models[0]]


class _Place(NamedTuple):
    """A tensor's name in the merged model and in each source of its slice, and its depth."""

    output: str
    inputs: tuple[str, ...]
    part: Slice
    depth: float


def _places(
    recipe: Recipe, donor: Checkpoint, checkpoints: Mapping[Model, Checkpoint], heads: Heads
) -> Iterator[_Place]:
    ranges = [_ranges(recipe, part, checkpoints) for part in recipe.slices]
    templates: dict[str, list[str]] = {}
    outside: list[str] = []
    for name in heads.names(donor):
        found = layer_of(name)
        if found is None:
            outside.append(name)
        else:
            templates.setdefault(found[1], []).append(name)
    check_names(donor, checkpoints.values(), set(templates), set(outside), heads)
    before = [name for name in outside if is_vocabulary(name) and not is_head(name)]
    for name in before:
        part = recipe.slices[0]
        yield _Place(name, (name,) * len(part.sources), part, 0.0)
    number = 0
    for part, starts in zip(recipe.slices, ranges, strict=True):
        first = checkpoints[part.sources[0].model]
        count = starts[0][1] - starts[0][0]
        for layer in range(count):
            for template in templates:
                names = tuple(template.format(start + layer) for start, _ in starts)
                if names[0] in first.tensors:
                    yield _Place(template.format(number), names, part, depth(layer, count))
            number += 1
    for name in outside:
        if name not in before:
            part = recipe.slices[-1]
            yield _Place(name, (name,) * len(part.sources), part, 0.0)


def _ranges(
    recipe: Recipe, part: Slice, checkpoints: Mapping[Model, Checkpoint]
) -> list[tuple[int, int]]:
    """Each source's layers; all sources have as many."""
    found = []
    for source in part.sources:
        layers = checkpoints[source.model].layers
        start, stop = source.layer_range or (0, layers)
        if stop > layers:
            raise InputError(
                f"{recipe.path}: layer_range [{start}, {stop}] of {source.model}: it has "
                f"{layers} layers"
            )
        found.append((start, stop))
        if stop - start != found[0][1] - found[0][0]:
            raise InputError(
                f"{recipe.path}: {source.model} has {stop - start} layers, but "
                f"{part.sources[0].model} {found[0][1] - found[0][0]}"
            )
    return found


def _output(
    recipe: Recipe,
    place: _Place,
    shape: tuple[int, ...],
    inputs: Sequence[Input],
    open_weights: Callable[[str], TensorFiles],
) -> Output:
    part = place.part
    stored = {i.entry.dtype: i for i in inputs}
    for name, odd in stored.items():
        if name not in DTYPES:
            raise InputError(
                f"{odd.entry.file}: tensor {odd.name} is stored as {name}, which cannot be merged; "
                f"expected one of {', '.join(DTYPES)}"
            )
    models, base = [], None
    for source, found in zip(part.sources, inputs, strict=True):
        if source.model == part.base:
            base = found
        else:
            models.append(found)
    kept = functools.reduce(jnp.promote_types, [DTYPES[name] for name in stored])
    names = [i.name for i in inputs]
    resolved = resolve(recipe, part, place.output, names, place.depth)
    weights, transforms = build(recipe.merge_method, resolved, base is not None)
    weights = tuple(
        _weight_input(open_weights(w), w, model) if isinstance(w, str) else w
        for w, model in zip(weights, models, strict=True)
    )
    return Output(
        name=place.output,
        shape=shape,
        dtype=np.dtype(jnp.dtype(recipe.out_dtype or recipe.dtype or kept)),
        base=base or models[0],
        models=tuple(models),
        weights=weights,
        transforms=transforms,
        part=part,
    )


def _weight_input(files: TensorFiles, path: str, model: Input) -> Input:
    """A model's weights for the elements of its tensor: of the same name and shape in the file."""
    entry, shape = files.tensors.get(model.name), model.entry.shape
    if entry is None or entry.shape != shape or entry.dtype not in DTYPES:
        found = "nothing" if entry is None else f"{entry.dtype} {list(entry.shape)}"
        raise InputError(
            f"{path}: tensor {model.name}: found {found}, expected floating numbers {list(shape)} "
            f"as in {model.checkpoint.folder}"
        )
    return Input(files, model.name)


def build(method: str, resolved: Resolved, has_base: bool) -> tuple[tuple[float | str, ...], Chain]:
    """A method's weights and chain of transforms from a recipe's parameters."""
    row, count = METHODS[method], len(resolved.each)
    arguments: dict[str, Any] = dict(resolved.shared)
    for name in resolved.each[0]:
        values = tuple(own[name] for own in resolved.each)
        arguments[name] = values[0] if len(set(values)) == 1 else values
    weights: Any = 1.0 if row.default_weight is None else row.default_weight
    for name in (row.weight, "fisher" if method == "fisher" else None):
        weights = arguments.pop(name, weights)
    if method == "expo":
        weights = tuple(w + 1 for w in weights) if isinstance(weights, tuple) else weights + 1
    if "lambda" in arguments:
        arguments["lambda_"] = arguments.pop("lambda")
    if row.base == "optional":
        arguments["about_base"] = has_base
    weights = weights if isinstance(weights, tuple) else (weights,) * count
    return weights, chain(row.build(**arguments))
