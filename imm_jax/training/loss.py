"""Cross entropy and entropy over tokens, which never hold the logits of a whole batch.

The head is where a small model's memory goes: float32 logits of 8 x 2048 tokens at a vocabulary of
152k are 10 GB. Here response tokens are put first, then taken a chunk at a time, so that logits
exist for ``chunk`` tokens only, and neither prompt nor padding ever meets the vocabulary. The sum
is linear in its cotangent, so the gradient of each chunk is formed in the forward pass, from the
logits at hand: 6 N V D operations, where chunks that recompute their logits need 8.

On a mesh every part of the batch is sorted and taken apart from the others, a chunk of each at a
time: P parts of N tokens, where P is 1 on one device. The head's gradient is added up over the
parts once, at the end.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imm_jax.models.products import sum_of_outer
from imm_jax.sharding import ROWS, batch_shards, constrain, current_sizes


class LossSums(NamedTuple):
    """Sums over the response tokens: of their losses, of them, and of those ranked first."""

    loss: Float[Array, ""]
    tokens: Float[Array, ""]
    correct: Float[Array, ""]


class _Tokens(NamedTuple):
    """All tokens of each part of a batch, those that count first, padded to whole chunks."""

    hidden_PND: Array
    targets_PN: Array
    mask_PN: Array
    order_PN: Array
    chunks: Array  # how many chunks hold a token that counts


def response_loss(
    hidden_BTD: Float[Array, "B T D"],
    unembedding_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    mask_BT: Float[Array, "B T"] | Bool[Array, "B T"] | Int[Array, "B T"],
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    dtype: Any = None,
) -> LossSums:
    """Sum of the cross entropies, in nats, of the tokens where ``mask_BT`` is 1.

    Differentiable (once) in ``hidden_BTD`` and ``unembedding_VD``. Logits, softmax and sums are
    float32.

    Args:
      hidden_BTD: hidden state after the final norm.
      unembedding_VD: rows that score the vocabulary.
      targets_BT: the token that follows each position.
      mask_BT: 1 where the target is a response token, else 0.
      chunk: tokens whose logits ``[chunk, V]`` exist at one time on a device; None: 128 on CPU,
        else 2048.
      softcap: logits become ``softcap * tanh(logits / softcap)``.
      dtype: what the factors of matrix products are rounded to; None: that of ``hidden_BTD``.
    """
    mask_BT = mask_BT.astype(jnp.float32)
    chunk = chunk_size(chunk, targets_BT.size // _parts(targets_BT))
    loss, correct = _total(
        (_cross_entropy, chunk, softcap, jnp.dtype(dtype or hidden_BTD.dtype)),
        hidden_BTD,
        unembedding_VD,
        targets_BT,
        mask_BT,
    )
    return LossSums(loss, mask_BT.sum(), jax.lax.stop_gradient(correct))


def prediction_entropy(
    hidden_BTD: Float[Array, "B T D"],
    unembedding_VD: Float[Array, "V D"],
    mask_BT: Float[Array, "B T"] | Bool[Array, "B T"] | Int[Array, "B T"],
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    dtype: Any = None,
) -> Float[Array, ""]:
    """Mean entropy, in nats, of the predictions where ``mask_BT`` is 1; 0 where there are none.

    What :func:`imm_jax.merging.mean_entropy` is of logits. Differentiable (once), and arguments, as
    in :func:`response_loss`.
    """
    mask_BT = mask_BT.astype(jnp.float32)
    chunk = chunk_size(chunk, mask_BT.size // _parts(mask_BT))
    static = _entropy, chunk, softcap, jnp.dtype(dtype or hidden_BTD.dtype)
    no_targets_BT = jnp.zeros(mask_BT.shape, jnp.int32)
    total, _ = _total(static, hidden_BTD, unembedding_VD, no_targets_BT, mask_BT)
    return total / jnp.maximum(mask_BT.sum(), 1)


def token_logprobs(
    hidden_BTD: Float[Array, "B T D"],
    unembedding_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    mask_BT: Float[Array, "B T"] | Bool[Array, "B T"] | Int[Array, "B T"],
    *,
    chunk: int | None = None,
    softcap: float | None = None,
) -> Float[Array, "B T"]:
    """Log-probability of each target, float32, 0 where ``mask_BT`` is 0; not differentiable.

    Arguments as in :func:`response_loss`.
    """
    return token_scores(
        hidden_BTD, unembedding_VD, targets_BT, mask_BT, chunk=chunk, softcap=softcap
    )[0]


def token_scores(
    hidden_BTD: Float[Array, "B T D"],
    unembedding_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    mask_BT: Float[Array, "B T"] | Bool[Array, "B T"] | Int[Array, "B T"],
    *,
    chunk: int | None = None,
    softcap: float | None = None,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """As :func:`token_logprobs`, and whether each target is the likeliest token.

    False where ``mask_BT`` is 0.
    """
    chunk = chunk_size(chunk, targets_BT.size // _parts(targets_BT))
    tokens = _response_first(hidden_BTD, targets_BT, mask_BT.astype(jnp.float32), chunk)
    head_VD = _head(unembedding_VD, hidden_BTD.dtype)

    def score(i, found):
        hidden, targets, mask = _take(tokens, i, chunk)
        _, lse, picked, best = _score(hidden, head_VD, targets, softcap)
        new = mask * (picked - lse), (mask != 0) & (picked >= best)
        put = jax.lax.dynamic_update_slice
        return tuple(put(old, part, (0, i * chunk)) for old, part in zip(found, new))

    start = jnp.zeros_like(tokens.mask_PN), jnp.zeros_like(tokens.mask_PN, bool)
    found = jax.lax.fori_loop(0, tokens.chunks, score, start)
    logprobs_PN, likeliest_PN = (_put_back(part, tokens.order_PN) for part in found)
    return logprobs_PN.reshape(targets_BT.shape), likeliest_PN.reshape(targets_BT.shape)


def chunk_size(chunk: int | None, tokens: int) -> int:
    """The default chunk where none is given, and never more than there are tokens."""
    return min(chunk or (128 if jax.default_backend() == "cpu" else 2048), tokens)


def _cross_entropy(logits_PNV, lse_PN, picked_PN, targets_PN):
    """Of each target, and its gradient by the logits."""
    chosen_PNV = targets_PN[..., None] == jnp.arange(logits_PNV.shape[-1])
    return lse_PN - picked_PN, jnp.exp(logits_PNV - lse_PN[..., None]) - chosen_PNV


def _entropy(logits_PNV, lse_PN, *_):
    """Of each prediction, ``H = -sum p log p``, and its gradient ``-p (log p + H)``."""
    log_p = logits_PNV - lse_PN[..., None]
    entropy_PN = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return entropy_PN, -jnp.exp(log_p) * (log_p + entropy_PN[..., None])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(static, hidden_BTD, unembedding_VD, targets_BT, mask_BT):
    """Sum of a measure of tokens, and of those ranked first."""
    measure, chunk, softcap, dtype = static
    tokens = _response_first(hidden_BTD.astype(dtype), targets_BT, mask_BT, chunk)
    head_VD = _head(unembedding_VD, dtype)

    def add(i, sums):
        hidden, targets, mask = _take(tokens, i, chunk)
        logits, lse, picked, best = _score(hidden, head_VD, targets, softcap)
        values, _ = measure(logits, lse, picked, targets)
        return sums[0] + jnp.sum(mask * values), sums[1] + jnp.sum(mask * (picked >= best))

    return jax.lax.fori_loop(0, tokens.chunks, add, (jnp.zeros(()), jnp.zeros(())))


def _total_forward(static, hidden_BTD, unembedding_VD, targets_BT, mask_BT):
    measure, chunk, softcap, dtype = static
    tokens = _response_first(hidden_BTD.astype(dtype), targets_BT, mask_BT, chunk)
    head_VD = _head(unembedding_VD, dtype)

    def add(i, carry):
        total, correct, d_hidden_PND, d_head_PVD = carry
        hidden, targets, mask = _take(tokens, i, chunk)
        logits, lse, picked, best = _score(hidden, head_VD, targets, softcap)
        values, d_logits = measure(logits, lse, picked, targets)
        d_logits *= mask[..., None]
        if softcap is not None:
            d_logits *= 1 - jnp.square(logits / softcap)
        d_logits = d_logits.astype(dtype)
        d_hidden = jnp.matmul(d_logits, head_VD, preferred_element_type=hidden_BTD.dtype)
        d_hidden_PND = jax.lax.dynamic_update_slice(d_hidden_PND, d_hidden, (0, i * chunk, 0))
        d_head_PVD += sum_of_outer(d_logits, hidden, dtype)
        total += jnp.sum(mask * values)
        return total, correct + jnp.sum(mask * (picked >= best)), d_hidden_PND, d_head_PVD

    parts = tokens.hidden_PND.shape[0]
    head_zeros = constrain(jnp.zeros((parts, *head_VD.shape), jnp.float32), ROWS, "tensor")
    hidden_zeros = jnp.zeros_like(tokens.hidden_PND, hidden_BTD.dtype)
    start = jnp.zeros(()), jnp.zeros(()), hidden_zeros, head_zeros
    total, correct, d_hidden_PND, d_head_PVD = jax.lax.fori_loop(0, tokens.chunks, add, start)
    d_hidden_BTD = _put_back(d_hidden_PND, tokens.order_PN).reshape(hidden_BTD.shape)
    d_head_VD = d_head_PVD.sum(axis=0)
    # An empty array carries the head's dtype, which the backward pass cannot know otherwise.
    return (total, correct), (d_hidden_BTD, d_head_VD, jnp.zeros((0,), unembedding_VD.dtype))


def _total_backward(static, residuals, cotangents):
    d_hidden_BTD, d_head_VD, like = residuals
    scale = cotangents[0]
    return (
        (d_hidden_BTD * scale).astype(d_hidden_BTD.dtype),
        (d_head_VD * scale).astype(like.dtype),
        None,
        None,
    )


_total.defvjp(_total_forward, _total_backward)


def _head(unembedding_VD, dtype):
    """The head as chunks use it; on a mesh gathered once, not once a chunk."""
    return constrain(unembedding_VD.astype(dtype), "tensor")


def _score(hidden_PND, head_VD, targets_PN, softcap):
    """Logits ``[P, N, V]``, their log-sum-exp, the target's logit and the greatest, all float32."""
    logits = jnp.matmul(hidden_PND, head_VD.T, preferred_element_type=jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    best = logits.max(axis=-1)
    lse = best + jnp.log(jnp.exp(logits - best[..., None]).sum(axis=-1))
    picked = jnp.take_along_axis(logits, targets_PN[..., None], axis=-1)[..., 0]
    return logits, lse, picked, best


def _response_first(hidden_BTD, targets_BT, mask_BT, chunk) -> _Tokens:
    mask = constrain(mask_BT.reshape(_parts(mask_BT), -1), ROWS)
    order = jnp.argsort(mask == 0, axis=1, stable=True)
    pad = -mask.shape[1] % chunk
    rows = hidden_BTD.reshape(*mask.shape, -1), targets_BT.reshape(mask.shape), mask
    padded = [jnp.pad(_pick(x, order), ((0, 0), (0, pad), (0, 0))[: x.ndim]) for x in rows]
    chunks = (jnp.sum(mask != 0, axis=1).max() + chunk - 1) // chunk
    return _Tokens(*constrain(padded, ROWS), order, chunks)


def _take(tokens: _Tokens, i, chunk: int):
    rows = (tokens.hidden_PND, tokens.targets_PN, tokens.mask_PN)
    return (jax.lax.dynamic_slice_in_dim(row, i * chunk, chunk, axis=1) for row in rows)


def _put_back(sorted_PN, order_PN):
    return _pick(sorted_PN[:, : order_PN.shape[1]], jnp.argsort(order_PN, axis=1))


_pick = jax.vmap(lambda tokens, order: tokens[order])


def _parts(rows_BT) -> int:
    """How many parts of the batch are on different devices."""
    parts = batch_shards(current_sizes())
    return parts if rows_BT.shape[0] % parts == 0 else 1
