"""Model folders that are wrong: each gives one line that names the file and the tensor."""

import json
import struct
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from imm_jax.errors import InputError
from imm_jax.models.huggingface.weights import read_params
from imm_jax.models.load import load_model


def rewrite(folder: Path, change) -> None:
    """Changes the dictionary of tensors in a folder, with the safetensors package."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: np.array(value) for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


Q = "model.layers.1.self_attn.q_proj.weight"


def tensors(change):
    return lambda folder: rewrite(folder, change)


def raw(change):
    """Changes the bytes of the weights file."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


def header(change):
    """Changes the header of the weights file and leaves the tensors' bytes as they are."""

    def apply(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        parsed = json.loads(data[8 : 8 + length])
        text = change(parsed) or json.dumps(parsed)
        return struct.pack("<Q", len(text)) + text.encode() + data[8 + length :]

    return raw(apply)


def sharded(change):
    """Splits the weights over two files and an index, then changes the index."""

    def apply(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        whole = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(whole)
        halves = {"a.safetensors": names[:9], "b.safetensors": names[9:]}  # Q is in b
        for file, part in halves.items():
            save_file({name: whole[name] for name in part}, folder / file)
        index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
        change(folder, index)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return apply


def config_key(**changes):
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def stored_as(dtype):
    return tensors(lambda t: t.update({Q: t[Q].astype(dtype)}))


def duplicate_key(parsed) -> str:
    entry = json.dumps(parsed[Q])
    return json.dumps(parsed)[:-1] + f', "{Q}": {entry}}}'


BAD = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors and no"),
    "pickles": (only_pickles, "pytorch_model.bin: pickled weights are never read"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
    "config is binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "not valid JSON"),
    "unknown option": (config_key(foo=1), "foo 1 is not supported"),
    "empty file": (raw(lambda b: b""), "0 bytes without a header"),
    "seven bytes": (raw(lambda b: b[:7]), "7 bytes without a header"),
    "cut in the header": (raw(lambda b: b[:100]), "but the file has 100: truncated"),
    "cut in the data": (raw(lambda b: b[:-1000]), "truncated: tensor"),
    "one byte short": (raw(lambda b: b[:-1]), "truncated: tensor"),
    "bytes after the end": (raw(lambda b: b + b"\0" * 10), "its tensors end at byte"),
    "huge header length": (
        raw(lambda b: struct.pack("<Q", 2**62) + b[8:]),
        "announce a header of 4,611,686,018,427,387,904 bytes",
    ),
    "short header length": (raw(lambda b: struct.pack("<Q", 50) + b[8:]), "not valid JSON"),
    "zero header length": (raw(lambda b: b"\0" * 8 + b[8:]), "without a header"),
    "another format": (raw(lambda b: b"PK\3\4" + b), "not a safetensors file"),
    "header is a list": (header(lambda h: "[]"), "the header is not a JSON object"),
    "header has a name twice": (header(duplicate_key), f"the header has '{Q}' twice"),
    "entry without shape": (header(lambda h: h[Q].pop("shape") and None), f"tensor {Q} has dtype"),
    "entry is a number": (header(lambda h: h.update({Q: 3})), f"tensor {Q} has dtype None"),
    "negative size": (header(lambda h: h[Q].update(shape=[-32, 32])), "[-32, 32]"),
    "offsets too long": (
        header(lambda h: h[Q].update(data_offsets=[0, 10])),
        f"tensor {Q} (F32 [32, 32]) needs 4,096 bytes, but the header gives it 10",
    ),
    "overlap": (
        header(lambda h: h[Q].update(data_offsets=[0, 4096])),
        "leaves gaps or lets tensors overlap",
    ),
    "shape that lies": (header(lambda h: h[Q].update(shape=[64, 32])), "needs 8,192 bytes"),
    "unknown type name": (header(lambda h: h[Q].update(dtype="F33")), "unknown dtype 'F33'"),
    "fp8": (stored_as(ml_dtypes.float8_e4m3fn), f"tensor {Q} is stored as F8_E4M3"),
    "integers": (stored_as(np.int8), f"tensor {Q} is stored as I8, which is not supported"),
    "doubles": (stored_as(np.float64), f"tensor {Q} is stored as F64"),
    "missing tensor": (tensors(lambda t: t.pop(Q)), f"tensors are missing: {Q}"),
    "missing layer": (config_key(num_hidden_layers=4), "model.layers.3.input_layernorm.weight, "),
    "a layer too many": (config_key(num_hidden_layers=2), "no place for: model.layers.2."),
    "unexpected tensor": (
        tensors(lambda t: t.update({"model.extra": np.ones(3, np.float32)})),
        "tensors that the config has no place for: model.extra",
    ),
    "bias not in the config": (
        tensors(lambda t: t.update({"model.layers.0.mlp.up_proj.bias": np.ones(48, np.float32)})),
        "no place for: model.layers.0.mlp.up_proj.bias",
    ),
    "wrong shape": (
        tensors(lambda t: t.update({Q: t[Q][:, :-1].copy()})),
        f"tensor {Q} has shape [32, 31], but the config asks for [32, 32]",
    ),
    "transposed": (
        config_key(intermediate_size=64),
        "mlp.gate_proj.weight has shape [48, 32], but the config asks for [64, 32]",
    ),
    "another vocabulary": (
        config_key(vocab_size=400),
        "model.embed_tokens.weight has shape [320, 32], but the config asks for [400, 32]",
    ),
    "no head": (config_key(tie_word_embeddings=False), "tensors are missing: lm_head.weight"),
    "head not tied": (
        tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2})),
        "lm_head.weight differs from model.embed_tokens.weight",
    ),
    "NaN": (
        tensors(lambda t: t[Q].__setitem__((5, 7), np.nan)),
        f"tensor {Q} has NaN or infinite values",
    ),
    "infinite": (
        tensors(lambda t: t["model.embed_tokens.weight"].__setitem__((319, 31), -np.inf)),
        "tensor model.embed_tokens.weight has NaN or infinite values",
    ),
    "index of nothing": (sharded(lambda f, i: i.clear()), "weight_map is missing or empty"),
    "missing shard": (
        sharded(lambda f, i: (f / "b.safetensors").unlink()),
        "is in b.safetensors, but there is no such file",
    ),
    "index points elsewhere": (
        sharded(lambda f, i: i["weight_map"].update({Q: "../model.safetensors"})),
        "expected a file name in this folder",
    ),
    "index names the wrong shard": (
        sharded(lambda f, i: i["weight_map"].update({Q: "a.safetensors"})),
        "but model.safetensors.index.json does not say so",
    ),
    "index invents a tensor": (
        sharded(lambda f, i: i["weight_map"].update({"model.more": "a.safetensors"})),
        "tensor model.more is missing, but model.safetensors.index.json has it there",
    ),
    "index leaves a tensor out": (sharded(lambda f, i: i["weight_map"].pop(Q)), f"has tensor {Q}"),
    "truncated shard": (
        sharded(
            lambda f, i: (f / "b.safetensors").write_bytes((f / "b.safetensors").read_bytes()[:-9])
        ),
        "b.safetensors: truncated",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folder(name, folder):
    damage, says = BAD[name]
    damage(folder)
    start = time.process_time()
    with pytest.raises(InputError) as error:
        load_model(folder)
    message = str(error.value)
    assert says in message
    assert str(folder) in message
    assert "\n" not in message
    assert time.process_time() - start < 5


def test_overflow_by_a_cast_is_named(folder):
    rewrite(folder, lambda t: t[Q].__setitem__((0, 0), 1e6))
    with pytest.raises(InputError, match=f"tensor {Q} has NaN or infinite values as float16"):
        load_model(folder, dtype="float16")
    with pytest.raises(InputError, match="dtype int8 is not supported"):
        load_model(folder, dtype="int8")


def test_no_such_folder(tmp_path, tiny_config):
    with pytest.raises(InputError, match="no such folder"):
        read_params(tmp_path / "absent", tiny_config())
