"""From logits to a token, without ever sorting the vocabulary."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 256  # tokens in a block of the two-level inverse CDF
BISECTIONS = 30  # a threshold within 2^-30 of the range of probabilities


def sample_tokens(
    logits_BV: Float[Array, "B V"],
    uniform_B: Float[Array, "B"],
    temperature: float | Float[Array, ""],
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Int[Array, "B"]:
    """Draws one token a row by inverting the CDF at ``uniform_B``.

    Temperature acts first, then top-k, top-p and min-p, each on what the one before left, as in
    Hugging Face's generation. A temperature of 0 takes the likeliest token (the first of equals).

    Args:
      logits_BV: float32 logits.
      uniform_B: one number in [0, 1) a row.
      temperature: may be traced.
      top_k, top_p, min_p: static; see ``SamplingConfig``.

    Returns:
      Token ids ``[B]``, int32.
    """
    greedy_B = likeliest(logits_BV)
    scaled_BV = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    weights_BV = jnp.exp(scaled_BV - jnp.max(scaled_BV, axis=-1, keepdims=True))
    if 0 < top_k < logits_BV.shape[-1]:
        weights_BV = keep_top_k(weights_BV, top_k)
    if top_p < 1:
        weights_BV = keep_top_p(weights_BV, top_p)
    if min_p > 0:
        weights_BV = jnp.where(weights_BV >= min_p, weights_BV, 0.0)
    drawn_B = inverse_cdf(weights_BV, uniform_B)
    return jnp.where(temperature > 0, drawn_B, greedy_B).astype(jnp.int32)


def likeliest(logits_BV: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The token of the greatest logit, the first of equals.

    Two levels, as in :func:`inverse_cdf`: a plain maximum runs in vectors, one that keeps its index
    does not.
    """
    logits = _blocks(logits_BV, -jnp.inf)
    block_B = jnp.argmax(jnp.max(logits, axis=-1), axis=-1)
    inside_BK = jnp.take_along_axis(logits, block_B[:, None, None], axis=1)[:, 0]
    return block_B * BLOCK + jnp.argmax(inside_BK, axis=-1)


def keep_top_k(weights_BV: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Zeroes all but the ``k`` largest weights of each row; those equal to the k-th stay."""
    kth_B = jax.lax.top_k(weights_BV, k)[0][:, -1:]
    return jnp.where(weights_BV >= kth_B, weights_BV, 0.0)


def keep_top_p(weights_BV: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Zeroes what is outside the nucleus (Holtzman et al., arXiv 1904.09751): the smallest set of
    tokens whose share of the weight is at least ``p``; tokens as likely as its last one stay.

    The threshold is the largest one whose tokens still reach ``p``, found by bisection.
    """
    goal_B = p * jnp.sum(weights_BV, axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds  # tokens at or over `low` reach the goal, those at or over `high` do not
        middle = (low + high) / 2
        kept = jnp.sum(jnp.where(weights_BV >= middle, weights_BV, 0.0), axis=-1, keepdims=True)
        return jnp.where(kept >= goal_B, middle, low), jnp.where(kept >= goal_B, high, middle)

    top_B = jnp.max(weights_BV, axis=-1, keepdims=True)
    low_B, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(top_B), top_B))
    alone_B = top_B >= goal_B  # the likeliest token is a nucleus by itself
    return jnp.where(weights_BV >= jnp.where(alone_B, top_B, low_B), weights_BV, 0.0)


def inverse_cdf(weights_BV: Float[Array, "B V"], uniform_B: Float[Array, "B"]) -> Int[Array, "B"]:
    """The token at which the cumulative weight passes ``uniform_B`` of the total.

    Two levels: first the block, then the token inside it, so that only one block a row is
    accumulated. A token of weight 0 is never returned.
    """
    weights = _blocks(weights_BV, 0.0)

    def first_over(values_BN, goal_B):
        """Index of the first cumulative sum over the goal, and the goal less what comes before."""
        sums = jnp.cumsum(values_BN, axis=-1)
        # Rounding may put the goal at the very end; stay strictly inside the total.
        goal_B = jnp.minimum(goal_B, jnp.nextafter(sums[:, -1], 0.0))
        index_B = jnp.argmax(sums > goal_B[:, None], axis=-1)
        before_B = jnp.take_along_axis(sums - values_BN, index_B[:, None], axis=-1)[:, 0]
        return index_B, jnp.maximum(goal_B - before_B, 0.0)

    totals_BN = jnp.sum(weights, axis=-1)
    block_B, rest_B = first_over(totals_BN, uniform_B * jnp.sum(totals_BN, axis=-1))
    inside_BK = jnp.take_along_axis(weights, block_B[:, None, None], axis=1)[:, 0]
    token_B, _ = first_over(inside_BK, rest_B)
    return block_B * BLOCK + token_B


def _blocks(values_BV: Float[Array, "B V"], fill: float) -> Float[Array, "B N BLOCK"]:
    B, V = values_BV.shape
    padded = jnp.pad(values_BV, ((0, 0), (0, -V % BLOCK)), constant_values=fill)
    return padded.reshape(B, -1, BLOCK)
