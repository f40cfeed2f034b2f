"""The mesh and the table of partition rules."""

import logging

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from imm_jax import sharding
from imm_jax.errors import InputError
from imm_jax.models.layout import param_shapes
from imm_jax.sharding import AXES, parse_mesh, partition
from tests.devices import ask

SIZES = {"data": 2, "fsdp": 4, "tensor": 2}


def test_axes_that_are_not_named_have_size_1():
    assert parse_mesh("data=2,fsdp=4") == {"data": 2, "fsdp": 4, "tensor": 1}
    assert parse_mesh(" tensor = 8 ") == {"data": 1, "fsdp": 1, "tensor": 8}
    assert tuple(parse_mesh("fsdp=2,data=3")) == AXES


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected AXIS=SIZE"),
        ("8", "'8', expected AXIS=SIZE"),
        ("data=2,,fsdp=4", "expected AXIS=SIZE"),
        ("data=2;fsdp=4", "data=2;fsdp=4, expected a whole number"),
        ("fsdp=0", "fsdp=0, expected a whole number of at least 1"),
        ("fsdp=-2", "fsdp=-2, expected a whole number"),
        ("fsdp=2.0", "fsdp=2.0, expected a whole number"),
        ("fdsp=8", r"'fdsp' \(did you mean 'fsdp'\?\), expected data, fsdp, tensor"),
        ("data=2,data=4", "names data twice"),
        ("tensor=1000000000000", "tensor=1000000000000, expected a whole number of at least 1"),
        ("data=2048,fsdp=1024", "for 2097152 devices, expected at most 1048576"),
        ("data=3,fsdp=5", "for 15 devices, but there are 1"),
    ],
)
def test_a_wrong_mesh_is_one_line(text, says):
    with pytest.raises(InputError, match=says) as error:
        sharding.make_mesh(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("embed/embedding", (320, 32), P("tensor", "fsdp")),
        ("lm_head/kernel", (32, 320), P("fsdp", "tensor")),
        ("layers/attn/q/kernel", (3, 32, 32), P(None, "fsdp", "tensor")),
        ("layers/attn/k/bias", (3, 16), P(None, "tensor")),
        ("layers/attn/o/kernel", (3, 32, 32), P(None, "tensor", "fsdp")),
        ("layers/mlp/up/kernel", (3, 32, 48), P(None, "fsdp", "tensor")),
        ("layers/mlp/down/kernel", (3, 48, 32), P(None, "tensor", "fsdp")),
        ("layers/mlp/down/bias", (3, 32), P()),
        ("layers/attn_norm/scale", (3, 32), P()),
        ("layers/attn/q_norm/scale", (3, 8), P()),
        ("final_norm/scale", (32,), P()),
        # A list of layers has no axis of layers.
        ("layers/2/attn/q/kernel", (32, 32), P("fsdp", "tensor")),
        # An optimizer's state below its own path, and what it keeps in another shape.
        ("opt_state/1/mu/layers/mlp/down/kernel", (3, 48, 32), P(None, "tensor", "fsdp")),
        ("opt_state/1/v_row/layers/mlp/down/kernel", (3, 48), P()),
        ("opt_state/1/count", (), P()),
        ("some/other/tensor", (64, 64), P()),
    ],
)
def test_the_table(path, shape, spec):
    assert partition(path, shape, SIZES) == spec


def test_axes_of_size_1_are_left_out():
    sizes = parse_mesh("fsdp=8")
    assert partition("layers/attn/o/kernel", (3, 32, 32), sizes) == P(None, None, "fsdp")
    assert partition("layers/attn/q/kernel", (3, 32, 32), sizes) == P(None, "fsdp")


