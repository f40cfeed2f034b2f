"""The host's half of the sampler: keeps the batch full and turns tokens into text."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax.errors import InputError, Interrupted
from imm_jax.models.cache import init_cache
from imm_jax.models.decoder import Decoder
from imm_jax.progress import Progress
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import Rows, admit, decode_chunk, prefill, resize
from imm_jax.sampling.prefix import bucket, make_prefix, shared_length
from imm_jax.sampling.text import Sample, finish
from imm_jax.tree import PyTree, unstack_layers

LENGTH_BUCKET = 32  # prompts are padded to a multiple of it
SLOT_BUCKET = 64  # a cache has this many slots times a power of two
PREFILL_ROWS = 16  # prompts prefilled side by side
REFILL = 8  # waiting samples are admitted when this part of the batch is free
SHRINK = 4  # batch sizes are the largest one divided by a power of it
SHRINK_TO = 16  # a running batch gets no smaller: the next program costs more than it saves


@dataclasses.dataclass
class _Row:
    """A sample under way: which prompt and which of its samples, and what it has so far."""

    prompt: int
    sample: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)


def generate(
    model: Decoder,
    params: PyTree,
    tokenizer,
    prompts: Sequence[str],
    *,
    config: SamplingConfig = SamplingConfig(),
    samples: int = 1,
    stop: Sequence[str] = (),
    eos: Sequence[int] | None = None,
    seed: int | jax.Array = 0,
    ids: Sequence[str] | None = None,
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
      prompts: prompt texts, special tokens of a chat template included.
      config: temperature and limits.
      samples: samples of each prompt.
      stop: strings that end an answer; they are not part of it.
      eos: token ids that end an answer; the model's and the tokenizer's where not given.
      seed: an integer, or a JAX random key.
      ids: a stable name of each prompt, which seeds its samples; its number where not given.
      add_special_tokens: let the tokenizer add its begin token; not for rendered chat templates.
      label: what the progress bar says.
      should_stop: asked between chunks; gives up where it returns true.

    Returns:
      For each prompt its ``samples`` samples.

    Raises:
      InputError: an empty prompt, or a prompt that leaves no room for the answer in the model's
        context.
      Interrupted: ``should_stop`` said so.
    """
    if not prompts or samples < 1:
        return [[] for _ in prompts]
    eos = tuple(sorted(end_tokens(model, tokenizer) if eos is None else eos))
    encoded = tokenizer(list(prompts), add_special_tokens=add_special_tokens)["input_ids"]
    tokens = [tuple(prompt) for prompt in encoded]
    check_lengths(model, tokens, config.max_new_tokens)
    batch = _Batch(model, params, tokens, config, eos)
    keys = _keys(seed, ids or [str(i) for i in range(len(prompts))], samples)
    # Longest first: prompts of like length share a prefill, and the last to finish start early.
    order = sorted(range(len(prompts)), key=lambda i: -len(tokens[i]))
    queue = [_Row(i, j) for i in order for j in range(samples)]
    results: list[list[Sample | None]] = [[None] * samples for _ in prompts]
    with Progress(label, len(queue), "sample") as progress:
        total = 0
        while queue or batch.active:
            if should_stop is not None and should_stop():
                raise Interrupted(f"{label}: stopped")
            take = batch.room(len(queue))
            if take:
                batch.admit(queue[:take], keys)
                del queue[:take]
            batch.step()
            for number, row in batch.active:
                done = finish(
                    tokenizer,
                    row.tokens,
                    row.logprobs,
                    stop=stop,
                    eos=eos,
                    limit=config.max_new_tokens,
                )
                if done is None:
                    continue
                results[row.prompt][row.sample] = done
                batch.release(number)
                total += len(done.tokens)
                progress.update(1, f"{total:,} tokens")
            if not queue:
                batch.shrink()
    return results


def end_tokens(model: Decoder, tokenizer) -> set[int]:
    """Token ids that end an answer: the model config's and the tokenizer's."""
    eos = model.config.eos_token_id
    found = set(eos) if isinstance(eos, tuple) else {eos}
    return (found | {tokenizer.eos_token_id}) - {None}


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


def _keys(seed: int | jax.Array, ids: Sequence[str], samples: int) -> np.ndarray:
    """Random keys ``[prompts, samples, 2]`` from the seed, each prompt's id, the sample number."""
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    names = jnp.array([zlib.crc32(name.encode()) for name in ids], jnp.uint32)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    numbers = jnp.arange(samples)
    keys = jax.vmap(lambda k: fold(k, numbers))(fold(key, names))
    return np.asarray(jax.random.key_data(keys))


def _slots(count: int) -> int:
    """``count`` rounded up to a power of two times the bucket."""
    slots = SLOT_BUCKET
    while slots < count:
        slots *= 2
    return slots


def _shrunk(size: int, count: int) -> int:
    """``size`` divided by the shrinking factor as often as it still holds ``count``."""
    while size // SHRINK >= count:
        size //= SHRINK
    return size


