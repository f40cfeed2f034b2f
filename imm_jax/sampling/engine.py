"""The host's half of the sampler: keeps the batch full and turns tokens into text."""

import itertools
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import sharding
from imm_jax.devices import cores
from imm_jax.errors import Interrupted
from imm_jax.models.decoder import Decoder
from imm_jax.progress import Progress
from imm_jax.sampling.batch import SHRINK_TO, Batch, Common, Row, prepare
from imm_jax.sampling.checks import check_finite, check_lengths, check_request, check_tokens
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.text import Sample, finish
from imm_jax.tree import PyTree


def generate(
    model: Decoder,
    params: PyTree,
    tokenizer,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    config: SamplingConfig = SamplingConfig(),
    samples: int = 1,
    stop: Sequence[str] = (),
    eos: Sequence[int] | None = None,
    seed: int | jax.Array = 0,
    ids: Sequence[str] | None = None,
    limits: Sequence[int] | None = None,
    add_special_tokens: bool = True,
    label: str = "sample",
    should_stop: Callable[[], bool] | None = None,
) -> list[list[Sample]]:
    """Samples answers to prompts.

    Each distinct prompt is prefilled once for all its samples, and tokens that all prompts share at
    their start once for all prompts. A sample's randomness comes from ``seed``, its prompt's id and
    its number alone.

    Args:
      model: the decoder; its ``dtype`` is the type it computes in.
      params: its parameters, stacked (canonical) or with unstacked layers. Weights in another
        floating type are cast once.
      tokenizer: a Hugging Face tokenizer.
      prompts: prompt texts, special tokens of a chat template included; or the token ids of each.
      config: temperature and limits.
      samples: samples of each prompt.
      stop: strings that end an answer; they are not part of it.
      eos: token ids that end an answer; the model's and the tokenizer's where not given.
      seed: an integer, or a JAX random key.
      ids: a stable name of each prompt, which seeds its samples; its number where not given.
      limits: tokens that each prompt's answers may have, where fewer than
        ``config.max_new_tokens``.
      add_special_tokens: let the tokenizer add its begin token; not for rendered chat templates.
      label: what the progress bar says.
      should_stop: asked between chunks; gives up where it returns true.

    Returns:
      For each prompt its ``samples`` samples.

    Raises:
      InputError: an argument that is not as said here; an empty prompt, one with a token that the
        model does not have, or one that leaves no room for the answer in the model's context; a
        model whose logits are not finite.
      Interrupted: ``should_stop`` said so.
    """
    check_request(prompts, stop, ids, limits)
    if not len(prompts) or samples < 1:
        return [[] for _ in prompts]
    # Text is decoded without special tokens, so a stop string that is one is found by its id.
    added = getattr(tokenizer, "get_added_vocab", dict)()
    eos = {*(end_tokens(model, tokenizer) if eos is None else eos)}
    eos = tuple(sorted(eos | {added[string] for string in stop if string in added}))
    encoded = prompts
    if isinstance(prompts[0], str):
        encoded = tokenizer(list(prompts), add_special_tokens=add_special_tokens)["input_ids"]
    tokens = [tuple(prompt) for prompt in encoded]
    check_lengths(model, tokens, config.max_new_tokens)
    check_tokens(model, tokens)
    common = prepare(model, params, tokens, config, eos)
    ids = [str(i) for i in range(len(prompts))] if ids is None else ids
    keys = _keys(seed, ids, samples)
    # Longest first: prompts of like length share a prefill, and the last to finish start early.
    order = sorted(range(len(prompts)), key=lambda i: -len(tokens[i]))
    most = config.max_new_tokens
    limits = [most] * len(prompts) if limits is None else [min(most, limit) for limit in limits]
    queue = [Row(i, j, limits[i]) for i in order for j in range(samples)]
    results: list[list[Sample | None]] = [[None] * samples for _ in prompts]
    lanes = _lanes(common, len(queue))
    with (
        Progress(label, len(queue), "sample") as progress,
        sharding.on(common.mesh),
        ThreadPoolExecutor(len(lanes)) as threads,
    ):
        launch = threads.submit if len(lanes) > 1 else _at_once
        total = 0
        for batch in itertools.cycle(lanes):
            finished = 0
            for number, row in batch.collect():
                check_finite(row.logprobs[-common.chunk :], f"prompt {ids[row.prompt]}")
                done = finish(
                    tokenizer,
                    row.tokens,
                    row.logprobs,
                    stop=stop,
                    eos=eos,
                    limit=row.limit,
                )
                if done is None:
                    continue
                results[row.prompt][row.sample] = done
                batch.release(number)
                total, finished = total + len(done.tokens), finished + 1
            if finished:
                fill = sum(lane.drawn for lane in lanes) / sum(lane.decoded for lane in lanes)
                progress.update(finished, f"{total:,} tokens, batch {fill:.0%} full")
            if not queue and not any(lane.active for lane in lanes):
                break
            if should_stop is not None and should_stop():
                raise Interrupted(f"{label}: stopped")
            take = batch.room(queue)
            if take:
                batch.admit(queue[:take], keys)
                del queue[:take]
            if not queue:
                batch.shrink()
            if batch.active:
                batch.start(launch)
    return results


def _lanes(common: Common, count: int) -> list[Batch]:
    """The batches that ``count`` samples are decoded in.

    Two halves of a batch, in turn, where samples fill both and a CPU has cores for both: what one
    core does alone in one chunk then overlaps with the other's. Which samples meet in which half
    does not depend on time.
    """
    size = common.config.batch_size
    alone = jax.default_backend() != "cpu" or common.mesh is not None or cores() == 1
    if alone or count < size or size < 2 * SHRINK_TO:
        return [Batch(common, size)]
    return [Batch(common, size // 2), Batch(common, size // 2)]


def _at_once(work: Callable) -> Future:
    """Does ``work`` in this thread, whose settings of JAX apply to it."""
    done: Future = Future()
    done.set_result(work())
    return done


def end_tokens(model: Decoder, tokenizer) -> set[int]:
    """Token ids that end an answer: the model config's and the tokenizer's."""
    eos = model.config.eos_token_id
    found = set(eos) if isinstance(eos, tuple) else {eos}
    return (found | {tokenizer.eos_token_id}) - {None}


def _keys(seed: int | jax.Array, ids: Sequence[str], samples: int) -> np.ndarray:
    """Random keys ``[prompts, samples, 2]`` from the seed, each prompt's id, the sample number."""
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    return np.asarray(sample_keys(key, jnp.asarray(hash_ids(ids)), samples))


def hash_ids(ids: Sequence[str]) -> np.ndarray:
    """CRC-32 of each prompt's id, uint32 ``[prompts]``."""
    return np.array([zlib.crc32(name.encode()) for name in ids], np.uint32)


def sample_keys(key: jax.Array, names: jax.Array, samples: int) -> jax.Array:
    """The keys ``[prompts, samples, 2]`` of the samples of prompts whose ids hash to ``names``."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    numbers = jnp.arange(samples)
    keys = jax.vmap(lambda k: fold(k, numbers))(fold(key, names))
    return jax.random.key_data(keys)
