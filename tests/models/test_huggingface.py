"""Reading model folders: types, shardings, and files that are right but unusual."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.huggingface.tensor_files import TensorReader, read_header
from imm_jax.models.layout import param_shapes
from imm_jax.models.load import load_model
from imm_jax.tree import path_str

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]
DTYPES = ["float32", "bfloat16", "float16"]


def cast(params, dtype: str):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def rewrite(folder: Path, change) -> None:
    """Changes the dictionary of tensors in a folder, with the safetensors package."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: np.array(value) for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("family", FAMILIES)
def test_layout_is_the_decoder_s_own(family, tiny_config):
    config = tiny_config(family)
    start = Decoder(config=config).init
    made = jax.eval_shape(start, jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    shapes = {
        path_str(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(made)
    }
    assert shapes == param_shapes(config)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_dtype_casts_as_numpy_does(
    stored, wanted, tiny_config, random_params, tmp_path, assert_bit_equal
):
    config = tiny_config("llama")
    params = cast(random_params(config), stored)
    save_model(tmp_path / "m", Decoder(config=config), params)
    _, got = load_model(tmp_path / "m", dtype=wanted)
    assert_bit_equal(jax.tree.map(lambda x: np.asarray(x).astype(jnp.dtype(wanted)), params), got)


def test_sharding_of_one_and_of_each(tiny_config, random_params, tmp_path, assert_bit_equal):
    config = tiny_config("qwen3")
    params = random_params(config)
    save_model(tmp_path / "m", Decoder(config=config), params)
    one = SingleDeviceSharding(jax.devices()[0])
    _, got = load_model(tmp_path / "m", sharding=one)
    assert_bit_equal(params, got)
    mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    asked = []

    def where(path: str):
        asked.append(path)
        spec = PartitionSpec(None, None, "model") if path.endswith("/kernel") else PartitionSpec()
        return NamedSharding(mesh, spec if path != "lm_head/kernel" else PartitionSpec("model"))

    _, got = load_model(tmp_path / "m", sharding=where)
    assert_bit_equal(params, got)
    assert set(asked) == set(param_shapes(config))
    assert got["layers"]["mlp"]["up"]["kernel"].sharding.spec == PartitionSpec(None, None, "model")


FOUR_DEVICES = """
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from imm_jax.models.load import load_model

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))

def where(path):
    return NamedSharding(mesh, P(None, None, "model") if "kernel" in path else P())

_, whole = load_model(sys.argv[1])
_, split = load_model(sys.argv[1], sharding=where)
jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), whole, split)
up = split["layers"]["mlp"]["up"]["kernel"]
print(up.shape, [shard.data.shape for shard in up.addressable_shards])
"""


def test_each_device_gets_its_part(folder):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", FOUR_DEVICES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"(3, 32, 48) {[(3, 32, 24)] * 4}"


def test_slices_read_only_their_part(tiny_config, random_params, tmp_path):
    """What a device of a mesh would ask for, piece by piece, put together again."""
    from imm_jax.models.huggingface.weight_names import weight_sources
    from imm_jax.models.huggingface.weights import _read_slice

    config = tiny_config("llama")
    params = random_params(config)
    save_model(tmp_path / "m", Decoder(config=config), params)
    flat = {path_str(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    reader = TensorReader(read_header(tmp_path / "m" / "model.safetensors"))
    cuts = {
        "layers/mlp/up/kernel": (slice(1, 3), slice(8, 20), slice(None)),
        "layers/attn/q/kernel": (slice(0, 1), slice(None), slice(17, 32)),
        "layers/attn_norm/scale": (slice(None), slice(4, 5)),
        "embed/embedding": (slice(100, 164), slice(0, 7)),
        "final_norm/scale": (slice(2, None),),
    }
    for path, index in cuts.items():
        source = weight_sources(config)[path]
        stacked = path.startswith("layers/")
        got = _read_slice(reader, source, stacked, np.dtype(np.float32), index)
        np.testing.assert_array_equal(got, flat[path][index])


def test_rotary_buffers_and_copies_of_tied_embeddings_are_fine(folder, assert_bit_equal):
    _, before = load_model(folder)

    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    rewrite(folder, change)
    assert_bit_equal(before, load_model(folder)[1])
