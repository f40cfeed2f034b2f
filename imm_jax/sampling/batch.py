"""The samples under way side by side: which row is whose, in buckets so that few programs do."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import numpy as np
from jax.sharding import Mesh

from imm_jax import sharding
from imm_jax.models.cache import KVCache, Prefix
from imm_jax.models.decoder import Decoder
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
from imm_jax.tree import PyTree

LENGTH_BUCKET = 32  # prompts are padded to a multiple of it
SLOT_BUCKET = 64  # a cache has this many slots times a power of two, and no more than needed
COARSE_SLOTS = 256  # up to here a tighter cache saves less than the program it needs costs
PREFILL_ROWS = 16  # prompts prefilled side by side
REFILL = 16  # waiting samples are admitted when this part of the batch is free
SHRINK = 2  # batch sizes are the largest one divided by a power of it
PREFILL_SHRINK = 4  # the same of prompts prefilled side by side
SHRINK_TO = 16  # a running batch gets no smaller: the next program costs more than it saves

_dispatch = threading.Lock()  # two batches that meet a new shape at once would compile it twice


@dataclasses.dataclass(frozen=True)
class Common:
    """What all batches of a call share.

    Attributes:
      model, config, eos: as given to ``generate``.
      tokens: of each prompt.
      weights: as decoding takes them.
      mesh: where they lie, if on one.
      shared: how many first tokens all prompts have in common.
      prefix: the keys and values of these.
      slots: cache slots that the longest row can come to.
    """

    model: Decoder
    config: SamplingConfig
    eos: tuple[int, ...]
    tokens: Sequence[tuple[int, ...]]
    weights: PyTree
    mesh: Mesh | None
    shared: int
    prefix: Prefix | None
    slots: int

    @property
    def chunk(self) -> int:
        """Decode steps between two looks at the host."""
        return self.config.chunk or (8 if jax.default_backend() == "cpu" else 32)

    @property
    def parts(self) -> int:
        """Parts that the mesh splits rows into."""
        return sharding.batch_shards(self.mesh.shape) if self.mesh else 1


def prepare(
    model: Decoder,
    params: PyTree,
    tokens: Sequence[tuple[int, ...]],
    config: SamplingConfig,
    eos: tuple[int, ...],
) -> Common:
    """Casts the weights and prefills what all prompts share."""
    matrices = model.dtype if config.weights == "model" else config.weights
    weights = decode_weights(params, model.dtype, matrices)
    mesh, shared = sharding.mesh_of(weights), shared_length(tokens)
    with sharding.on(mesh):
        prefix = make_prefix(model, weights, tokens[0][:shared])
    slots = max(map(len, tokens)) - shared + config.max_new_tokens
    return Common(model, config, eos, tokens, weights, mesh, shared, prefix, slots)


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
    """The rows under way, at most ``size`` a part, and their keys and values on the device."""

    def __init__(self, common: Common, size: int):
        self.common, self.size = common, size
        self.layers: list | None = None
        self.owners: list[Row | None] = []
        self.rows: Rows | None = None
        self.chunk: Future | None = None
        self.drawn = self.decoded = 0

    @property
    def active(self) -> list[tuple[int, Row]]:
        return [(i, row) for i, row in enumerate(self.owners) if row is not None]

    @property
    def height(self) -> int:
        """Rows of each part."""
        return len(self.owners) // self.common.parts

    def room(self, waiting: list[Row]) -> int:
        """How many waiting samples to admit now: none until a good part of the batch is free, and
        all of a prompt's where there is room, so that it is prefilled once.
        """
        size = self.size * self.common.parts
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
        tokens, shared = self.common.tokens, self.common.shared
        self._need(max(len(tokens[row.prompt]) - shared for row in new))
        prompts = list(dict.fromkeys(row.prompt for row in new))
        most = PREFILL_ROWS * self.common.parts
        for start in range(0, len(prompts), most):
            self._prefill(prompts[start : start + most], new, numbers)
        rows = Rows(*(np.array(x) for x in self.rows))
        for row in new:
            at, prompt = numbers[id(row)], tokens[row.prompt]
            self.owners[at] = row
            rows.token[at], rows.slot[at] = prompt[-1], len(prompt) - 1 - shared
            rows.count[at], rows.done[at], self.limits[at] = 0, False, row.limit
            rows.key[at] = keys[row.prompt, row.sample]
        self.rows = rows

    def _start(self, count: int) -> None:
        size = self._part_size(self.size, count, SHRINK)
        self.layers = empty(self.common.model, size, SLOT_BUCKET)
        self.owners = [None] * size
        zeros = np.zeros(size, np.int32)
        self.rows = Rows(zeros, zeros, zeros, np.ones(size, bool), np.zeros((size, 2), np.uint32))
        self.limits = np.zeros(size, np.int32)

    def _part_size(self, most: int, count: int, factor: int) -> int:
        """Rows for ``count`` samples: the same number, at most ``most``, in each part."""
        return _shrunk(most, -(-count // self.common.parts), factor) * self.common.parts

    def _need(self, slots: int) -> None:
        """Grows the cache to at least ``slots`` slots."""
        slots = cache_slots(slots, self.common.slots)
        if slots > KVCache(self.layers).slots:
            self.layers = grow(self.layers, slots)

    def _prefill(self, prompts: list[int], new: list[Row], numbers: dict[int, int]) -> None:
        common = self.common
        bodies = [common.tokens[p][common.shared : -1] for p in prompts]
        if not any(bodies):
            return
        length = bucket(max(map(len, bodies)), LENGTH_BUCKET)
        self._need(length)
        size = self._part_size(PREFILL_ROWS, len(prompts), PREFILL_SHRINK)
        padded = np.zeros((size, length), np.int32)
        for i, body in enumerate(bodies):
            padded[i, : len(body)] = body
        source = np.full(len(self.owners), -1, np.int32)
        place = {prompt: i for i, prompt in enumerate(prompts)}
        for row in new:
            if row.prompt in place:
                source[numbers[id(row)]] = place[row.prompt]
        filled = prefill(common.model, common.weights, common.prefix, padded)
        self.layers = admit(self.layers, filled, source)

    def start(self, launch: Callable[[Callable], Future]) -> None:
        """Has ``launch`` decode one chunk of the active rows."""
        self._need(int(self.rows.slot.max()) + self.common.chunk + 1)
        self.chunk = launch(self._decode)

    def _decode(self):
        common, config = self.common, self.common.config
        with _dispatch:
            self.layers, *news = decode_chunk(
                common.model,
                common.weights,
                common.prefix,
                self.layers,
                self.rows,
                self.limits,
                config.temperature,
                steps=common.chunk,
                eos=common.eos,
                top_k=config.top_k,
                top_p=config.top_p,
                min_p=config.min_p,
            )
        return jax.device_get(news)

    def collect(self) -> list[tuple[int, Row]]:
        """Waits for the chunk under way and hands every active row its new tokens.

        Returns:
          The active rows and their numbers; none where no chunk was under way.
        """
        if self.chunk is None:
            return []
        rows, tokens, logprobs = self.chunk.result()
        self.chunk = None
        news = rows.count - self.rows.count
        self.drawn += int(news.sum())
        self.decoded += int(news.max()) * len(news)
        self.rows = rows
        for i, row in self.active:
            new = int(news[i])
            row.tokens.extend(tokens[i, :new].tolist())
            row.logprobs.extend(logprobs[i, :new].tolist())
        return self.active

    def release(self, number: int) -> None:
        """Frees a row."""
        self.owners[number] = None
        rows = Rows(*(np.array(x) for x in self.rows))
        rows.done[number], rows.slot[number] = True, 0
        self.rows = rows

    def shrink(self) -> None:
        """Drops free rows once the active ones of each part fit a smaller one."""
        height = self.height
        numbers = np.arange(len(self.owners)).reshape(self.common.parts, height).tolist()
        active = [sum(self.owners[i] is not None for i in part) for part in numbers]
        size = _shrunk(height, max(*active, SHRINK_TO), SHRINK)
        if not any(active) or size == height:
            return
        rows = [sorted(part, key=lambda i: self.owners[i] is None)[:size] for part in numbers]
        self.layers = keep(self.layers, np.array(rows, np.int32) % height)
        self.owners = [self.owners[i] for part in rows for i in part]
        self.rows = Rows(*(x[np.ravel(rows)] for x in self.rows))
        self.limits = self.limits[np.ravel(rows)]


def cache_slots(count: int, most: int) -> int:
    """Slots of a cache that needs ``count`` now and ``most`` in the end: the bucket times a power
    of two, but past ``COARSE_SLOTS`` no more than ``most`` in whole buckets.
    """
    slots = SLOT_BUCKET
    while slots < min(count, most):
        slots *= 2
    return min(slots, max(bucket(most, SLOT_BUCKET), COARSE_SLOTS))


def _shrunk(size: int, count: int, factor: int) -> int:
    """``size`` divided by ``factor`` as often as it still holds ``count``."""
    while size // factor >= count:
        size //= factor
    return size
