"""The jitted half of the sampler: prefill, admission into the batch, chunks of decode steps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imm_jax.models.cache import KVCache, Prefix, extend, init_cache, logits_of
from imm_jax.models.decoder import Decoder
from imm_jax.sampling.logits import sample_tokens
from imm_jax.sharding import ROWS, constrain, constrain_params, mesh_of, on, own_part
from imm_jax.tree import PyTree, unstack_layers


class Rows(NamedTuple):
    """The samples being decoded, one a row.

    Attributes:
      token: ``[B]`` the newest token, not yet run through the model.
      slot: ``[B]`` the cache slot it goes to.
      count: ``[B]`` how many tokens the row has sampled; numbers the row's random draws.
      done: ``[B]`` nothing more is sampled.
      key: ``[B, 2]`` uint32, the sample's own random key.
    """

    token: Int[Array, "B"]
    slot: Int[Array, "B"]
    count: Int[Array, "B"]
    done: Bool[Array, "B"]
    key: Array


def decode_weights(params: PyTree, dtype, matrices=None) -> PyTree:
    """Parameters as decoding takes them: layers unstacked, cast to ``dtype``, matrices to
    ``matrices`` where given, in one program.

    On a mesh each part of the batch has all of them, split over ``tensor`` alone: gathered once,
    not at every token. Each of several processes gets its own, on its own devices.
    """
    dtype, matrices = jnp.dtype(dtype), jnp.dtype(matrices or dtype)
    if isinstance(params["layers"], list) and all(
        x.dtype == (matrices if x.ndim > 1 else dtype) for x in jax.tree.leaves(params)
    ):
        return params
    with on(mesh_of(params)):
        return own_part(_unstack_and_cast(params, dtype, matrices))


@functools.partial(jax.jit, static_argnames=("dtype", "matrices"))
def _unstack_and_cast(params: PyTree, dtype: jnp.dtype, matrices: jnp.dtype) -> PyTree:
    weights = jax.tree.map(
        lambda x: x.astype(matrices if x.ndim > 1 else dtype), unstack_layers(params)
    )
    return constrain_params(weights, ("tensor",))


@functools.partial(jax.jit, static_argnames=("model", "rows", "slots"))
def empty(model: Decoder, rows: int, slots: int) -> list:
    """Keys and values of a batch before its first prompt."""
    return init_cache(model, rows, slots).layers


@functools.partial(jax.jit, static_argnames="model")
def prefill(model: Decoder, weights: dict, prefix: Prefix | None, tokens_BT: Int[Array, "B T"]):
    """Keys and values of prompts (padded on the right) that follow ``prefix``: ``layers`` of a
    ``KVCache`` with T slots.
    """
    B, T = tokens_BT.shape
    cache = init_cache(model, B, T, prefix)
    _, cache = extend(model, weights, cache, tokens_BT, jnp.zeros(B, jnp.int32))
    return cache.layers


@functools.partial(jax.jit, donate_argnames="layers")
def admit(layers: list, prompts: list, source: Int[Array, "B"]) -> list:
    """Copies prefilled prompt ``source[b]`` into row ``b`` of the batch, for the n samples of a
    prompt n times. A row whose source is negative stays as it is.
    """
    source = constrain(source, ROWS)

    def copy(batch, prompt):
        # On a mesh the prompts go to all parts, not the batch, which is many times as large.
        new = constrain(prompt, None, "tensor")[jnp.maximum(source, 0)]
        slots = tuple(map(slice, new.shape))  # the first ones; all else is as large
        new = jnp.where(source[:, None, None, None] >= 0, new, batch[slots])
        return constrain(batch.at[slots].set(new), ROWS, "tensor")

    return jax.tree.map(copy, layers, prompts)


@functools.partial(jax.jit, static_argnames="slots")
def grow(layers: list, slots: int) -> list:
    """The batch with at least ``slots`` slots a row."""

    def pad(x, axis):
        after = [0] * x.ndim
        after[axis] = max(0, slots - x.shape[axis])
        return constrain(jnp.pad(x, [(0, n) for n in after]), ROWS, "tensor")

    return [(pad(k, 3), pad(v, 2)) for k, v in layers]


@jax.jit
def keep(layers: list, rows: Int[Array, "P N"]) -> list:
    """The batch with only N rows of each of its P parts, numbered from the part's first."""

    def pick(x):
        parts = x.reshape(rows.shape[0], -1, *x.shape[1:])
        kept = jax.vmap(lambda part, at: part[at])(parts, constrain(rows, ROWS))
        return constrain(kept.reshape(-1, *x.shape[1:]), ROWS, "tensor")

    return jax.tree.map(pick, layers)


