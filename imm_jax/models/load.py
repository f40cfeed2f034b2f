"""A model from wherever it lies: a folder, a GGUF file, the hub, a package index."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from imm_jax.errors import InputError
from imm_jax.models.config import ModelConfig
from imm_jax.models.decoder import Decoder
from imm_jax.models.gguf import config as gguf_config
from imm_jax.models.gguf import weights as gguf_weights
from imm_jax.models.huggingface import weights as huggingface
from imm_jax.models.huggingface.tensor_files import DTYPES
from imm_jax.models.huggingface.weights import Sharding
from imm_jax.models.sources import ResolvedModel, resolve


def load_model(
    source: str | os.PathLike,
    *,
    dtype: Any = None,
    sharding: Sharding = None,
    revision: str | None = None,
) -> tuple[Decoder, PyTree]:
    """Loads a model: ``model.apply({"params": params}, tokens_BT)`` gives logits ``[B, T, V]``.

    Args:
      source: a folder in Hugging Face layout, a GGUF file, a hub id, or a package on the index; see
        :func:`imm_jax.models.sources.resolve`.
      dtype: the parameters' type, float32, bfloat16 or float16; None keeps the stored one (float32
        where it is quantised).
      sharding: of every array, or a function from a path (``"layers/attn/q/kernel"``) to one's.
      revision: of a hub id.

    Returns:
      The Linen module and the canonical tree, layers stacked, kernels ``[in, out]``.

    Raises:
      InputError: the source is not found, or its configuration or weights cannot be used.
    """
    if dtype is not None and jnp.dtype(dtype) not in DTYPES.values():
        expected = ", ".join(d.name for d in DTYPES.values())
        raise InputError(f"dtype {jnp.dtype(dtype).name} is not supported, expected {expected}")
    resolved = resolve(source, revision=revision)
    config = read_config(resolved)
    if resolved.kind == "gguf":
        params = gguf_weights.read_params(resolved.path, config, dtype or jnp.float32)
        _place(params, sharding if callable(sharding) else lambda _: sharding)
    else:
        params = huggingface.read_params(resolved.path, config, dtype=dtype, sharding=sharding)
    return Decoder(config=config), params


def read_config(resolved: ResolvedModel) -> ModelConfig:
    """The architecture of a resolved model."""
    reader = gguf_config if resolved.kind == "gguf" else huggingface
    return reader.read_config(resolved.path)


def _place(tree: dict[str, Any], sharding: Callable[[str], Any], path: str = "") -> None:
    """Moves host arrays to devices one by one, each host copy freed before the next."""
    for key, node in tree.items():
        if isinstance(node, dict):
            _place(node, sharding, f"{path}{key}/")
        else:
            tree[key] = jax.block_until_ready(jax.device_put(node, sharding(path + key)))
