"""Model folders on disk, seen with the safetensors package and ``json``; recipes for them."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors import safe_open

import imm_jax

# For processes that work elsewhere: the same package as here.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(imm_jax.__file__).parents[1])}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q = "model.layers.{}.self_attn.q_proj.weight"
BESIDE = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")

LINEAR = """
merge_method: linear
models:
  - {model: base, parameters: {weight: 1}}
  - {model: one, parameters: {weight: 3}}
dtype: float32
"""


def read_tensors(folder: Path | str, files: str = "*.safetensors") -> dict[str, np.ndarray]:
    """All tensors of a model folder."""
    tensors = {}
    for path in sorted(Path(folder).glob(files)):
        with safe_open(path, "np") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def read_config(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "config.json").read_text())


def wide(x):
    return x.astype(np.float64)


def mean(one, other, weights=(1, 3)):
    """The weighted mean of two models' tensors, in float64."""
    a, b = weights
    return {n: (a * wide(x) + b * wide(other[n])) / (a + b) for n, x in one.items()}


def cast(tensors, dtype=np.float32):
    return {name: x.astype(dtype) for name, x in tensors.items()}


def assert_same(found, expected):
    """Equal to the bit, with the same names, types and shapes."""
    assert found.keys() == expected.keys()
    for name, x in found.items():
        y = np.asarray(expected[name])
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name
