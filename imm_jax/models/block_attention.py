"""Attention of each row to itself, a block of queries at a time, with its gradient written out.

As in FlashAttention (Dao et al., arXiv 2205.14135, algorithms 1 and 4) the gradient keeps the
result and the log-sum-exp of each query's scores, not the probabilities, which it computes again. A
block of queries meets the keys up to its own last slot, so that up to half of the scores never
exist. In the gradient they lie key by key: of its five products one alone has to turn a factor.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from imm_jax.models.attention import MASKED
from imm_jax.models.products import sum_of_outer

KEPT = "attention"  # the name of what a rematerialisation policy may keep
FEWEST = 96  # queries of a block; with fewer, products on CPU are too small to be fast
BLOCKS = 8  # at most, which bounds the program


def attend_in_blocks(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    mask_BTS: Bool[Array, "B T T"],
    *,
    scale: float,
    dtype: Any,
) -> Float[Array, "B T H E"]:
    """Softmax attention; the factors of its matrix products are rounded to ``dtype``.

    Scores, softmax and all sums are float32, in the gradient (by reverse mode alone) too.

    Args:
      q_BTHE: rotated queries.
      k_BTKE: rotated keys.
      v_BTKE: values.
      mask_BTS: True where a query may attend to a key, False for all keys in slots after its own
        (most of which are not read).
      scale: factor on the scores.
      dtype: of the factors.
    """
    B, T, H, E = q_BTHE.shape
    K = k_BTKE.shape[2]
    q_BKGTE = q_BTHE.astype(dtype).reshape(B, T, K, H // K, E).transpose(0, 2, 3, 1, 4)
    k_BKSE, v_BKSE = (x.astype(dtype).swapaxes(1, 2) for x in (k_BTKE, v_BTKE))
    out_BKGTE = _attend(scale, q_BKGTE, k_BKSE, v_BKSE, mask_BTS)
    return out_BKGTE.transpose(0, 3, 1, 2, 4).reshape(B, T, H, E)


def block_size(length: int) -> int:
    """Queries of a block, for rows of ``length``."""
    return -(-length // min(BLOCKS, max(1, length // FEWEST)))


def _blocks(length: int) -> list[tuple[int, int]]:
    size = block_size(length)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scale, q_BKGTE, k_BKSE, v_BKSE, mask_BTS):
    return _forward(scale, q_BKGTE, k_BKSE, v_BKSE, mask_BTS)[0]


def _forward(scale, q_BKGTE, k_BKSE, v_BKSE, mask_BTS):
    B, K, G, T, E = q_BKGTE.shape
    outs, lses = [], []
    for start, end in _blocks(T):
        q_BKNE = q_BKGTE[:, :, :, start:end].reshape(B, K, -1, E)
        scores = _matmul(q_BKNE, k_BKSE[:, :, :end].swapaxes(2, 3)) * scale
        scores_BKGTS = scores.reshape(B, K, G, end - start, end)
        scores_BKGTS = jnp.where(mask_BTS[:, None, None, start:end, :end], scores_BKGTS, MASKED)
        best = scores_BKGTS.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores_BKGTS - best)
        total = weights.sum(axis=-1, keepdims=True)
        weights_BKNS = weights.astype(q_BKNE.dtype).reshape(B, K, -1, end)
        out_BKNE = _matmul(weights_BKNS, v_BKSE[:, :, :end])
        outs.append(out_BKNE.reshape(B, K, G, -1, E) / total)
        lses.append((best + jnp.log(total))[..., 0])
    out_BKGTE, lse_BKGT = (
        checkpoint_name(jnp.concatenate(parts, axis=3), KEPT) for parts in (outs, lses)
    )
    return out_BKGTE, (q_BKGTE, k_BKSE, v_BKSE, mask_BTS, out_BKGTE, lse_BKGT)


def _backward(scale, residuals, cotangent_BKGTE):
    q_BKGTE, k_BKSE, v_BKSE, mask_BTS, out_BKGTE, lse_BKGT = residuals
    (B, K, G, T, E), dtype = q_BKGTE.shape, q_BKGTE.dtype
    along_BKGT = jnp.sum(cotangent_BKGTE * out_BKGTE, axis=-1)  # D = sum(dO * O) = sum(dP * P)
    d_k = d_v = jnp.zeros(k_BKSE.shape)
    d_q = []
    for start, end in _blocks(T):
        q_BKNE, d_out_BKNE, lse_BKN, along_BKN = (
            x[:, :, :, start:end].reshape(B, K, -1, *x.shape[4:])
            for x in (q_BKGTE, cotangent_BKGTE.astype(dtype), lse_BKGT, along_BKGT)
        )
        k, v = k_BKSE[:, :, :end], v_BKSE[:, :, :end]
        mask_BST = mask_BTS[:, start:end, :end].swapaxes(1, 2)
        mask_BKSN = jnp.tile(mask_BST, (1, 1, G))[:, None]
        scores_BKSN = _matmul(k, q_BKNE.swapaxes(2, 3)) * scale
        probs_BKSN = jnp.where(mask_BKSN, jnp.exp(scores_BKSN - lse_BKN[:, :, None]), 0)
        d_probs_BKSN = _matmul(v, d_out_BKNE.swapaxes(2, 3))
        d_scores_BKSN = probs_BKSN * (d_probs_BKSN - along_BKN[:, :, None]) * scale
        d_scores_BKSN = d_scores_BKSN.astype(dtype)
        d_v = d_v.at[:, :, :end].add(_matmul(probs_BKSN.astype(dtype), d_out_BKNE))
        d_k = d_k.at[:, :, :end].add(_matmul(d_scores_BKSN, q_BKNE))
        d_q.append(sum_of_outer(d_scores_BKSN, k, dtype).reshape(B, K, G, -1, E))
    d_q = jnp.concatenate(d_q, axis=3)
    return d_q.astype(dtype), d_k.astype(dtype), d_v.astype(dtype), None


_attend.defvjp(_forward, _backward)
_matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
