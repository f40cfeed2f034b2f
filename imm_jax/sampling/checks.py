"""What ``generate`` is asked, checked before anything is compiled, and what the model gives."""

import math
import operator
import reprlib
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from imm_jax.errors import Diverged, InputError
from imm_jax.models.decoder import Decoder


def check_request(prompts: Any, stop: Any, ids: Any, limits: Any) -> None:
    """Raises InputError where one of these arguments of ``generate`` is not as it says.

    Python would read a text as the list of its letters without a word.
    """
    _check_list("prompts", prompts, "texts or of token ids")
    for number, prompt in enumerate(prompts):
        if not hasattr(prompt, "__len__"):
            raise InputError(
                f"prompts: prompt {number} is {prompt!r}, expected a text or a list of token ids"
            )
        if isinstance(prompt, str) != isinstance(prompts[0], str):
            raise InputError(
                f"prompts: prompt {number} is {reprlib.repr(prompt)} and prompt 0 "
                f"{reprlib.repr(prompts[0])}, expected texts alone or token ids alone"
            )
    check_stop(stop)
    if ids is not None:
        _check_list("ids", ids, "names", len(prompts))
        for name in ids:
            if not isinstance(name, str):
                raise InputError(f"ids: {reprlib.repr(name)}, expected a string")
    if limits is not None:
        _check_list("limits", limits, "whole numbers", len(prompts))
        for number, limit in enumerate(limits):
            if not isinstance(limit, Integral) or limit < 1:
                raise InputError(
                    f"limits: {limit!r} for prompt {number}, expected a whole number of at least 1"
                )


def check_stop(stop: Any) -> None:
    """Raises InputError where ``stop`` is no list of strings; an empty one is in every text."""
    _check_list("stop", stop, "strings")
    for string in stop:
        if not isinstance(string, str) or not string:
            raise InputError(f"stop: {string!r}, expected a string of at least one character")


def _check_list(name: str, value: Any, of: str, count: int | None = None) -> None:
    """Refuses what is no list of things, and one that is not of ``count``, one for each prompt."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise InputError(f"{name}: {reprlib.repr(value)}, expected a list of {of}")
    if count is not None and len(value) != count:
        raise InputError(f"{name}: {len(value)} of them, expected {count}, one for each prompt")


def check_tokens(model: Decoder, tokens: Sequence[Sequence[int]]) -> None:
    """Out of range, an id would be read as another token's without a word."""
    size = model.config.vocab_size
    for number, prompt in enumerate(tokens):
        for token in prompt:
            if not _is_below(size, token):
                raise InputError(
                    f"prompt {number}: token {token!r}, expected a whole number from 0 to "
                    f"{size - 1}; does the tokenizer belong to this model?"
                )


def _is_below(size: int, token: Any) -> bool:
    try:
        return 0 <= operator.index(token) < size
    except TypeError:
        return False


def check_lengths(model: Decoder, tokens: Sequence[Sequence[int]], new: int) -> None:
    """Raises InputError where a prompt is empty or leaves no room for ``new`` tokens."""
    room = model.config.max_position_embeddings
    for number, prompt in enumerate(tokens):
        if not prompt:
            raise InputError(f"prompt {number}: empty, expected at least one token")
        if len(prompt) + new > room:
            raise InputError(
                f"prompt {number}: {len(prompt)} tokens and max_new_tokens={new} exceed the "
                f"model's context of {room}"
            )


def check_finite(logprobs: Iterable[float], where: str) -> None:
    """Raises Diverged, naming ``where``, unless these log-probabilities of the model are numbers.

    Of logits that are not numbers the first token is drawn, so the answer looks like one, and of
    options that have no likelihood the first is the likeliest.
    """
    if not all(map(math.isfinite, logprobs)):
        raise Diverged(
            f"{where}: the model gives logits that are not finite, expected numbers; check "
            "its weights"
        )
