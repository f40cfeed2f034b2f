import json
import os
import subprocess
import sys
from collections import namedtuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from imm_jax import checkpoint_files
from imm_jax.checkpoints import DamagedCheckpoint, restore, save
from imm_jax.errors import InputError
from tests.devices import ask

ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}


def tree(value=0.0):
    rng = np.random.default_rng(0)
    return {
        "embed": {"embedding": jnp.asarray(rng.normal(size=(40, 8)) + value, jnp.float32)},
        "layers": {"scale": jnp.asarray(rng.normal(size=(3, 8)) + value, jnp.bfloat16)},
    }


def assert_bits(a, b):
    def check(x, y):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        assert x.tobytes() == y.tobytes()

    jax.tree.map(check, a, b)


ODD = np.array([np.nan, -0.0, np.inf, -np.inf, 1e-45, 3.4e38], np.float32)
NamedTree = namedtuple("NamedTree", ["b", "a"])


def test_round_trip_keeps_every_bit_without_a_pattern(tmp_path):
    mixed = {
        "odd": ODD,
        "half": jnp.asarray(ODD, jnp.bfloat16),
        "f16": np.float16([1.5, np.nan]),
        "count": jnp.int32(7),
        "flags": np.array([True, False]),
        "bytes": np.arange(256, dtype=np.uint8),
        "list": [{"x": np.ones((2, 3))}, {"x": np.zeros(1, np.int64)}],
        "a.b/c": np.float32([1]),
    }
    save(tmp_path / "deep" / "c", mixed)
    back = restore(tmp_path / "deep" / "c")
    assert jax.tree.structure(back) == jax.tree.structure(mixed)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back))
    assert_bits(back, mixed)


def test_optimizer_states_come_back_through_a_pattern(tmp_path):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    params = tree()
    state = optimizer.update(params, optimizer.init(params), params)[1]
    both = {"params": params, "state": state, "named": NamedTree(np.ones(2), np.zeros(3))}
    save(tmp_path / "c", both)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), both)
    like["named"] = both["named"]
    back = restore(tmp_path / "c", like)
    assert jax.tree.structure(back) == jax.tree.structure(both)
    assert isinstance(back["named"].a, np.ndarray) and isinstance(back["state"][0], tuple)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(back["params"]))
    assert_bits(back, both)


SHARDED = """
import sys, jax, numpy as np, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from imm_jax.checkpoints import restore, save
from imm_jax.step_checkpoints import StepCheckpoints
value = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
def on(count):
    return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("x",)), P("x"))
tree = {"w": jax.device_put(value, on(8)), "n": jnp.int32(3)}
with StepCheckpoints(sys.argv[1]) as steps:
    steps.save(1, tree)
    for count in (1, 2, 8):
        like = {"w": jax.ShapeDtypeStruct((64, 3), np.float32, sharding=on(count)), "n": tree["n"]}
        w = steps.restore_latest(like)[1]["w"]
        assert len(w.sharding.device_set) == count and (np.asarray(w) == value).all()
        save(sys.argv[1] + "/again", {"w": w, "n": tree["n"]})
        assert (restore(sys.argv[1] + "/again")["w"] == value).all()
"""


def test_a_checkpoint_moves_between_meshes(tmp_path):
    environment = ENVIRONMENT | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(restore(tmp_path / "again")["w"].ravel(), np.arange(192))