def test_what_does_not_divide_stays_whole_and_is_said_once_an_axis(caplog, tiny_config):
    """Not for each array, nor again for those of an optimizer's state or of a list of layers."""
    config = tiny_config("qwen2", hidden_size=34)
    shapes = param_shapes(config)
    mesh = jax.sharding.AbstractMesh((1, 4, 5), AXES)
    assert partition("layers/mlp/gate/kernel", (3, 34, 45), mesh.shape) == P(None, None, "tensor")
    with caplog.at_level(logging.INFO, "imm_jax"):
        assert partition("layers/mlp/gate/kernel", (3, 34, 48), mesh.shape) == P()
        table = sharding.param_shardings(mesh, shapes)
        arrays = {path: jax.ShapeDtypeStruct(shape, float) for path, shape in shapes.items()}
        sharding.param_shardings(mesh, {"params": arrays, "mu": arrays, "nu": arrays})
    assert [record.message for record in caplog.records] == [
        "mesh: 8 of 8 arrays are not split over fsdp=4, such as attn/k/kernel: 34 is no multiple",
        "mesh: 10 of 11 arrays are not split over tensor=5, such as attn/k/bias: 16 is no multiple",
    ]
    assert table["embed/embedding"].spec == P("tensor")  # of 320 tokens


def test_every_parameter_of_every_family_is_in_the_table(tiny_config):
    for family in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text"):
        config = tiny_config(family, o_bias=True, mlp_bias=True, tie_word_embeddings=False)
        for path, shape in param_shapes(config).items():
            split = [axis for axis in partition(path, shape, dict.fromkeys(AXES, 2)) if axis]
            large = path.endswith(("kernel", "embedding"))
            assert set(split) == ({"fsdp", "tensor"} if large else set(split) - {"fsdp"}), path


def test_without_a_mesh_nothing_is_constrained():
    tree = {"embed": {"embedding": np.zeros((4, 4))}}
    assert sharding.constrain_params(tree) is tree and sharding.constrain(tree, "rows") is tree
    assert sharding.mesh_of(tree) is None and sharding.mesh_of(jax.numpy.zeros(3)) is None


ON_8 = """
from imm_jax.models.load import load_model
mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
answers["axes"] = dict(mesh.shape)
model, whole = load_model(sys.argv[1])
table = sharding.param_shardings(mesh, param_shapes(model.config))
_, params = load_model(sys.argv[1], sharding=table.get)
answers["same"] = furthest(whole, params)
answers["mesh found"] = sharding.mesh_of(params) == mesh
leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
answers["parts"] = {path: list(leaf.addressable_shards[0].data.shape)
                    for path, leaf in leaves.items()}
answers["as the tree's"] = [leaf.sharding for leaf in jax.tree.leaves(params)] == jax.tree.leaves(
    sharding.param_shardings(mesh, params))
batch = sharding.place_batch(mesh, {"rows": np.arange(24).reshape(8, 3), "count": np.int32(5)})
answers["rows"] = [len({str(s.index) for s in batch["rows"].addressable_shards}),
                   list(batch["rows"].addressable_shards[0].data.shape)]
answers["count"] = [int(s.data) for s in batch["count"].addressable_shards]
try:
    sharding.make_mesh("data=4")
except ValueError as error:
    answers["wrong"] = str(error)
"""


def test_a_model_is_loaded_onto_8_devices(tmp_path, tiny_config, random_params):
    from imm_jax.models.decoder import Decoder
    from imm_jax.models.huggingface.saving import save_model

    config = tiny_config("qwen2")
    save_model(tmp_path / "model", Decoder(config), random_params(config))
    found = ask(ON_8, tmp_path / "model")
    assert found["axes"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert found["same"] == 0 and found["mesh found"] and found["as the tree's"]
    assert found["parts"]["embed/embedding"] == [160, 16]
    assert found["parts"]["layers/attn/k/kernel"] == [3, 16, 8]
    assert found["parts"]["layers/attn/k/bias"] == [3, 8]
    assert found["parts"]["layers/mlp/down/kernel"] == [3, 24, 16]
    assert found["parts"]["layers/mlp_norm/scale"] == [3, 32]
    assert found["rows"] == [4, [2, 3]] and found["count"] == [5] * 8
    assert found["wrong"] == "mesh: 'data=4' is for 4 devices, but there are 8"
