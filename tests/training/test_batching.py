import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imm_jax.errors import InputError
from imm_jax.training.batching import Batches, Sequence, prepare
from imm_jax.training.config import TrainingConfig


def unpack(batch):
    """Reads the arrays back, one (inputs, targets, mask) for each sequence in them."""
    found = []
    for micro in range(int(batch.micro_batches)):
        for row in range(batch.tokens.shape[1]):
            at = micro, row
            if batch.segment_ids is None:
                spans = [slice(None)] if batch.mask[at].any() else []
            else:
                ids = batch.segment_ids[at]
                spans = [np.flatnonzero(ids == i) for i in range(1, ids.max() + 1)]
            for span in spans:
                inputs, targets, mask = (
                    x[at][span] for x in (batch.tokens, batch.targets, batch.mask)
                )
                if batch.positions is not None:
                    assert (batch.positions[at][span] == np.arange(len(inputs))).all()
                else:
                    end = int(np.flatnonzero(mask)[-1]) + 1  # the response ends the sequence
                    inputs, targets, mask = inputs[:end], targets[:end], mask[:end]
                found.append((tuple(inputs), tuple(targets), tuple(mask)))
    return found


def expected(sequence):
    tokens = sequence.tokens
    mask = tuple(float(i >= sequence.prompt_length) for i in range(1, len(tokens)))
    return tokens[:-1], tokens[1:], mask


lengths = st.integers(2, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(lengths, min_size=1, max_size=25),
    batch_size=st.integers(1, 9),
    micro=st.integers(1, 5),
    packing=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_epoch_holds_each_sequence_once_and_whole(shapes, batch_size, micro, packing, seed):
    rng = np.random.default_rng(0)
    sequences = [Sequence(tuple(rng.integers(1, 99, n).tolist()), p) for n, p in shapes]
    config = TrainingConfig(
        epochs=2, batch_size=batch_size, micro_batch_size=micro, max_length=40, bucket=8,
        packing=packing,
    )  # fmt: skip
    batches = Batches(sequences, config, seed=seed)
    assert len(batches) == 2 * batches.steps_per_epoch
    for epoch in range(2):
        rows = []
        for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
            batch = batches[step]
            found = unpack(batch)
            assert len(found) <= batch_size
            # Nothing lies beyond what was read back.
            assert batch.mask.sum() == sum(sum(mask) for *_, mask in found)
            assert batch.tokens.shape[2] % 8 == 0
            assert batches.input_tokens(step) == sum(len(inputs) for inputs, *_ in found)
            rows += found
        assert Counter(rows) == Counter(expected(s) for s in sequences)


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_is_a_function_of_seed_and_step_alone(make_sequences, small_config, packing):
    config = dataclasses.replace(small_config, packing=packing)
    sequences = make_sequences(21)
    one, two = (Batches(sequences, config, seed=5) for _ in range(2))
    whole = list(one)
    for step in (4, 0, 2):  # in any order, as after a resume
        for a, b in zip(jax.tree.leaves(two[step]), jax.tree.leaves(whole[step])):
            np.testing.assert_array_equal(a, b)
    other = Batches(sequences, config, seed=6)
    assert any((unpack(a) != unpack(b)) for a, b in zip(whole, other))
    assert unpack(whole[0]) != unpack(whole[3])  # the second epoch has an order of its own


def test_packed_batches_have_one_shape_and_little_padding(make_sequences):
    sequences = make_sequences(200, low=40, high=120)
    config = TrainingConfig(epochs=1, batch_size=32, micro_batch_size=4)
    batches = Batches(sequences, config, seed=0)
    assert len({batch.tokens.shape for batch in batches}) == 1
    full = list(batches)[:-1]
    used = sum((batch.segment_ids > 0).sum() for batch in full)
    held = sum(batch.micro_batches * np.prod(batch.tokens.shape[1:]) for batch in full)
    assert used / held > 0.8
    # One sequence a row at the same width would fill this much less.
    padded = Batches(sequences, dataclasses.replace(config, packing=False), seed=0)
    assert held < 0.85 * sum(batch.tokens.size for batch in list(padded)[:-1])


def test_right_padded_rows_take_few_widths(make_sequences):
    config = TrainingConfig(epochs=3, batch_size=4, micro_batch_size=2, packing=False)
    batches = Batches(make_sequences(60, low=4, high=100), config, seed=0)
    assert {batch.tokens.shape[2] for batch in batches} <= {32, 64, 96, 128}
    assert all(batch.segment_ids is None and batch.positions is None for batch in batches)


def test_prepare_counts_what_it_cuts_and_drops():
    def row(length, prompt):
        return Sequence(tuple(range(length)), prompt)

    prepared = prepare([row(5, 2), row(12, 2), row(12, 8), row(12, 9), row(4, 4), row(1, 0)], 8)
    assert [(len(s.tokens), s.prompt_length) for s in prepared.sequences] == [(5, 2), (8, 2)]
    assert (prepared.truncated, prepared.dropped) == (1, 4)


def test_an_empty_prompt_trains_all_tokens_but_the_first():
    prepared = prepare([Sequence((7, 8, 9), 0)], 10)
    batch = Batches(prepared.sequences, TrainingConfig(), seed=0)[0]
    assert unpack(batch) == [((7, 8), (8, 9), (1.0, 1.0))]


def test_no_sequences_is_an_error_in_one_line():
    with pytest.raises(InputError, match="no sequence with a response token"):
        Batches((), TrainingConfig(), seed=0)


def test_rows_are_as_wide_as_pads_least():
    """Lengths 60 and 90 fill rows of 150, where rows of twice the longest would leave 30 empty."""
    lengths = [90, 60] * 8
    sequences = [Sequence(tuple(range(n + 1)), 1) for n in lengths]
    config = TrainingConfig(batch_size=16, micro_batch_size=1, bucket=10, epochs=1)
    batch = Batches(sequences, config, seed=0)[0]
    assert batch.tokens.shape[-1] == 150 and batch.micro_batches == 8
    short = dataclasses.replace(config, max_length=101)
    assert Batches(sequences, short, seed=0)[0].tokens.shape[-1] == 90


def test_a_cpu_takes_no_more_rows_than_keep_it_busy(monkeypatch):
    """Sequences of 100 tokens, eight a micro batch: five rows of 100 are more than 500 tokens."""
    sequences = [Sequence(tuple(range(101)), 1) for _ in range(8)]
    config = TrainingConfig(batch_size=8, micro_batch_size=8, bucket=10, epochs=1, max_length=101)
    batch = Batches(sequences, config, seed=0)[0]
    assert batch.tokens.shape == (2, 5, 100) and batch.micro_batches == 2
    assert len(unpack(batch)) == 8
    spread = Batches(sequences, config, seed=0, shards=2)[0]  # on a mesh for each of its parts
    assert spread.tokens.shape == (1, 8, 100)
    few = dataclasses.replace(config, micro_batch_size=3)
    assert Batches(sequences, few, seed=0)[0].tokens.shape == (3, 3, 100)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert Batches(sequences, config, seed=0)[0].tokens.shape == (1, 8, 100)
