"""Sequences to arrays: the same batch for the same seed, epoch and step, in few shapes."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Sequences
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from imm_jax.errors import InputError
from imm_jax.training.config import TrainingConfig

ENOUGH = 512  # tokens of a micro batch that keep a CPU's products busy


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Token ids of a prompt and its response, which begins at ``prompt_length``."""

    tokens: tuple[int, ...]
    prompt_length: int


class Batch(NamedTuple):
    """One update's worth of sequences, as ``A`` micro batches of ``b`` rows of ``T`` tokens.

    ``mask`` is 1 where ``targets``, the token that follows, is a response token. Only the first
    ``micro_batches`` of the ``A`` hold anything. ``positions`` and ``segment_ids`` (0 for padding)
    keep packed sequences apart and are None where a row holds one sequence.
    """

    tokens: Int[Array, "A b T"]
    targets: Int[Array, "A b T"]
    mask: Float[Array, "A b T"]
    positions: Int[Array, "A b T"] | None
    segment_ids: Int[Array, "A b T"] | None
    micro_batches: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` leaves: sequences that can be trained on, and how many were not so."""

    sequences: tuple[Sequence, ...]
    truncated: int
    dropped: int


def prepare(sequences: Sequences[Sequence], max_length: int) -> Prepared:
    """Cuts sequences at ``max_length`` tokens and drops those left without a response token."""
    kept, truncated = [], 0
    for sequence in sequences:
        length = len(sequence.tokens)
        # The first token follows nothing, so it is no target.
        if max(sequence.prompt_length, 1) < min(length, max_length):
            kept.append(Sequence(tuple(sequence.tokens[:max_length]), sequence.prompt_length))
            truncated += length > max_length
    return Prepared(tuple(kept), truncated, len(sequences) - len(kept))


def visiting_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits ``count`` sequences, from 0."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def pack(sequences: Sequences[Sequence], width: int) -> list[list[Sequence]]:
    """Lays sequences out in rows of ``width`` tokens: each in the first row that has room."""
    rows, room = [], []
    for sequence in sequences:
        need = len(sequence.tokens) - 1
        at = next((i for i, left in enumerate(room) if left >= need), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(width)
        rows[at].append(sequence)
        room[at] -= need
    return rows


def micro_batch_rows(
    config: TrainingConfig, longest: int, width: int, *, on_cpu: bool, shards: int = 1
) -> int:
    """Rows of ``width`` tokens in a micro batch, on each part of a mesh.

    Packed rows are wider than the ``longest`` sequence, so a micro batch takes fewer: the same
    tokens either way. On a CPU so few that ``ENOUGH`` tokens are in it: more are no faster, and a
    batch of short sequences, which fills a part of its last micro batch, would pad the more.
    """
    rows = min(config.micro_batch_size, -(-config.batch_size // shards))
    if config.packing:
        rows = round(rows * longest / width)
        if on_cpu:
            rows = min(rows, ENOUGH // width)
    return max(1, rows)


class Batches:
    """Random access to the batches of a fine-tune: ``batches[step]``.

    Every epoch visits each sequence once, in an order drawn from ``(seed, epoch)``; the last batch
    of an epoch may hold fewer. With ``config.packing`` all batches have one shape; without it, one
    shape for each row length, a multiple of ``config.bucket``.

    Args:
      sequences: as :func:`prepare` leaves them, at least one.
      config: reads batch_size, micro_batch_size, epochs, max_length, bucket and packing.
      seed: of the order.
      shards: how many parts of a mesh each micro batch is split over; it has
        ``config.micro_batch_size`` rows for each.

    Raises:
      InputError: there is no sequence.
    """

    def __init__(
        self, sequences: Sequences[Sequence], config: TrainingConfig, *, seed: int, shards: int = 1
    ):
        if not sequences:
            raise InputError("training: no sequence with a response token to train on")
        self.sequences, self.config, self.seed = tuple(sequences), config, seed
        self.shards = shards
        self.steps_per_epoch = -(-len(sequences) // config.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self._longest = max(len(sequence.tokens) - 1 for sequence in sequences)
        self._width = self._packed_width() if config.packing else None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return (self[step] for step in range(self.steps))

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        rows, width = self._rows(self.chosen(step))
        return self._arrays(rows, width)

    def chosen(self, step: int) -> list[Sequence]:
        """The sequences of a step, longest first."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = visiting_order(self.seed, epoch, len(self.sequences))
        size = self.config.batch_size
        chosen = [self.sequences[i] for i in order[index * size : (index + 1) * size]]
        return sorted(chosen, key=lambda sequence: len(sequence.tokens), reverse=True)

    def input_tokens(self, step: int) -> int:
        """The tokens a step runs through the model, padding left out."""
        return sum(len(sequence.tokens) - 1 for sequence in self.chosen(step))

    def _rows(self, chosen: list[Sequence]) -> tuple[list[list[Sequence]], int]:
        """Lays sequences out in rows of one width."""
        if self._width is None:
            return [[s] for s in chosen], self._round_up(len(chosen[0].tokens) - 1)
        return pack(chosen, self._width), self._width

    def _packed_width(self) -> int:
        """The width that pads the first epoch's batches least, up to twice the longest sequence; of
        equals the narrowest, because a wider row makes attention dearer.
        """
        limit = max(self._longest, min(2 * self._longest, self.config.max_length - 1))
        widths = range(self._round_up(self._longest), self._round_up(limit) + 1, self.config.bucket)
        epoch = [self.chosen(step) for step in range(self.steps_per_epoch)]

        def positions(width: int) -> int:
            height = self._rows_per_micro_batch(width)
            return width * height * sum(-(-len(pack(batch, width)) // height) for batch in epoch)

        return min(widths, key=positions)

    def _round_up(self, length: int) -> int:
        return -(-length // self.config.bucket) * self.config.bucket

    def _rows_per_micro_batch(self, width: int) -> int:
        cpu = jax.default_backend() == "cpu"
        longest = self._round_up(self._longest)
        rows = micro_batch_rows(self.config, longest, width, on_cpu=cpu, shards=self.shards)
        return rows * self.shards

    def _arrays(self, rows: list[list[Sequence]], width: int) -> Batch:
        height = self._rows_per_micro_batch(width)
        most = -(-self.config.batch_size // height)  # if every sequence had its own row
        names = ("tokens", "targets", "mask", "positions", "segment_ids")
        flat = {name: np.zeros((most * height, width), np.int32) for name in names}
        for row, sequences in enumerate(rows):
            start = 0
            for segment, sequence in enumerate(sequences, 1):
                tokens = np.asarray(sequence.tokens, np.int32)
                here = row, slice(start, start + len(tokens) - 1)
                places = np.arange(len(tokens) - 1)
                flat["tokens"][here], flat["targets"][here] = tokens[:-1], tokens[1:]
                flat["mask"][here] = places + 1 >= sequence.prompt_length
                flat["positions"][here], flat["segment_ids"][here] = places, segment
                start += len(tokens) - 1
        stacked = {name: a.reshape(most, height, width) for name, a in flat.items()}
        stacked["mask"] = stacked["mask"].astype(np.float32)
        if not self.config.packing:
            stacked["positions"] = stacked["segment_ids"] = None
        return Batch(**stacked, micro_batches=np.int32(-(-len(rows) // height)))
