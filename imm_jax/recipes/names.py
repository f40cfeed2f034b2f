"""What a recipe calls by name: models, tokenizers, chat templates."""

from imm_jax.errors import InputError, nearest
from imm_jax.recipes import schema
from imm_jax.recipes.types import Model, TokenizerSettings, TokenRule

TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")  # that mergekit carries along


def read_model(text: str, at: str) -> Model:
    """A path or hub id, ``path@revision``, or either with an adapter behind it: ``path+adapter``.

    Raises:
      InputError: it is empty or of another form.
    """
    if text.startswith("pypi:"):
        return Model(text)
    own, plus, adapter = text.partition("+")
    source, _, revision = own.partition("@")
    if not source or "@" in revision or (not revision and "@" in own) or "+" in adapter:
        raise InputError(
            f"{at}: {text!r}, expected a path or hub id, perhaps with @revision, and perhaps a "
            "LoRA adapter behind a +"
        )
    return Model(source, revision or None, read_model(adapter, at) if plus else None)


def read_tokenizer(keys: schema.RecipeKeys) -> TokenizerSettings | None:
    """The tokenizer settings, from either of the two keys that hold them.

    Raises:
      InputError: both are given, or a token's source is incomplete.
    """
    if keys.tokenizer is None:
        if keys.tokenizer_source is None:
            return None
        return TokenizerSettings(source=_tokenizer_source(keys.tokenizer_source, "_source"))
    if keys.tokenizer_source is not None:
        raise InputError("tokenizer_source: expected either it or tokenizer, found both")
    given = keys.tokenizer
    return TokenizerSettings(
        source=_tokenizer_source(given.source, ".source"),
        tokens=tuple(_rule(token, rule) for token, rule in (given.tokens or {}).items()),
        pad_to_multiple_of=given.pad_to_multiple_of,
    )


def _tokenizer_source(text: str, key: str) -> str | Model:
    if text in ("base", "union"):
        return text
    model = read_model(text, f"tokenizer{key}")
    if model.adapter is not None:
        raise InputError(f"tokenizer{key}: {text!r}, expected a model without an adapter")
    return model


def _rule(token: str, keys: schema.TokenKeys) -> TokenRule:
    at, source = f"tokenizer.tokens.{token}.source", keys.source
    donor = [value for value in (source.token, source.token_id) if value is not None]
    if source.kind == "zero" and (donor or source.model is not None):
        raise InputError(f"{at}: a zero embedding has no model and no token")
    if source.kind != "zero" and source.model is None:
        raise InputError(f"{at}.model: missing, expected the model that the embedding comes from")
    if len(donor) != (source.kind == "model_token"):
        raise InputError(
            f"{at}: expected one of token and token_id with kind: model_token, and none without"
        )
    return TokenRule(
        token=token,
        model=None if source.model is None else read_model(source.model, f"{at}.model"),
        donor=donor[0] if donor else None,
        force=keys.force,
    )


def read_chat_template(text: str | None) -> str | None:
    """A Jinja template or ``"auto"``.

    Raises:
      InputError: it is neither; mergekit's named templates are not carried along here.
    """
    if not text or text == "auto" or "{" in text:
        return text or None
    if text in TEMPLATES:
        raise InputError(
            f"chat_template: mergekit's own template {text!r} is not included, expected the text "
            "of a Jinja template, or auto"
        )
    raise InputError(
        f"chat_template: {text!r:.80}, expected a Jinja template, or auto{nearest(text, ['auto'])}"
    )
