"""How likely a model finds texts after prompts: the log-probability of each, a batch at a time."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from imm_jax.errors import Interrupted
from imm_jax.models.cache import KVCache, Prefix, extend
from imm_jax.models.decoder import Decoder, unembedding
from imm_jax.progress import Progress
from imm_jax.sampling.batch import LENGTH_BUCKET, PREFILL_ROWS
from imm_jax.sampling.checks import check_finite
from imm_jax.sampling.decode import decode_weights, grow, prefill
from imm_jax.sampling.prefix import bucket, make_prefix, shared_length
from imm_jax.training.loss import token_scores

TEXT_BUCKET = 8  # texts of up to two of these are padded to a multiple of it
Row = tuple[tuple[int, ...], int]  # token ids of a prompt and a text, and how many are the prompt's


def encode(tokenizer: Any, prompt: str, text: str, add_special_tokens: bool = True) -> Row:
    """Tokens of ``prompt + text`` and how many of them belong to the prompt.

    The whole is tokenized at once, as in lm-evaluation-harness. Where a token spans the seam it
    counts to the text.
    """
    whole, alone = (
        tokenizer(part, add_special_tokens=add_special_tokens)["input_ids"]
        for part in (prompt + text, prompt)
    )
    shared = 0
    while shared < min(len(whole) - 1, len(alone)) and whole[shared] == alone[shared]:
        shared += 1
    return tuple(whole), shared


def score_rows(
    model: Decoder,
    params: PyTree,
    rows: Sequence[Row],
    batch_size: int = 16,
    label: str = "score",
    should_stop: Callable[[], bool] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The log-probability of each row's text, and whether greedy decoding would write it.

    A prompt that several rows of a batch have runs through the model once. ``names`` say in an
    error which row it is, by default its number. Other arguments and errors as in
    :func:`imm_jax.choices.ask_choices`.
    """
    weights = decode_weights(params, model.dtype)
    shared = shared_length([tokens[:prompt] for tokens, prompt in rows])
    prefix = make_prefix(model, weights, rows[0][0][:shared])
    # A text is scored from its prompt's last token on, or where that is empty from its own first.
    seams = [max(prompt, 1) - 1 for _, prompt in rows]
    heads = [tokens[shared:seam] for (tokens, _), seam in zip(rows, seams)]
    tails = [tokens[seam:] for (tokens, _), seam in zip(rows, seams)]
    # Rows of one prompt together, and like lengths.
    order = sorted(range(len(rows)), key=lambda i: (-len(heads[i]), heads[i], -len(tails[i])))
    most = max(Counter(heads).values())  # options that share a prompt
    size = min(batch_size, len(rows), PREFILL_ROWS * most)
    sums, greedy = np.zeros(len(rows)), np.zeros(len(rows), bool)
    with Progress(label, len(rows), "option") as progress:
        for start in range(0, len(rows), size):
            if should_stop is not None and should_stop():
                raise Interrupted(f"{label}: stopped")
            places = order[start : start + size]
            batch = _arrays([heads[i] for i in places], [tails[i] for i in places], size)
            found = row_scores(model, weights, prefix, batch)
            sums[places], greedy[places] = (np.asarray(part)[: len(places)] for part in found)
            for place in places:
                check_finite([sums[place]], names[place] if names else f"text {place}")
            progress.update(len(places))
    return sums, greedy


class Rows(NamedTuple):
    """A batch of texts and the prompts they follow, both padded on the right.

    Attributes:
      prompts: ``[Q, P]`` token ids, each prompt once, without its last token.
      source: ``[B]`` which prompt a row has.
      start: ``[B]`` how many tokens that one has.
      tokens: ``[B, T]`` token ids: the prompt's last, then the text.
      mask: ``[B, T]`` float32, 1 where the token is scored; 0 for a row's first.
    """

    prompts: Int[Array, "Q P"]
    source: Int[Array, "B"]
    start: Int[Array, "B"]
    tokens: Int[Array, "B T"]
    mask: Float[Array, "B T"]


@functools.partial(jax.jit, static_argnames="model")
def row_scores(
    model: Decoder, weights: PyTree, prefix: Prefix | None, rows: Rows
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Over each row's tokens where the mask is 1: the sum of their log-probabilities, float32, and
    whether each is the likeliest.

    Logits exist for a chunk of the masked tokens at a time (``training.loss.token_scores``).

    Args:
      model: the decoder.
      weights: its parameters with unstacked layers, in the type it computes in.
      prefix: what comes before every prompt; None for nothing.
      rows: what is scored.
    """
    layers = prefill(model, weights, prefix, rows.prompts)
    layers = grow(
        jax.tree.map(lambda x: x[rows.source], layers), rows.prompts.shape[1] + rows.tokens.shape[1]
    )
    cache = KVCache(layers, prefix)
    hidden_BTD, _ = extend(model, weights, cache, rows.tokens, rows.start)
    scored_BT = jnp.roll(rows.mask, -1, axis=1)
    logprobs_BT, likeliest_BT = token_scores(
        hidden_BTD,
        unembedding(weights),
        jnp.roll(rows.tokens, -1, axis=1),
        scored_BT,
        softcap=model.config.final_logit_softcapping,
    )
    return logprobs_BT.sum(axis=1), (likeliest_BT | (scored_BT == 0)).all(axis=1)


def _arrays(heads: Sequence[tuple], tails: Sequence[tuple], size: int) -> Rows:
    """A batch of ``size`` rows in one of few shapes; rows that are not there score nothing."""
    places = {head: place for place, head in enumerate(dict.fromkeys(heads))}
    length = bucket(max(map(len, heads)), LENGTH_BUCKET)
    prompts = np.zeros((1 << (len(places) - 1).bit_length(), length), np.int32)
    for head, place in places.items():
        prompts[place, : len(head)] = head
    source, start = np.zeros((2, size), np.int32)
    longest = max(map(len, tails))
    width = bucket(longest, TEXT_BUCKET if longest <= 2 * TEXT_BUCKET else LENGTH_BUCKET)
    tokens, mask = np.zeros((size, width), np.int32), np.zeros((size, width), np.float32)
    for i, (head, tail) in enumerate(zip(heads, tails)):
        source[i], start[i] = places[head], len(head)
        tokens[i, : len(tail)] = tail
        mask[i, 1 : len(tail)] = 1
    return Rows(prompts, source, start, tokens, mask)
