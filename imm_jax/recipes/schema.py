"""The keys of a recipe, as mergekit's YAML has them; every other key is a mistake."""

from typing import Annotated, Any, Literal

import pydantic

from imm_jax.errors import InputError, nearest

NO_RESIDUAL = "not supported (mergekit itself does nothing with it), expected it to be absent"
DTYPES = ("bfloat16", "float16", "float32")


def _dtype(name: Any) -> str:
    plain = name.removeprefix("torch.") if isinstance(name, str) else name
    if plain not in DTYPES:
        raise InputError(f"{name!r}, expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    return plain


def _no_residual(value: Any) -> None:
    if value is not None:
        raise InputError(NO_RESIDUAL)


def _embedding(source: Any) -> Any:
    return {"model": source} if isinstance(source, str) else source


def _name(value: Any) -> Any:
    """A model's name; mergekit also has ``{model: NAME, lora: NAME}`` and ``{path, revision}``."""
    if not isinstance(value, dict):
        return value
    known = ("model", "lora") if "model" in value else ("path", "revision")
    for key, item in value.items():
        if key not in known and item is not None:
            raise InputError(f"unknown key {key}{nearest(key, known)}")
    first, second = (_name(value.get(key)) for key in known)
    if second is None:
        return first
    return f"{first}{'+' if known[1] == 'lora' else '@'}{second}"


Name = Annotated[str, pydantic.BeforeValidator(_name)]
DType = Annotated[str, pydantic.BeforeValidator(_dtype)]
Parameters = dict[Any, Any] | None


class _Keys(pydantic.BaseModel):
    @pydantic.model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            found = "nothing" if data is None else type(data).__name__
            raise InputError(f"expected a mapping of keys, found {found}")
        for key in data:
            if key not in cls.model_fields:
                raise InputError(f"unknown key {key}{nearest(key, cls.model_fields)}")
        return data


class ModelKeys(_Keys):
    """An entry of ``models``."""

    model: Name
    parameters: Parameters = None


class SourceKeys(ModelKeys):
    """An entry of a slice's ``sources``."""

    layer_range: Annotated[list[int], pydantic.Field(min_length=2, max_length=2)]


class SliceKeys(_Keys):
    """An entry of ``slices``."""

    sources: Annotated[list[SourceKeys], pydantic.Field(min_length=1)]
    base_model: Name | None = None
    residual_weight: Annotated[Any, pydantic.BeforeValidator(_no_residual)] = None
    parameters: Parameters = None


class ModuleKeys(_Keys):
    """An entry of ``modules``."""

    slices: list[SliceKeys] | None = None
    models: list[ModelKeys] | None = None
    parameters: Parameters = None


class EmbeddingKeys(_Keys):
    """Where a token's embedding comes from; without a kind: from the same token of ``model``."""

    kind: Literal["zero", "model_token"] | None = None
    model: Name | None = None
    token_id: pydantic.StrictInt | None = None
    token: str | None = None


class TokenKeys(_Keys):
    """An entry of ``tokenizer.tokens``."""

    source: Annotated[EmbeddingKeys, pydantic.BeforeValidator(_embedding)]
    force: pydantic.StrictBool = False


class TokenizerKeys(_Keys):
    """What stands under ``tokenizer``."""

    source: Name = "union"
    tokens: dict[str, TokenKeys] | None = None
    pad_to_multiple_of: Annotated[pydantic.StrictInt, pydantic.Field(ge=1)] | None = None


class RecipeKeys(_Keys):
    """The whole file."""

    merge_method: str
    name: Any = None  # what the recipe calls itself; as mergekit, nothing is done with it
    base_model: Name | None = None
    models: list[ModelKeys] | None = None
    slices: list[SliceKeys] | None = None
    modules: dict[str, ModuleKeys] | None = None
    parameters: Parameters = None
    dtype: DType | None = None
    out_dtype: DType | None = None
    tokenizer_source: Name | None = None
    tokenizer: TokenizerKeys | None = None
    chat_template: str | None = None


def check_keys(data: dict, path: str) -> RecipeKeys:
    """Checks the keys and types of a whole recipe.

    Raises:
      InputError: a key that is unknown (with the nearest valid one) or missing, or a value of a
        wrong type; names the file and the key.
    """
    try:
        return RecipeKeys.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])[1:]
        cause = first.get("ctx", {}).get("error")
        if first["type"] == "missing":
            message = "missing, expected a value"
        elif isinstance(cause, InputError):
            message = str(cause)
        else:
            message = f"{first['input']!r:.80} is not valid: {_plain(first['msg'])}"
        raise InputError(f"{path}: {key}: {message}" if key else f"{path}: {message}") from error


WORDS = (
    ("valid string", "string"),
    ("valid list", "list"),
    ("valid dictionary", "mapping"),
    ("valid integer", "whole number"),
)


def _plain(message: str) -> str:
    """The message without Python's types, in YAML's words."""
    message = message[0].lower() + message[1:]
    for theirs, ours in WORDS:
        message = message.replace(theirs, ours)
    return message
