"""The samples under way side by side: which row is whose, in buckets so that few programs do."""

import dataclasses

import jax
import numpy as np

from imm_jax import sharding
from imm_jax.models.cache import KVCache
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import (
    Rows,
    admit,
    decode_chunk,
    decode_weights,
    empty,
    grow,
    keep,
    prefill,
)
from imm_jax.sampling.prefix import bucket, make_prefix, shared_length

LENGTH_BUCKET = 32  # prompts are padded to a multiple of it
SLOT_BUCKET = 64  # a cache has this many slots times a power of two
PREFILL_ROWS = 16  # prompts prefilled side by side
REFILL = 16  # waiting samples are admitted when this part of the batch is free
SHRINK = 2  # batch sizes are the largest one divided by a power of it
PREFILL_SHRINK = 4  # the same of prompts prefilled side by side
SHRINK_TO = 16  # a running batch gets no smaller: the next program costs more than it saves


@dataclasses.dataclass
class Row:
    """A sample under way: which prompt and which of its samples, how many tokens it may have, and
    what it has so far.
    """

    prompt: int
    sample: int
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)


class Batch:
    """The rows under way and their keys and values on the device."""

    def __init__(self, model, params, tokens, config: SamplingConfig, eos: tuple[int, ...]):
        self.model, self.tokens, self.config, self.eos = model, tokens, config, eos
        self.chunk = config.chunk or (8 if jax.default_backend() == "cpu" else 32)
        matrices = model.dtype if config.weights == "model" else config.weights
        self.weights = decode_weights(params, model.dtype, matrices)
        self.mesh = sharding.mesh_of(self.weights)
        self.parts = sharding.batch_shards(self.mesh.shape) if self.mesh else 1
        self.shared = shared_length(tokens)
        with sharding.on(self.mesh):
            self.prefix = make_prefix(model, self.weights, tokens[0][: self.shared])
        self.layers: list | None = None
        self.owners: list[Row | None] = []
        self.rows: Rows | None = None
        self.drawn = self.decoded = 0

    @property
    def fill(self) -> float:
        """The part of all decoded rows, counted at every step, that drew a token of a sample."""
        return self.drawn / max(self.decoded, 1)

    @property
    def active(self) -> list[tuple[int, Row]]:
        return [(i, row) for i, row in enumerate(self.owners) if row is not None]

    @property
    def height(self) -> int:
        """Rows of each part."""
        return len(self.owners) // self.parts

    def room(self, waiting: list[Row]) -> int:
        """How many waiting samples to admit now: none until a good part of the batch is free, and
        all of a prompt's where there is room, so that it is prefilled once.
        """
        size = self.config.batch_size * self.parts
        free = size - len(self.active)
        if free < min(len(waiting), max(1, size // REFILL)):
            return 0
        if free >= len(waiting):
            return len(waiting)
        whole = free
        while whole and waiting[whole].prompt == waiting[whole - 1].prompt:
            whole -= 1
        return whole or free

    def admit(self, new: list[Row], keys: np.ndarray) -> None:
        """Puts samples into free rows; prefills their prompts' tokens but the last."""
        if self.layers is None:
            self._start(len(new))
        free = [i for i, row in enumerate(self.owners) if row is None]
        free.sort(key=lambda i: i % self.height)  # the same number in each part
        numbers = dict(zip(map(id, new), free))
        self._need(max(len(self.tokens[row.prompt]) - self.shared for row in new))
        prompts = list(dict.fromkeys(row.prompt for row in new))
        most = PREFILL_ROWS * self.parts
        for start in range(0, len(prompts), most):
            self._prefill(prompts[start : start + most], new, numbers)
        rows = Rows(*(np.array(x) for x in self.rows))
        for row in new:
            at, prompt = numbers[id(row)], self.tokens[row.prompt]
            self.owners[at] = row
            rows.token[at], rows.slot[at] = prompt[-1], len(prompt) - 1 - self.shared
            rows.count[at], rows.done[at], self.limits[at] = 0, False, row.limit
            rows.key[at] = keys[row.prompt, row.sample]
        self.rows = rows

    def _start(self, count: int) -> None:
        size = self._size(self.config.batch_size, count, SHRINK)
        self.layers = empty(self.model, size, SLOT_BUCKET)
        self.owners = [None] * size
        zeros = np.zeros(size, np.int32)
        self.rows = Rows(zeros, zeros, zeros, np.ones(size, bool), np.zeros((size, 2), np.uint32))
        self.limits = np.zeros(size, np.int32)

    def _size(self, most: int, count: int, factor: int) -> int:
        """Rows for ``count`` samples: the same number, at most ``most``, in each part."""
        return _shrunk(most, -(-count // self.parts), factor) * self.parts

    def _need(self, slots: int) -> None:
        """Grows the cache to at least ``slots`` slots."""
        slots = cache_slots(slots)
        if slots > KVCache(self.layers).slots:
            self.layers = grow(self.layers, slots)

    def _prefill(self, prompts: list[int], new: list[Row], numbers: dict[int, int]) -> None:
        bodies = [self.tokens[p][self.shared : -1] for p in prompts]
        if not any(bodies):
            return
        length = bucket(max(map(len, bodies)), LENGTH_BUCKET)
        self._need(length)
        size = self._size(PREFILL_ROWS, len(prompts), PREFILL_SHRINK)
        padded = np.zeros((size, length), np.int32)
        for i, body in enumerate(bodies):
            padded[i, : len(body)] = body
        source = np.full(len(self.owners), -1, np.int32)
        place = {prompt: i for i, prompt in enumerate(prompts)}
        for row in new:
            if row.prompt in place:
                source[numbers[id(row)]] = place[row.prompt]
        filled = prefill(self.model, self.weights, self.prefix, padded)
        self.layers = admit(self.layers, filled, source)

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
            self.limits,
            config.temperature,
            steps=self.chunk,
            eos=self.eos,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
        )
        rows, tokens, logprobs = jax.device_get((rows, tokens, logprobs))
        news = rows.count - before.count
        self.drawn += int(news.sum())
        self.decoded += int(news.max()) * len(news)
        for i, row in self.active:
            new = int(news[i])
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
        """Drops free rows once the active ones of each part fit a smaller one."""
        height = self.height
        numbers = np.arange(len(self.owners)).reshape(self.parts, height).tolist()
        active = [sum(self.owners[i] is not None for i in part) for part in numbers]
        size = _shrunk(height, max(*active, SHRINK_TO), SHRINK)
        if not any(active) or size == height:
            return
        rows = [sorted(part, key=lambda i: self.owners[i] is None)[:size] for part in numbers]
        self.layers = keep(self.layers, np.array(rows, np.int32) % height)
        self.owners = [self.owners[i] for part in rows for i in part]
        self.rows = Rows(*(x[np.ravel(rows)] for x in self.rows))
        self.limits = self.limits[np.ravel(rows)]


def cache_slots(count: int) -> int:
    """``count`` rounded up to a power of two times the bucket."""
    slots = SLOT_BUCKET
    while slots < count:
        slots *= 2
    return slots


def _shrunk(size: int, count: int, factor: int) -> int:
    """``size`` divided by ``factor`` as often as it still holds ``count``."""
    while size // factor >= count:
        size //= factor
    return size