def test_saving_again_replaces(tmp_path):
    for value in range(3):
        save(tmp_path / "c", tree(value))
    assert_bits(restore(tmp_path / "c"), tree(2))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["data-2", "manifest.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << (at % 8)
    path.write_bytes(data)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "emptied": lambda path: path.write_bytes(b""),
    "first bit flipped": lambda path: flip(path, 0),
    "last bit flipped": lambda path: flip(path, path.stat().st_size - 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_is_found_and_named(tmp_path, kind):
    save(tmp_path / "c", tree())
    damaged = 0
    for path in files(tmp_path / "c"):
        good = path.read_bytes()
        if kind == "emptied" and not good:
            continue
        if kind == "longer" and path.name == "manifest.json":
            continue  # checked byte by byte below
        DAMAGE[kind](path)
        with pytest.raises(DamagedCheckpoint) as error:
            restore(tmp_path / "c")
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        path.write_bytes(good)
        damaged += 1
    assert damaged >= 5
    assert_bits(restore(tmp_path / "c"), tree())


def test_a_flipped_bit_in_the_manifest_is_found_or_harmless(tmp_path):
    save(tmp_path / "c", {"w": np.arange(6, dtype=np.float32)})
    manifest = tmp_path / "c" / "manifest.json"
    good, found = manifest.read_bytes(), 0
    like = {"w": jax.ShapeDtypeStruct((6,), jnp.float32)}
    for at in range(0, len(good), 5):
        flip(manifest, at)
        try:
            back = restore(tmp_path / "c", like)
            np.testing.assert_array_equal(back["w"], np.arange(6))
        except InputError as error:
            assert "\n" not in str(error)
            found += 1
        manifest.write_bytes(good)
    assert found > 0.8 * len(range(0, len(good), 5))


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path):
    with pytest.raises(InputError, match="no checkpoint there"):
        restore(tmp_path / "nothing")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="something other than a checkpoint"):
        save(tmp_path / "home", tree())
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json: missing"):
        restore(tmp_path / "home")
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["letter.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="could not be written"):
        save(tmp_path / "file" / "below", tree())
    with pytest.raises(InputError, match="could not be written"):
        save(tmp_path / "file", tree())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": {"b": 1.5}}, "a/b is a float, expected an array"),
        ({"a": np.zeros((0, 4))}, "a is empty"),
        ({}, "holds no array"),
    ],
)
def test_only_trees_of_arrays_are_saved(tmp_path, bad, message):
    with pytest.raises(InputError, match=message):
        save(tmp_path / "c", bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"new": jnp.ones(2)}, r"new is nothing there, expected float32\[2\]"),
        (lambda t: {"embed": t["embed"]}, r"layers/scale is bfloat16\[3, 8\] there, expected noth"),
        (
            lambda t: jax.tree.map(lambda x: x[:2], t),
            r"\[\d+, 8\] there, expected \S+\[2, 8\]",
        ),
        (lambda t: jax.tree.map(lambda x: x.astype(float), t), "there, expected float32"),
    ],
)
def test_a_pattern_that_does_not_fit_is_an_error_that_names_the_leaf(tmp_path, change, message):
    save(tmp_path / "c", tree())
    with pytest.raises(InputError, match=message) as error:
        restore(tmp_path / "c", change(tree()))
    assert not isinstance(error.value, DamagedCheckpoint)


def test_a_full_disk_is_said_before_writing_and_the_old_state_stays(tmp_path, monkeypatch):
    save(tmp_path / "c", tree(1))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoint_files.shutil, "disk_usage", lambda _: usage(100, 100, 0))
    with pytest.raises(InputError, match="not enough room on the disk"):
        save(tmp_path / "c", tree(2))
    assert_bits(restore(tmp_path / "c"), tree(1))


def test_the_module_is_cheap_to_import_and_silent(tmp_path):
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from imm_jax.checkpoints import *; import numpy as np\n"
        "from imm_jax.step_checkpoints import StepCheckpoints\n"
        "assert 'orbax' not in sys.modules\n"
        "save(sys.argv[1], {'w': np.ones(3)}); restore(sys.argv[1])\n"
        "with StepCheckpoints(sys.argv[1] + '-s') as s: s.save(1, {'w': np.ones(3)})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout and not done.stderr


def test_the_manifest_describes_the_tree(tmp_path):
    save(tmp_path / "c", tree())
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["leaves"] == {
        "embed/embedding": "float32[40, 8]", "layers/scale": "bfloat16[3, 8]",
    }  # fmt: skip
    assert np.dtype(ml_dtypes.bfloat16).name == "bfloat16"


WRITE = """
from imm_jax import checkpoints
folder, text = sys.argv[1:]
tree = draw(LLAMA)
many = spread(tree, sharding.make_mesh(text)) if text else jax.tree.map(jnp.asarray, tree)
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), many)
if folder.endswith("8"):
    checkpoints.save(folder, many)
else:
    found = checkpoints.restore(folder[:-1] + ("8" if folder.endswith("1") else "1"), like)
    answers["same"] = furthest(found, tree)
    answers["placed"] = all(x.sharding.is_equivalent_to(y.sharding, x.ndim)
                            for x, y in zip(*map(jax.tree.leaves, (found, like))))
    checkpoints.save(folder, found)
    answers["parts"] = len(found["embed"]["embedding"].addressable_shards)
"""


def test_a_checkpoint_goes_from_8_devices_to_1_and_back(tmp_path):
    folder = str(tmp_path / "c")
    ask(WRITE, folder + "8", "data=2,fsdp=2,tensor=2")
    one = ask(WRITE, folder + "1", "", count=1)
    assert one == {"same": 0.0, "placed": True, "parts": 1}
    again = ask(WRITE, folder + "0", "fsdp=8")
    assert again == {"same": 0.0, "placed": True, "parts": 8}