def decode_step(
    model: Decoder,
    weights: dict,
    prefix: Prefix | None,
    layers: list,
    rows: Rows,
    limit: int | Int[Array, ""],
    temperature: float | Float[Array, ""],
    *,
    eos: tuple[int, ...],
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
):
    """Runs every row's newest token through the model and samples the next.

    Arguments as in :func:`decode_chunk`; returns ``(layers, rows, token [B], logprob [B])``.
    """
    hidden, cache = extend(model, weights, KVCache(layers, prefix), rows.token[:, None], rows.slot)
    logits_BV = logits_of(model, weights, hidden[:, 0])
    draws = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.key), rows.count)
    uniform_B = jax.vmap(jax.random.uniform)(draws)
    token_B = sample_tokens(
        logits_BV, uniform_B, temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    logprob_B = chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
    live = ~rows.done
    count = rows.count + live
    ended = jnp.isin(token_B, jnp.array(eos, jnp.int32)) if eos else jnp.zeros_like(live)
    rows = Rows(
        token=jnp.where(live, token_B, rows.token),
        slot=rows.slot + live,
        count=count,
        done=rows.done | ended | (count >= limit),
        key=rows.key,
    )
    return cache.layers, rows, token_B, logprob_B


@functools.partial(
    jax.jit,
    static_argnames=("model", "steps", "eos", "top_k", "top_p", "min_p"),
    donate_argnames="layers",
)
def decode_chunk(
    model: Decoder,
    weights: dict,
    prefix: Prefix | None,
    layers: list,
    rows: Rows,
    limit: int | Int[Array, "B"],
    temperature: float | Float[Array, ""],
    *,
    steps: int,
    eos: tuple[int, ...],
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
):
    """Samples up to ``steps`` tokens in every row that is not done.

    Args:
      model, weights: the decoder and its parameters with unstacked layers.
      prefix: keys and values that all rows share, or None.
      layers: the batch's keys and values; donated.
      rows: where each row stands.
      limit: tokens a row may sample in all, one number or each row's.
      temperature: 0 is greedy.
      steps, eos, top_k, top_p, min_p: static settings.

    Returns:
      ``(layers, rows, tokens [B, steps], logprobs [B, steps])``; a row's new tokens are the first
      ``rows.count - old count`` of its line. Log-probabilities are the model's own: at temperature
      1 and over the whole vocabulary.
    """
    B = rows.token.shape[0]
    tokens, logprobs = jnp.zeros((B, steps), jnp.int32), jnp.zeros((B, steps), jnp.float32)
    rows, tokens, logprobs = constrain((rows, tokens, logprobs), ROWS)

    def unfinished(carry):
        step, _, rows, _, _ = carry
        return (step < steps) & ~jnp.all(rows.done)

    def one_step(carry):
        step, layers, rows, tokens, logprobs = carry
        layers, rows, token_B, logprob_B = decode_step(
            model, weights, prefix, layers, rows, limit, temperature,
            eos=eos, top_k=top_k, top_p=top_p, min_p=min_p,
        )  # fmt: skip
        tokens = jax.lax.dynamic_update_slice(tokens, token_B[:, None], (0, step))
        logprobs = jax.lax.dynamic_update_slice(logprobs, logprob_B[:, None], (0, step))
        return step + 1, layers, rows, tokens, logprobs

    start = (jnp.int32(0), layers, rows, tokens, logprobs)
    _, layers, rows, tokens, logprobs = jax.lax.while_loop(unfinished, one_step, start)
    return layers, rows, tokens, logprobs
