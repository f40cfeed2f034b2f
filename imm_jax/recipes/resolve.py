"""The parameters of one tensor's merge, out of a recipe's settings."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from imm_jax.errors import InputError
from imm_jax.merging.weights import weight_sum_is_zero
from imm_jax.recipes.asking import known_parameters, names_set, used_parameters
from imm_jax.recipes.parameters import REQUIRED, Parameter, Settings, look_up
from imm_jax.recipes.types import Recipe, Slice, Source


class Resolved(NamedTuple):
    """The parameters of one tensor's merge, by mergekit's names.

    Attributes:
      shared: those that hold for all models (``normalize``, ``lambda``, slerp's ``t``).
      each: for every model besides the base, in the order of ``Slice.models``, its own
        (``weight``, ``density``).
    """

    shared: dict[str, Any]
    each: tuple[dict[str, Any], ...]


def depth(layer: int, layers: int) -> float:
    """Where a layer of a slice of ``layers`` stands in a gradient: from 0 to 1, and 1 if alone.

    Tensors outside layers stand at 0.
    """
    return layer / (layers - 1) if layers > 1 else 1.0


def resolve(
    recipe: Recipe, part: Slice, output_name: str, input_names: Sequence[str], t: float
) -> Resolved:
    """The parameters of one tensor.

    A model's settings come before the slice's, and those before the recipe's; where none has a
    value for the tensor, mergekit's default holds.

    Args:
      recipe: the recipe.
      part: one of its slices.
      output_name: the tensor's name in the merged model, by which shared parameters are filtered.
      input_names: its name in each of ``part.sources``, by which a model's own are.
      t: its :func:`depth`.

    Raises:
      InputError: a parameter that is needed has no value, density and epsilon do not fit
        together, or the weights of a linear merge sum to 0; names the file, the parameter and the
        tensor.
    """
    table = _passed(recipe)
    scopes = (part.parameters, recipe.parameters)
    shared = {
        name: _value(recipe, name, parameter, scopes, output_name, t)
        for name, parameter in table.items()
        if not parameter.each
    }
    each = []
    for source, tensor in zip(part.sources, input_names, strict=True):
        if source.model == part.base:
            continue
        own = {
            name: _value(recipe, name, parameter, (source.parameters, *scopes), tensor, t, source)
            for name, parameter in table.items()
            if parameter.each
        }
        _check_della(recipe, own, tensor)
        each.append(own)
    if recipe.merge_method == "linear" and shared["normalize"]:
        weights = [own["weight"] for own in each]
        if weight_sum_is_zero(weights):
            raise InputError(
                f"{recipe.path}: parameters.weight: {weights} sum to 0 for {output_name}, expected "
                "another sum or normalize: false"
            )
    return Resolved(shared, tuple(each))


def _passed(recipe: Recipe) -> dict[str, Parameter]:
    return {name: p for name, p in used_parameters(recipe).items() if p.use == "passed"}


def _value(
    recipe: Recipe,
    name: str,
    parameter: Parameter,
    scopes: Iterable[Settings],
    tensor: str,
    t: float,
    source: Source | None = None,
) -> Any:
    try:
        value = look_up(name, parameter, scopes, tensor, t)
    except InputError as error:
        raise InputError(f"{recipe.path}: parameters.{error}") from error
    if value is REQUIRED:
        raise InputError(_missing(recipe, name, source, f" for {tensor}"))
    return value


def _missing(recipe: Recipe, name: str, source: Source | None, tensor: str) -> str:
    whose = ""
    if source is not None:
        whose = f" for {source.model}"
        if source.model == recipe.base_model:
            whose += " (the base_model, merged like the others)"
    return (
        f"{recipe.path}: parameters.{name}: missing{whose}{tensor}, {recipe.merge_method} needs it"
    )


def _check_della(recipe: Recipe, own: dict[str, Any], tensor: str) -> None:
    if "epsilon" not in own or own["density"] in (0, 1):
        return
    d, e = own["density"], own["epsilon"]
    if not (d - e > 0 and d + e < 1):
        raise InputError(
            f"{recipe.path}: parameters.epsilon: {e:g} with density {d:g} for {tensor}, expected "
            "density - epsilon above 0 and density + epsilon below 1"
        )


def check_values(recipe: Recipe) -> None:
    """Finds what :func:`resolve` would refuse, as far as that depends on no tensor's name.

    Raises:
      InputError: as :func:`resolve`.
    """
    for part in recipe.slices:
        scopes = [recipe.parameters, part.parameters]
        for name, parameter in _passed(recipe).items():
            if parameter.default is not REQUIRED:
                continue
            for source in part.models if parameter.each else (None,):
                own = [] if source is None else [source.parameters]
                if not any(name in settings for settings in scopes + own):
                    raise InputError(_missing(recipe, name, source, ""))
        scopes += [source.parameters for source in part.sources]
        conditions = (c for settings in scopes for cs in settings.values() for c in cs)
        if all(condition.filter is None for condition in conditions):
            for t in _ends(recipe, part):
                resolve(recipe, part, "all tensors", ["all tensors"] * len(part.sources), t)


def _ends(recipe: Recipe, part: Slice) -> tuple[float, ...]:
    """The depths at which a slice has tensors for sure: its first and its last layer's."""
    layers = part.sources[0].layer_range
    alone = layers is not None and layers[1] - layers[0] == 1
    # What lies outside the layers, at 0, belongs to the first slice or to the last one.
    inner = part is not recipe.slices[0] and part is not recipe.slices[-1]
    return (1.0,) if alone and inner else (0.0, 1.0)


def notes(recipe: Recipe) -> tuple[str, ...]:
    """Lines to tell the user: what the recipe sets without any effect."""
    table = known_parameters(recipe.merge_method)
    method = recipe.merge_method
    found = [
        f"{name} has no effect on {method}, here as in mergekit"
        for name in names_set(recipe)
        if table[name].use == "unused"
    ]
    for part in recipe.slices:
        found += [
            f"the base model's {', '.join(source.parameters)} has no effect on {method}"
            for source in part.sources
            if source.model == part.base and source.parameters
        ]
        found += [
            f"{source.model}'s {name} has no effect on {method}, here as in mergekit: it has one "
            "for all models, under the parameters of the recipe or of a slice"
            for source in part.models
            for name in source.parameters
            if table[name].use == "passed" and not table[name].each
        ]
    return tuple(f"{recipe.path}: {note}" for note in found)
