"""What commands do before they work: find models, refuse outputs that cannot be written."""

import argparse
import dataclasses
import os
from pathlib import Path

from imm_jax.errors import InputError, nearest
from imm_jax.sampling.config import SamplingConfig


def open_model(source: str, revision: str | None = None):
    """Where a model is, and its tokenizer, checked to fit the model before weights are read."""
    from imm_jax.models.load import read_config
    from imm_jax.models.sources import resolve
    from imm_jax.models.tokenizer import check_tokenizer, load_tokenizer

    resolved = resolve(source, revision=revision)
    config = read_config(resolved)
    tokenizer = load_tokenizer(resolved)
    try:
        check_tokenizer(tokenizer, config)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return resolved, tokenizer


# What models that are merged may differ in; the result has the base's.
MAY_DIFFER = {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range"}
MAY_DIFFER |= {"max_position_embeddings"}


def check_alike(name: str, source, other_name: str, other) -> None:
    """Refuses two models, by where they are, whose architectures differ in anything that counts."""
    from imm_jax.models.load import read_config

    one, two = (dataclasses.asdict(read_config(resolved)) for resolved in (source, other))
    differing = [
        f"{key} ({one[key]!r} and {two[key]!r})"
        for key in one.keys() - MAY_DIFFER
        if one[key] != two[key]
    ]
    if differing:
        raise InputError(
            f"{name} and {other_name}: different architectures, in {'; '.join(sorted(differing))}"
        )


def generation_config(source) -> dict | None:
    """What a model folder says of generation; None where it says nothing."""
    from imm_jax.models.huggingface.weights import GENERATION_CONFIG, read_json

    path = source.path / GENERATION_CONFIG
    return read_json(path) if source.kind == "folder" and path.is_file() else None


def check_output(path: str | None, *, folder: bool = False) -> None:
    """Refuses, before any work, an output that could not be written or would replace a folder."""
    if path is None:
        return
    if folder and os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise InputError(f"{path}: exists, expected a new folder")
    if not folder and os.path.isdir(path):
        raise InputError(f"{path}: is a folder, expected a file")
    parent = next(up for up in Path(os.path.abspath(path)).parents if os.path.lexists(up))
    if not parent.is_dir():
        raise InputError(f"{path}: cannot be written, for {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written (no permission in {parent})")


def check_question_style(style: str) -> None:
    """Refuses a style that is none for a question alone; ``raw`` is one, the text as it is."""
    from imm_jax.tasks.prompts import STYLES, question_styles

    known = ["raw", *question_styles()]
    if style in known:
        return
    wrong = f"unknown prompt style {style!r}{nearest(style, known)}"
    if style in STYLES:
        wrong = f"{style!r} needs worked examples"
    raise InputError(f"--style: {wrong}, expected one of {', '.join(known)}")


def prompt_style(style: str | None, shots: int) -> str:
    """The style on a command line; by default that of worked examples, where there are any.

    Raises:
      InputError: there is no such style, or it needs worked examples and ``--shots`` is 0.
    """
    from imm_jax.tasks import get_style

    chosen = style or ("few_shot" if shots else "plain")
    if get_style(chosen).shots == "required" and not shots:
        raise InputError(
            f"--style {chosen} with --shots 0: {chosen!r} needs worked examples, expected more "
            f"--shots or --style {get_style(chosen).training}"
        )
    return chosen


def sampling_config(args: argparse.Namespace) -> SamplingConfig:
    """The sampler's settings on a command line; those not given keep their defaults."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "batch_size")
    given = {name: getattr(args, name) for name in names}
    return SamplingConfig(**{name: value for name, value in given.items() if value is not None})
