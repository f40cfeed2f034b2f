"""Reading a recipe: mergekit's YAML, checked before any model is looked at."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imm_jax.errors import InputError, nearest
from imm_jax.merging.table import METHODS
from imm_jax.recipes import schema
from imm_jax.recipes.asking import ASKING, check_asking, known_parameters, row_of
from imm_jax.recipes.names import read_chat_template, read_model, read_tokenizer
from imm_jax.recipes.parameters import MERGEKIT, Settings, parameters_of, read_setting
from imm_jax.recipes.resolve import check_values
from imm_jax.recipes.types import Model, Recipe, Slice, Source
from imm_jax.yaml_files import read_yaml

MODULES = ("default", "text_decoder")  # mergekit's names of a text model, and of one in another


def load_recipe(path: str | os.PathLike) -> Recipe:
    """Reads a recipe: the YAML of mergekit 0.1.5, or of a method that mergekit does not have.

    Parameters that only other methods of mergekit have are taken, as there, and
    :func:`~imm_jax.recipes.resolve.notes` says that they have no effect. Keys and parameters that
    nothing has, which mergekit ignores too, are refused. Everything that can be known without the
    models is checked.

    Raises:
      InputError: names the file, the key, what it holds, and what was expected.
    """
    where = os.fspath(path)
    keys = schema.check_keys(read_yaml(path), where)
    try:
        recipe = _read(keys, where, Path(path).read_text(encoding="utf-8"))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    check_asking(recipe)
    check_values(recipe)
    return recipe


def _read(keys: schema.RecipeKeys, path: str, text: str) -> Recipe:
    method = keys.merge_method
    _check_method(method)
    base = _optional_model(keys.base_model, "base_model")
    content, at = _content(keys)
    if content.slices:
        found = [_slice(p, f"{at}slices[{i}]", method, base) for i, p in enumerate(content.slices)]
    else:
        found = [_all_layers(content.models, f"{at}models", method, base)]
    parameters = _settings(keys.parameters, method, "parameters")
    if content is not keys:
        # A setting that has no value for a tensor leaves it to the next wider one.
        inner = _settings(content.parameters, method, f"{at}parameters")
        names = [*inner, *(name for name in parameters if name not in inner)]
        parameters = {n: (*inner.get(n, ()), *parameters.get(n, ())) for n in names}
    recipe = Recipe(
        path=path,
        text=text,
        merge_method=method,
        base_model=base,
        slices=tuple(found),
        parameters=parameters,
        dtype=keys.dtype,
        out_dtype=keys.out_dtype,
        tokenizer=read_tokenizer(keys),
        chat_template=read_chat_template(keys.chat_template),
    )
    for rule in recipe.tokenizer.tokens if recipe.tokenizer else ():
        if rule.model is not None and rule.model not in recipe.models:
            raise InputError(
                f"tokenizer.tokens.{rule.token}.source: {rule.model} is none of the merged models"
            )
    return recipe


def _check_method(method: str) -> None:
    methods = METHODS | ASKING
    if method not in methods:
        raise InputError(f"merge_method: unknown method {method!r}{nearest(method, methods)}")


def _content(keys: schema.RecipeKeys) -> tuple[schema.RecipeKeys | schema.ModuleKeys, str]:
    """What holds the models or slices, and what stands before its keys in a message."""
    _one_of(keys, ("models", "slices", "modules"), "")
    if not keys.modules:
        return keys, ""
    first = next((name for name in keys.modules if name not in MODULES), None)
    if first is not None or len(keys.modules) > 1:
        raise InputError(
            f"modules: {', '.join(keys.modules)}, expected {MODULES[0]} or {MODULES[1]} alone: "
            "only a model's text decoder is merged"
        )
    ((name, module),) = keys.modules.items()
    at = f"modules.{name}."
    _one_of(module, ("models", "slices"), at)
    return module, at


def _one_of(keys: Any, names: tuple[str, ...], at: str) -> None:
    given = [name for name in names if getattr(keys, name)]
    if len(given) != 1:
        *others, last = names
        found = " and ".join(given) or "none of them"
        raise InputError(f"{at}{given[-1] if given else names[0]}: expected one of "
                         f"{', '.join(others)} and {last}, found {found}")  # fmt: skip


def _all_layers(
    entries: Iterable[schema.ModelKeys], at: str, method: str, base: Model | None
) -> Slice:
    sources = [_source(entry, f"{at}[{i}]", method) for i, entry in enumerate(entries)]
    if base is not None and base not in [source.model for source in sources]:
        sources.append(Source(model=base, parameters={}))
    return _assemble(sources, base, {}, at, method)


def _slice(entry: schema.SliceKeys, at: str, method: str, base: Model | None) -> Slice:
    sources = [_source(s, f"{at}.sources[{i}]", method) for i, s in enumerate(entry.sources)]
    lengths = [stop - start for start, stop in (s.layer_range for s in sources)]
    for i, (source, length) in enumerate(zip(sources, lengths, strict=True)):
        if length != lengths[0]:
            raise InputError(
                f"{at}.sources[{i}].layer_range: {list(source.layer_range)} are {length} layers, "
                f"expected {lengths[0]} as in the slice's first source"
            )
    own = _optional_model(entry.base_model, f"{at}.base_model")
    parameters = _settings(entry.parameters, method, f"{at}.parameters")
    return _assemble(sources, own or base, parameters, f"{at}.sources", method)


def _source(entry: schema.ModelKeys, at: str, method: str) -> Source:
    layers = getattr(entry, "layer_range", None)
    if layers is not None and not 0 <= layers[0] < layers[1]:
        raise InputError(
            f"{at}.layer_range: {layers}, expected the first layer and the one after the last"
        )
    return Source(
        model=read_model(entry.model, f"{at}.model"),
        layer_range=layers and tuple(layers),
        parameters=_settings(entry.parameters, method, f"{at}.parameters", of_model=True),
    )


def _assemble(
    sources: list[Source], base_model: Model | None, parameters: Settings, at: str, method: str
) -> Slice:
    """Makes a slice, and checks that the method can merge as many models, with that base."""
    row = row_of(method)
    models = [source.model for source in sources]
    for i, model in enumerate(models):
        if model in models[:i]:
            raise InputError(f"{at}[{i}].model: {model} is there twice, expected it once")
    base = None
    if row.base != "unused" and base_model is not None:
        if base_model not in models:
            raise InputError(
                f"{at}: base_model {base_model} is not among them, and {method} needs its layers"
            )
        base = base_model
    if row.base == "required" and base is None:
        raise InputError(f"base_model: missing, {method} needs one")
    count, (least, most) = len(sources) - (base is not None), row.models
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if least == most else f"at least {least}"
        others = "models besides the base" if row.base == "required" else "models"
        if row.base == "unused" and base_model in models:
            others += f" (base_model {base_model} counts as one, as in mergekit)"
        raise InputError(f"{at}: {count}, {method} merges {wanted} {others}")
    return Slice(sources=tuple(sources), base=base, base_model=base_model, parameters=parameters)


def _optional_model(text: str | None, at: str) -> Model | None:
    return None if text is None else read_model(text, at)


def _settings(raw: dict | None, method: str, at: str, of_model: bool = False) -> Settings:
    known = known_parameters(method)
    settings = {}
    for name, value in (raw or {}).items():
        if name not in known:
            names = [n for n, p in known.items() if p.use == "passed"]
            hint = nearest(name, names) or f", expected one of {', '.join(names)}" if names else ""
            raise InputError(f"{at}.{name}: {method} has no such parameter{hint}")
        if method in MERGEKIT and name not in parameters_of(method):
            settings[name] = ()  # mergekit does not even look at the value
            continue
        if of_model and not known[name].each and method not in MERGEKIT:
            raise InputError(
                f"{at}.{name}: {method} has one {name} for all models, expected it under the "
                "parameters of the recipe or of a slice"
            )
        settings[name] = read_setting(value, known[name], f"{at}.{name}")
    return settings
