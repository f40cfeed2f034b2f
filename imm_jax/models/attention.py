"""Grouped-query attention: over one or more key-value segments, or fused where a GPU has it."""

import functools
import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

logger = logging.getLogger("imm_jax")

FUSED = "cudnn"  # the implementation of jax.nn.dot_product_attention that is tried on a GPU
TOLERANCE = 0.03  # of outputs and gradients about 1 in bfloat16
MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers, not NaN


def causal_mask(
    query_positions_BT: Int[Array, "B T"],
    key_positions_BS: Int[Array, "B S"],
    window: int | None = None,
) -> Bool[Array, "B T S"]:
    """True where a query may attend to a key.

    A key at position -1 is an empty slot. With a window, a query sees itself and the
    ``window - 1`` positions before it.
    """
    query, key = query_positions_BT[:, :, None], key_positions_BS[:, None, :]
    mask = (key >= 0) & (key <= query)
    return mask if window is None else mask & (key > query - window)


def attend(
    q_BTHE: Float[Array, "B T H E"],
    segments: list[tuple[Float[Array, "..."], Float[Array, "..."], Bool[Array, "..."]]],
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "B T H E"]:
    """Softmax attention over the concatenation of ``segments``; scores and softmax in float32.

    Args:
      q_BTHE: rotated queries.
      segments: ``(k, v, mask_BTS)`` each: keys ``[B, K, E, S]`` and values ``[B, K, S, E]``, or
        both without B for a segment that all rows share, which is then read once instead of once a
        row, with heads before rows all the way. In this order both products run along what lies
        side by side.
      scale: factor on the scores.
      softcap: scores become ``softcap * tanh(scores / softcap)`` where set.
    """
    B, T, H, E = q_BTHE.shape
    K = segments[0][0].shape[-3]
    q_BKGTE = q_BTHE.reshape(B, T, K, H // K, E).transpose(0, 2, 3, 1, 4)
    scores, greatest = [], []
    for k, _, mask in segments:
        score = _matmul(_turn(q_BKGTE, k), k) * scale
        if softcap is not None:
            score = softcap * jnp.tanh(score / softcap)
        scores.append(jnp.where(_turn(mask[:, None, None], k), score, MASKED))
        greatest.append(_turn(scores[-1].max(-1, keepdims=True), k))
    greatest_BKGT1 = jax.lax.stop_gradient(functools.reduce(jnp.maximum, greatest))
    weights = [jnp.exp(s - _turn(greatest_BKGT1, k)) for s, (k, _, _) in zip(scores, segments)]
    totals = [_turn(w.sum(-1, keepdims=True), k) for w, (k, _, _) in zip(weights, segments)]
    out_BKGTE = 0
    for weight, (_, v, _) in zip(weights, segments):
        probs = (weight / _turn(sum(totals), v)).astype(v.dtype)
        out_BKGTE += _turn(_weighted_sum(probs, v), v)
    out_BTKGE = out_BKGTE.transpose(0, 3, 1, 2, 4)
    return out_BTKGE.reshape(B, T, H, E).astype(q_BTHE.dtype)


def _weighted_sum(weight: Float[Array, "X Y G T S"], v: Float[Array, "..."]):
    if v.ndim == 4 and weight.shape[3] == 1:
        # One query a row: XLA:CPU runs this sum ten times as fast as the batched matrix product.
        return jnp.sum(weight[:, :, :, 0, :, None] * v[:, :, None], axis=-2)[:, :, :, None]
    return _matmul(weight, v)


def _turn(x: Float[Array, "..."], segment: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rows and heads exchanged, where ``segment`` is shared: heads are then its products' batch."""
    return x.swapaxes(0, 1) if segment.ndim == 3 else x


def _matmul(x: Float[Array, "X Y G T I"], y: Float[Array, "... I J"]) -> Float[Array, "X Y G T J"]:
    """One product a head, and a row where ``y`` has rows: all other axes of ``x`` are merged."""
    flat = x.reshape(*x.shape[: y.ndim - 2], -1, x.shape[-1])
    out = jnp.matmul(flat, y, preferred_element_type=jnp.float32)
    return out.reshape(*x.shape[:-1], -1)


def attend_causal(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    *,
    scale: float,
    window: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T H E"]:
    """Causal attention of each row to itself, without a mask that is an array.

    Rows are padded on the right: what pads comes after every token, so no token sees it.

    Args:
      q_BTHE: rotated queries.
      k_BTKE: rotated keys.
      v_BTKE: values.
      scale: factor on the scores.
      window: a query sees itself and the ``window - 1`` positions before it; None: all before it.
      implementation: of ``jax.nn.dot_product_attention``; None: ``FUSED``.
    """
    return jax.nn.dot_product_attention(
        q_BTHE, k_BTKE, v_BTKE, scale=scale, is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation or FUSED,
    )  # fmt: skip


@functools.cache
def fused_serves(heads: int, kv_heads: int, head_dim: int, window: int | None, dtype: str) -> bool:
    """Whether this machine's GPU runs :func:`attend_causal` fused, and rightly.

    A small case is compiled and run forward and backward once a process, and compared with XLA's
    own attention; where either fails, one line is logged and the masked form used. Never on CPU.
    """
    if jax.default_backend() != "gpu" or dtype not in ("bfloat16", "float16"):
        return False
    try:
        with jax.ensure_compile_time_eval():  # the question is asked while a step is traced
            error = _difference(heads, kv_heads, head_dim, window, dtype)
    except Exception as failure:  # whatever cuDNN, its absence or XLA raises
        reason = (str(failure).splitlines() or [""])[0][:200]
        logger.info(f"attention: XLA's, because {FUSED} fails ({type(failure).__name__}: {reason})")
        return False
    if not error < TOLERANCE:
        logger.info(f"attention: XLA's, because {FUSED} differs from it by {error:.2g}")
    return error < TOLERANCE


def _difference(heads, kv_heads, head_dim, window, dtype) -> float:
    """The greatest between ``FUSED`` and XLA's attention, of a small case and its gradients."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((2, 128, count, head_dim) for count in (heads, kv_heads, kv_heads, heads))
    *inputs, cotangent = (jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes))

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, q, k, v):
        attend = functools.partial(
            attend_causal, scale=head_dim**-0.5, window=window, implementation=implementation
        )
        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(cotangent)

    pairs = zip(run(FUSED, *inputs), run("xla", *inputs))
    wide = ((one.astype(jnp.float32), two.astype(jnp.float32)) for one, two in pairs)
    return max(float(jnp.abs(one - two).max() / jnp.abs(two).max()) for one, two in wide)
