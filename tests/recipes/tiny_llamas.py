"""Tiny Llama checkpoints made by NumPy alone, and what a merge wrote."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imm_jax.models.huggingface.tensor_files import (
    Planned,
    TensorReader,
    read_header,
    write_tensors,
)

WIDTH, INNER, HEADS, HEAD, VOCABULARY, LAYERS = 16, 24, 4, 4, 64, 3


def config(**changes) -> dict:
    """What ``config.json`` holds; few shapes differ, so that few programs are compiled."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    } | changes


def shapes(described: Mapping) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint."""
    width, inner, vocabulary = (
        described[k] for k in ("hidden_size", "intermediate_size", "vocab_size")
    )
    queries, keys = (
        described[k] * described["head_dim"] for k in ("num_attention_heads", "num_key_value_heads")
    )
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    found = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(described["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (width,)
    if not described["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocabulary, width)
    return found


def weights(described: Mapping, seed: int = 0) -> dict[str, np.ndarray]:
    """Float64 values of the usual sizes; RandomState's numbers are the same in every release."""
    random = np.random.RandomState(seed)
    found = {}
    for name, shape in shapes(described).items():
        centre, width = (1.0, 0.1) if "norm" in name else (0.0, 0.2)
        found[name] = centre + width * random.standard_normal(shape)
    return found


def save(folder: Path, described: Mapping, values: Mapping[str, np.ndarray], dtype) -> None:
    """Writes the configuration and the weights of a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**described, "dtype": np.dtype(dtype).name}))
    plan = [Planned(name, np.dtype(dtype), x.shape) for name, x in values.items()]
    write_tensors(folder / "model.safetensors", plan, (x.astype(dtype) for x in values.values()))


def read(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a model folder, in their stored types."""
    entries = {}
    for file in sorted(folder.glob("*.safetensors")):
        entries |= read_header(file)
    reader = TensorReader(entries)
    return {name: reader[name] for name in entries}