class _Batch:
    """The rows under way and their keys and values on the device."""

    def __init__(self, model, params, tokens, config: SamplingConfig, eos: tuple[int, ...]):
        self.model, self.tokens, self.config, self.eos = model, tokens, config, eos
        self.chunk = config.chunk or (8 if jax.default_backend() == "cpu" else 32)
        self.weights = decode_weights(params, model.dtype)
        self.shared = shared_length(tokens)
        self.prefix = make_prefix(model, self.weights, tokens[0][: self.shared])
        self.layers: list | None = None
        self.owners: list[_Row | None] = []
        self.rows: Rows | None = None

    @property
    def active(self) -> list[tuple[int, _Row]]:
        return [(i, row) for i, row in enumerate(self.owners) if row is not None]

    def room(self, waiting: int) -> int:
        """How many waiting samples to admit now: none until a good part of the batch is free."""
        size = self.config.batch_size
        free = size - len(self.active)
        return min(free, waiting) if free >= min(waiting, max(1, size // REFILL)) else 0

    def admit(self, new: list[_Row], keys: np.ndarray) -> None:
        """Puts samples into free rows; prefills their prompts' tokens but the last."""
        if self.layers is None:
            self._start(len(new))
        free = [i for i, row in enumerate(self.owners) if row is None]
        numbers = dict(zip(map(id, new), free))
        self._need(max(len(self.tokens[row.prompt]) - self.shared for row in new))
        prompts = list(dict.fromkeys(row.prompt for row in new))
        for start in range(0, len(prompts), PREFILL_ROWS):
            self._prefill(prompts[start : start + PREFILL_ROWS], new, numbers)
        rows = Rows(*(np.array(x) for x in self.rows))
        for row in new:
            at, prompt = numbers[id(row)], self.tokens[row.prompt]
            self.owners[at] = row
            rows.token[at], rows.slot[at] = prompt[-1], len(prompt) - 1 - self.shared
            rows.count[at], rows.done[at] = 0, False
            rows.key[at] = keys[row.prompt, row.sample]
        self.rows = rows

    def _start(self, count: int) -> None:
        size = _shrunk(self.config.batch_size, count)
        self.layers = init_cache(self.model, size, SLOT_BUCKET).layers
        self.owners = [None] * size
        zeros = np.zeros(size, np.int32)
        self.rows = Rows(zeros, zeros, zeros, np.ones(size, bool), np.zeros((size, 2), np.uint32))

    def _need(self, slots: int) -> None:
        """Grows the cache to at least ``slots`` slots."""
        slots = _slots(slots)
        if slots > self.layers[0][0].shape[2]:
            self.layers = resize(self.layers, np.arange(len(self.owners)), slots)

    def _prefill(self, prompts: list[int], new: list[_Row], numbers: dict[int, int]) -> None:
        bodies = [self.tokens[p][self.shared : -1] for p in prompts]
        if not any(bodies):
            return
        length = bucket(max(map(len, bodies)), LENGTH_BUCKET)
        self._need(length)
        padded = np.zeros((_shrunk(PREFILL_ROWS, len(prompts)), length), np.int32)
        for i, body in enumerate(bodies):
            padded[i, : len(body)] = body
        size = len(self.owners)
        source, target = np.zeros(size, np.int32), np.full(size, size, np.int32)
        place = {prompt: i for i, prompt in enumerate(prompts)}
        for i, row in enumerate(r for r in new if r.prompt in place):
            source[i], target[i] = place[row.prompt], numbers[id(row)]
        filled = prefill(self.model, self.weights, self.prefix, padded)
        self.layers = admit(self.layers, filled, source, target)

    def step(self) -> None:
        """Decodes one chunk and hands every row its new tokens."""
        config, before = self.config, self.rows
        self._need(int(before.slot.max()) + self.chunk + 1)
        self.layers, rows, tokens, logprobs = decode_chunk(
            self.model,
            self.weights,
            self.prefix,
            self.layers,
            before,
            config.max_new_tokens,
            config.temperature,
            steps=self.chunk,
            eos=self.eos,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
        )
        rows, tokens, logprobs = jax.device_get((rows, tokens, logprobs))
        for i, row in self.active:
            new = int(rows.count[i] - before.count[i])
            row.tokens.extend(tokens[i, :new].tolist())
            row.logprobs.extend(logprobs[i, :new].tolist())
        self.rows = rows

    def release(self, number: int) -> None:
        """Frees a row."""
        self.owners[number] = None
        rows = Rows(*(np.array(x) for x in self.rows))
        rows.done[number], rows.slot[number] = True, 0
        self.rows = rows

    def shrink(self) -> None:
        """Drops free rows once the active ones fit a smaller batch."""
        active = [i for i, _ in self.active]
        size = _shrunk(len(self.owners), max(len(active), SHRINK_TO))
        if not active or size == len(self.owners):
            return
        free = [i for i, row in enumerate(self.owners) if row is None]
        keep = np.array((active + free)[:size])
        slots = _slots(int(self.rows.slot.max()) + self.chunk + 1)
        self.layers = resize(self.layers, keep, slots)
        self.owners = [self.owners[i] for i in keep]
        self.rows = Rows(*(x[keep] for x in self.rows))


def decode_weights(params: PyTree, dtype) -> PyTree:
    """Parameters as decoding takes them: layers unstacked, cast to ``dtype``, in one program."""
    unstacked = isinstance(params["layers"], list)
    same = all(x.dtype == dtype for x in jax.tree.leaves(params))
    return params if unstacked and same else _unstack_and_cast(params, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnames="dtype")
def _unstack_and_cast(params: PyTree, dtype: jnp.dtype) -> PyTree:
    return jax.tree.map(lambda x: x.astype(dtype), unstack_layers(params))
