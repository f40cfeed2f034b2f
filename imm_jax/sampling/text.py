"""From sampled tokens to text: where an answer stops."""

import dataclasses
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer of the model.

    Attributes:
      text: the answer, without the stop string or end token.
      tokens: what was sampled, up to the token that ended it.
      logprobs: the model's log-probability of each token, at temperature 1.
      finish_reason: ``"stop"`` for an end token or a stop string, ``"length"`` for the token limit.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins in ``text``, or None."""
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    return min(found, default=None)


def finish(
    tokenizer,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    *,
    stop: Sequence[str],
    eos: Sequence[int],
    limit: int,
) -> Sample | None:
    """The finished sample, or None while more tokens are needed.

    A stop string is searched in the decoded text, so one that spans tokens is found. Tokens after
    the one that first completed one are dropped, so it does not matter how many were sampled.

    Args:
      tokenizer: decodes token ids.
      tokens, logprobs: everything sampled so far, none of it after an end token.
      stop: strings that end an answer.
      eos: token ids that end an answer.
      limit: tokens an answer may have.
    """
    ended = bool(tokens) and tokens[-1] in eos
    if not stop and not ended and len(tokens) < limit:
        return None
    body = tokens[:-1] if ended else tokens

    def decode(count: int) -> str:
        return tokenizer.decode(body[:count], skip_special_tokens=True)

    text = decode(len(body))
    at = find_stop(text, stop) if stop else None
    if at is not None:
        low, high = 0, len(body)  # fewest tokens whose text holds the stop string
        while high - low > 1:
            middle = (low + high) // 2
            inside = find_stop(decode(middle), stop) is not None
            low, high = (low, middle) if inside else (middle, high)
        text = decode(high)  # what came after it may hold another that begins before
        text, tokens, ended = text[: find_stop(text, stop)], body[:high], True
    elif not ended and len(tokens) < limit:
        return None
    return Sample(
        text=text,
        tokens=tuple(tokens),
        logprobs=tuple(logprobs[: len(tokens)]),
        finish_reason="stop" if ended else "length",
    )
