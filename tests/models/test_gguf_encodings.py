"""GGUF: every encoding against the format in float64, and real models against transformers."""

import struct
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest

from imm_jax.models.gguf.config import read_config
from imm_jax.models.gguf.container import ENCODINGS, open_gguf
from imm_jax.models.gguf.weights import read_params
from imm_jax.models.sources import resolve
from tests.models.gguf_files import SMOLLM2, flat, raw_file, real_models

# Each encoding, value by value, as ggml's C reference defines it, in float64.


def half(block, at):
    return float(np.frombuffer(block, "<f2", 1, at)[0])


def q8_0(b):
    return [half(b, 0) * q for q in struct.unpack_from("<32b", b, 2)]


def q4(b, scale, offset, at):
    return [scale * (v & 15) + offset for v in b[at:]] + [scale * (v >> 4) + offset for v in b[at:]]


def q5(b, scale, offset, at):
    (high,) = struct.unpack_from("<I", b, at)
    nibbles = [v & 15 for v in b[at + 4 :]] + [v >> 4 for v in b[at + 4 :]]
    return [scale * (v | ((high >> i & 1) << 4)) + offset for i, v in enumerate(nibbles)]


def scale_min(s, j):
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4


def q2_k(b):
    scales, quants, d, m, out = b[:16], b[16:80], half(b, 80), half(b, 82), []
    for group in range(16):
        base, shift = 32 * (group // 8) + 16 * (group % 2), 2 * (group % 8 // 2)
        for v in quants[base : base + 16]:
            out.append(d * (scales[group] & 15) * (v >> shift & 3) - m * (scales[group] >> 4))
    return out


def q3_k(b):
    mask, quants, packed, d, out = b[:32], b[32:96], b[96:108], half(b, 108), []
    for group in range(16):
        low = packed[group] & 15 if group < 8 else packed[group - 8] >> 4
        scale = (low | (packed[8 + group % 4] >> 2 * (group // 4) & 3) << 4) - 32
        shift, first = 2 * (group % 8 // 2), 16 * (group % 2)
        for i in range(first, first + 16):
            bit = mask[i] >> (group // 2) & 1
            out.append(
                d * scale * ((quants[32 * (group // 8) + i] >> shift & 3) - (0 if bit else 4))
            )
    return out


def q4_k(b, high=None):
    d, m, quants, out = half(b, 0), half(b, 2), b[-128:], []
    for group in range(8):
        scale, least = scale_min(b[4:16], group)
        for i, v in enumerate(quants[32 * (group // 2) : 32 * (group // 2) + 32]):
            q = v >> 4 if group % 2 else v & 15
            if high is not None:
                q += 16 * (high[i] >> group & 1)
            out.append(d * scale * q - m * least)
    return out


def q6_k(b):
    low, high, scales, d = b[:128], b[128:192], struct.unpack_from("<16b", b, 192), half(b, 208)
    out = [0.0] * 256
    for i in range(256):
        part, quarter, lane = i // 128, i % 128 // 32, i % 32
        v = low[64 * part + 32 * (quarter % 2) + lane]
        nibble = v >> 4 if quarter > 1 else v & 15
        q = (nibble | (high[32 * part + lane] >> 2 * quarter & 3) << 4) - 32
        out[i] = d * scales[8 * part + 2 * quarter + lane // 16] * q
    return out


ORACLES = {  # encoding: (function of a block's bytes, where its float16 fields are)
    "F32": (lambda b: list(struct.unpack("<f", b)), ()),
    "F16": (lambda b: [half(b, 0)], (0,)),
    "BF16": (lambda b: [struct.unpack("<f", b"\0\0" + b)[0]], ()),
    "Q8_0": (q8_0, (0,)),
    "Q4_0": (lambda b: q4(b, half(b, 0), -8 * half(b, 0), 2), (0,)),
    "Q4_1": (lambda b: q4(b, half(b, 0), half(b, 2), 4), (0, 2)),
    "Q5_0": (lambda b: q5(b, half(b, 0), -16 * half(b, 0), 2), (0,)),
    "Q5_1": (lambda b: q5(b, half(b, 0), half(b, 2), 4), (0, 2)),
    "Q2_K": (q2_k, (80, 82)),
    "Q3_K": (q3_k, (108,)),
    "Q4_K": (q4_k, (0, 2)),
    "Q5_K": (lambda b: q4_k(b, high=b[16:48]), (0, 2)),
    "Q6_K": (q6_k, (208,)),
}


def test_every_encoding_has_an_oracle():
    assert set(ORACLES) == set(ENCODINGS)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_dequantisation(tmp_path, encoding):
    """Random bytes in every field, against the format in float64."""
    rng = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[encoding]
    size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    oracle, halves = ORACLES[encoding]
    rows, columns = 5, 512
    blocks = rng.integers(0, 256, (rows * columns // size, block_bytes), dtype=np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = rng.normal(size=(len(blocks), 1)).astype("<f2").view(np.uint8)
    if encoding in ("F32", "BF16"):
        values = rng.normal(size=len(blocks)).astype("<f4")[:, None].view(np.uint8)
        blocks = np.ascontiguousarray(values[:, -block_bytes:])
    path = tmp_path / "one.gguf"
    raw_file(path, {}, {"w": ((columns, rows), int(kind), blocks.tobytes())})
    expected = np.array([oracle(bytes(block)) for block in blocks]).reshape(rows, columns)
    file = open_gguf(path)
    assert file.tensors["w"].shape == (rows, columns)
    np.testing.assert_allclose(file.rows("w"), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(file.rows("w", 1, 3), file.rows("w")[1:3])


# Real models.

read = cache(gguf.GGUFReader)  # the words of a vocabulary take it seconds


@pytest.mark.slow
def test_smollm2():
    path = resolve(SMOLLM2).path
    config = read_config(path)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 30, 576)
    assert (config.vocab_size, config.head_dim, config.num_key_value_heads) == (49152, 64, 3)
    assert (config.rope_theta, config.rms_norm_eps) == (100000.0, 1e-05)
    assert config.tie_word_embeddings
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    params = dict(flat(read_params(path, config)))
    assert sum(leaf.size for leaf in params.values()) == 134_515_008
    stored = {tensor.name: tensor for tensor in read(path).tensors}
    q = stored["blk.7.attn_q.weight"]
    rows = np.array([ORACLES["Q4_1"][0](bytes(b)) for b in q.data.reshape(-1, 20)]).reshape(
        576, 576
    )
    halves = rows.reshape(9, 32, 2, 576).swapaxes(1, 2).reshape(576, 576)
    np.testing.assert_allclose(params["layers/attn/q/kernel"][7], halves.T, atol=1e-6)
    embedding = stored["token_embd.weight"].data[12345]
    row = np.concatenate([q8_0(bytes(b)) for b in embedding.reshape(-1, 34)])
    np.testing.assert_allclose(params["embed/embedding"][12345], row, atol=1e-6)


HF_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "lm_head/kernel": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "attn/q": "self_attn.q_proj",
    "attn/k": "self_attn.k_proj",
    "attn/v": "self_attn.v_proj",
    "attn/o": "self_attn.o_proj",
    "attn/q_norm": "self_attn.q_norm",
    "attn/k_norm": "self_attn.k_norm",
    "post_attn_norm": "post_attention_layernorm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
    "post_mlp_norm": "post_feedforward_layernorm",
}


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("source", real_models(), ids=lambda s: Path(s).stem)
def test_weights_equal_transformers(source, monkeypatch):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # transformers reads the file again, and makes the table of names for every module.
    monkeypatch.setattr(gguf, "GGUFReader", lambda name: read(Path(name)))
    monkeypatch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
    path = resolve(source).path
    config = read_config(path)
    theirs = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    state = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    unused = set(state)
    sandwich = "pre_feedforward_layernorm" if config.sandwich_norm else "post_attention_layernorm"
    names = HF_NAMES | {"mlp_norm": sandwich}
    for leaf_path, leaf in flat(read_params(path, config)):
        part, kind = leaf_path.removeprefix("layers/").rsplit("/", 1)
        for layer, array in enumerate(leaf if leaf_path.startswith("layers/") else [leaf]):
            name = names.get(leaf_path) or (
                f"model.layers.{layer}.{names[part]}.{'bias' if kind == 'bias' else 'weight'}"
            )
            unused.remove(name)
            expected = np.asarray(state[name])
            expected = expected.T if kind == "kernel" else expected
            np.testing.assert_array_equal(array, expected, err_msg=name)
    assert not unused
