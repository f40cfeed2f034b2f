"""The steps of a round on arrays of fixed shape, for :mod:`imm_jax.rounds.compiled`.

All are pure functions that can be traced, scanned and ``vmap``ped. Sampling and training are those
of the host's loop: ``sampling.decode`` and ``training.step``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt

from imm_jax.models.decoder import Decoder
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import Rows, admit, decode_step, empty, prefill
from imm_jax.sampling.engine import sample_keys
from imm_jax.training.batching import Batch
from imm_jax.training.config import TrainingConfig
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import init_state, make_train_step
from imm_jax.tree import unstack_layers


class Questions(NamedTuple):
    """Questions as token ids.

    Attributes:
      tokens: ``[Q, P]`` prompts, padded on the right.
      length: ``[Q]`` tokens of each.
      answer: ``[Q, A]`` gold answers, in whatever form the language's check reads.
      name: ``[Q]`` hashes of their ids (``sampling.engine.hash_ids``), which seed their samples.
    """

    tokens: Int[Array, "Q P"]
    length: Int[Array, "Q"]
    answer: Int[Array, "Q A"]
    name: UInt[Array, "Q"]


class Language(NamedTuple):
    """How sampled tokens are read. The functions see one sample; only ``count`` tokens are its own.

    Attributes:
      eos: tokens that end an answer.
      correct: ``(tokens [R], count, answer [A])`` to whether it is right.
      response: ``(tokens [R], count)`` to ``(tokens [R'], length)``, what to train on after the
        prompt, end token included.
    """

    eos: tuple[int, ...]
    correct: Callable[..., Array]
    response: Callable[..., tuple[Array, Array]]


class Samples(NamedTuple):
    """N graded samples, those of a question side by side.

    Attributes:
      tokens: ``[N, R']`` the response as it would be trained on, padded on the right.
      length: ``[N]`` its tokens.
      correct: ``[N]`` whether it is right.
      fresh: ``[N]`` whether no earlier sample of the question is equal.
      nats: ``[N]`` minus the log-probability of what was drawn.
      kept: ``[N]`` whether it was trained on.
    """

    tokens: Int[Array, "N R"]
    length: Int[Array, "N"]
    correct: Bool[Array, "N"]
    fresh: Bool[Array, "N"]
    nats: Float[Array, "N"]
    kept: Bool[Array, "N"]


def answer(
    model: Decoder,
    language: Language,
    params: PyTree,
    questions: Questions,
    key: Array,
    config: SamplingConfig,
    samples: int,
) -> Samples:
    """Draws ``samples`` answers to each question, by the keys of ``sampling.engine``, and grades.

    Every row is decoded for ``config.max_new_tokens`` steps: under ``vmap`` a loop that ended
    sooner would copy the whole cache in every step.
    """
    count, width = questions.tokens.shape
    weights = unstack_layers(params)
    rows = count * samples
    layers = empty(model, rows, width + config.max_new_tokens)
    # The prompt's last token is run again by the first step, which overwrites its slot.
    filled = prefill(model, weights, None, questions.tokens[:, :-1])
    layers = admit(layers, filled, jnp.repeat(jnp.arange(count), samples))
    last = jnp.take_along_axis(questions.tokens, questions.length[:, None] - 1, axis=1)[:, 0]
    state = Rows(
        token=jnp.repeat(last, samples),
        slot=jnp.repeat(questions.length - 1, samples),
        count=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, bool),
        key=sample_keys(key, questions.name, samples).reshape(rows, 2),
    )

    def step(carry, _):
        layers, state = carry
        layers, state, token, logprob = decode_step(
            model,
            weights,
            None,
            layers,
            state,
            config.max_new_tokens,
            config.temperature,
            eos=language.eos,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
        )
        return (layers, state), (token, logprob)

    (_, state), (tokens, logprobs) = jax.lax.scan(
        step, (layers, state), length=config.max_new_tokens
    )
    drawn = jnp.arange(config.max_new_tokens)[:, None] < state.count
    golds = jnp.repeat(questions.answer, samples, axis=0)
    response, length = jax.vmap(language.response)(tokens.T, state.count)
    return Samples(
        tokens=response,
        length=length,
        correct=jax.vmap(language.correct)(tokens.T, state.count, golds),
        fresh=_fresh(response, length, samples),
        nats=-jnp.sum(jnp.where(drawn, logprobs, 0), axis=0),
        kept=jnp.zeros(rows, bool),
    )


def _fresh(tokens: Array, length: Array, samples: int) -> Array:
    inside = jnp.arange(tokens.shape[1]) < length[:, None]
    groups = jnp.where(inside, tokens, -1).reshape(-1, samples, tokens.shape[1])
    same = jnp.all(groups[:, :, None] == groups[:, None], axis=-1)
    return ~jnp.any(jnp.tril(same, -1), axis=-1).reshape(-1)


def select(drawn: Samples, deduplicate: bool) -> Bool[Array, "N"]:
    """The right samples; with ``deduplicate`` the first of those of a question that are equal.

    Equal samples are equally right, so the first of all is the first of the right ones.
    """
    return drawn.correct & drawn.fresh if deduplicate else drawn.correct


def fit(
    model: Decoder,
    config: TrainingConfig,
    params: PyTree,
    questions: Questions,
    drawn: Samples,
    kept: Bool[Array, "N"],
    order: Callable[[Array, Array], Int[Array, "N"]],
) -> PyTree:
    """Fine-tunes on the samples that are kept, in batches as ``training.fit`` makes them.

    There are as many steps as the number kept asks for; rows of the last batch of an epoch that
    hold no sample weigh nothing.

    Args:
      order: ``(epoch, number kept) ->`` the order in which an epoch visits the kept ones, of
        which only the first so many entries are read.
    """
    optimizer = make_optimizer(config)
    train_step = make_train_step(model, optimizer, config)
    asked = jnp.repeat(jnp.arange(len(questions.length)), len(kept) // len(questions.length))
    count = kept.sum()
    kept_first = jnp.argsort(~kept, stable=True)
    per_epoch = -(-count // config.batch_size)
    total = per_epoch * config.epochs

    def step(i, state):
        epoch, index = i // per_epoch, i % per_epoch
        places = index * config.batch_size + jnp.arange(config.batch_size)
        here = kept_first[order(epoch, count)[jnp.minimum(places, len(kept) - 1)]]
        rows = join(
            questions.tokens[asked[here]],
            questions.length[asked[here]],
            drawn.tokens[here],
            drawn.length[here],
        )
        return train_step(state, batch_of(*rows, places < count))[0]

    state = init_state(params, optimizer, total)
    state = jax.lax.fori_loop(0, total, step, state)
    return jax.tree.map(lambda old, new: new.astype(old.dtype), params, state.params)


def join(
    prompt: Int[Array, "B P"],
    prompt_length: Int[Array, "B"],
    response: Int[Array, "B R"],
    response_length: Int[Array, "B"],
) -> tuple[Int[Array, "B W"], Int[Array, "B"], Int[Array, "B"]]:
    """Prompt and response in one row, padded with 0: tokens, the prompt's length, the whole's."""
    width = prompt.shape[1] + response.shape[1]
    at = jnp.arange(width)
    start = prompt_length[:, None]
    pick = lambda rows, places: jnp.take_along_axis(
        rows, jnp.broadcast_to(jnp.clip(places, 0, rows.shape[1] - 1), (len(rows), width)), axis=1
    )
    tokens = jnp.where(at < start, pick(prompt, at), pick(response, at - start))
    length = prompt_length + response_length
    return jnp.where(at < length[:, None], tokens, 0), prompt_length, length


def batch_of(
    tokens: Int[Array, "B W"],
    prompt_length: Int[Array, "B"],
    length: Int[Array, "B"],
    counts: Bool[Array, "B"],
) -> Batch:
    """One micro batch, as ``training.batching`` makes it; rows that do not count weigh nothing."""
    at = jnp.arange(1, tokens.shape[1])
    mask = (at >= prompt_length[:, None]) & (at < length[:, None]) & counts[:, None]
    return Batch(
        tokens=tokens[None, :, :-1],
        targets=tokens[None, :, 1:],
        mask=mask[None].astype(jnp.float32),
        positions=None,
        segment_ids=None,
        micro_batches=np.int32(1),
    )
