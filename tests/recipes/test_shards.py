"""How tensors are distributed over files."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imm_jax.arguments import parse
from imm_jax.models.huggingface.tensor_files import Planned, read_header, write_tensors
from imm_jax.recipes.shards import cut

DTYPES = [np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16)]
planned = st.builds(Planned, st.none(), st.sampled_from(DTYPES), st.tuples(st.integers(0, 50)))


@given(st.lists(planned, min_size=1, max_size=12), st.integers(1, 300))
def test_files_are_full_and_none_is_too_large(tensors, limit):
    tensors = [t._replace(name=str(i)) for i, t in enumerate(tensors)]
    shards = cut(tensors, limit)
    numbers = [sorted(int(t.name) for t in shard.tensors) for shard in shards]
    assert [*itertools.chain(*numbers)] == list(range(len(tensors)))  # in order, each once
    for shard, following in zip(shards, numbers[1:]):
        assert shard.nbytes + tensors[following[0]].nbytes > limit
    assert all(shard.nbytes <= limit or len(shard.tensors) == 1 for shard in shards)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    assert [s.file for s in shards] == (names if len(shards) > 1 else ["model.safetensors"])


def test_every_tensor_is_aligned(tmp_path):
    """One of three bfloat16 numbers before one of float32 would put that at an odd place."""
    mixed = [Planned("a", DTYPES[2], (3,)), Planned("b", DTYPES[0], (5,))]
    (shard,) = cut(mixed, 1e9)
    values = [np.zeros(t.shape, t.dtype) for t in shard.tensors]
    write_tensors(tmp_path / shard.file, shard.tensors, values)
    entries = read_header(tmp_path / shard.file)
    assert entries["b"].begin % 4 == 0 and entries["a"].begin % 2 == 0


SIZES = {"700": 700, "8K": 8e3, "8KB": 8e3, "8kb": 8e3, "500M": 5e8, "500MB": 5e8, "5B": 5e9,
         "5GB": 5e9}  # fmt: skip


@pytest.mark.parametrize("text", SIZES)
def test_sizes_as_mergekit_and_as_everybody_writes_them(text):
    args = parse(["merge", "recipe.yaml", "out", "--out-shard-size", text])
    assert args.out_shard_size == SIZES[text]
