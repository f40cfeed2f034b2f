"""Memory and devices: no temporary of a leaf's size; shardings kept, same numbers on 8 devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.merging import exact, layout, program

CHAINS = {
    "interpolation": (1, None),
    "linear": (3, merging.linear()),
    "drop": (1, merging.drop_and_rescale(0.2)),
    "trim": (3, merging.trim(0.2)),
    "ties": (3, merging.ties(0.2)),
    "whole-model ties": (3, merging.ties(0.2, scope="model")),
    "dare_ties": (3, merging.dare_ties(0.8)),
    "breadcrumbs": (2, merging.breadcrumbs(0.8, 0.01)),
}


@pytest.mark.parametrize("count, transform", CHAINS.values(), ids=CHAINS)
def test_temporaries_are_smaller_than_a_leaf(count, transform):
    leaf = jax.ShapeDtypeStruct((2048, 64), jnp.bfloat16)
    params = {"embed": leaf, "layers": {"w": jax.ShapeDtypeStruct((8, 256, 64), jnp.bfloat16)}}
    merge = jax.jit(
        lambda base, models, key: merging.merge_params(
            base, models, weight=0.3, transform=transform, key=key
        )
    )
    compiled = merge.lower(params, [params] * count, jax.random.key(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 2048 * 64 * 2


MEASURED = {
    "slerp": (1, merging.slerp()),
    "nuslerp": (2, merging.nuslerp()),
    "multislerp": (3, merging.multislerp()),
    "karcher": (3, merging.karcher()),
    "model_stock": (2, merging.model_stock()),
    "ramplus_tl": (3, merging.ramplus_tl()),
}


@pytest.mark.parametrize("count, transform", MEASURED.values(), ids=MEASURED)
def test_sums_over_a_tensor_need_no_temporary_larger_than_it(count, transform):
    """Beside a stack of layers, bits of each model that the loop over layers reads."""
    chain = merging.chain(transform)
    weights = tuple(exact.to_double(np.float64(0.3)) for _ in range(count))
    place = program.Place(np.uint32(1), np.uint32(0))
    for params, copies in (
        ({"embed": jnp.zeros((2048, 64), jnp.bfloat16)}, 0),
        ({"layers": {"w": jnp.zeros((8, 256, 64), jnp.bfloat16)}}, count),
    ):
        paths, (x,), _ = layout.flatten(params)
        (leaf,) = layout.describe(paths, [x], None)
        assert leaf.one_device
        merge = program._compile_leaf(program.kind_of(leaf, chain), chain, None, None)
        arguments = (x, x, (x,) * (count - 1), weights, jax.random.key(0), place)
        compiled = merge.lower(*arguments, [None] * len(chain)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= (copies + 1) * x.nbytes


SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from imm_jax import merging
from imm_jax.errors import InputError

assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
specs = {"norm": P(), "layers": {"w": P(None, "fsdp", "tensor")}}
shapes = {"norm": (16,), "layers": {"w": (3, 8, 4)}}
is_shape = lambda x: isinstance(x, tuple) and not isinstance(x, P)

def draw(seed):
    rng = np.random.default_rng(seed)
    make = lambda s: jnp.asarray(rng.normal(size=s), jnp.float32)
    return jax.tree.map(make, shapes, is_leaf=is_shape)

def spread(tree):
    put = lambda s, x: jax.device_put(x, NamedSharding(mesh, s))
    return jax.tree.map(put, specs, tree, is_leaf=lambda x: isinstance(x, P))

trees = [draw(i) for i in range(3)]
sharded = [spread(t) for t in trees]
key = jax.random.key(0)
exact = {
    "interpolation": (None, 1), "dare": (merging.drop_and_rescale(0.4), 1),
    "whole ties": (merging.ties(0.3, scope="model"), 2),
}
close = {"slerp": (merging.slerp(), 1)}
for name, (transform, count) in {**exact, **close}.items():
    models = (trees[1], sharded[1]) if count == 1 else (trees[1:], sharded[1:])
    kwargs = dict(weight=0.3, transform=transform, key=key)
    alone = merging.merge_params(trees[0], models[0], **kwargs)
    for donate in (None, "base") if name == "interpolation" else (None,):
        base = spread(jax.tree.map(jnp.copy, trees[0]))  # device_put may share buffers
        out = merging.merge_params(base, models[1], donate=donate, **kwargs)
        before = spread(trees[0])
        for x, y, z in zip(*map(jax.tree.leaves, (out, before, alone))):
            assert x.sharding == y.sharding, (name, x.sharding, y.sharding)
            assert np.array_equal(x, z) if name in exact else np.allclose(x, z, atol=1e-6), name
try:
    merging.merge_params(*(jax.device_put(trees[0], jax.devices()[i]) for i in (0, 3)))
except InputError as error:
    assert str(error).startswith("tuned layers/w lies on ") and "device_put" in str(error), error
else:
    raise AssertionError("arrays on different devices")
uncommitted = merging.merge_params(sharded[0], trees[1])  # these may be moved
assert uncommitted["layers"]["w"].sharding == sharded[0]["layers"]["w"].sharding
print("same on 8 devices")
"""


def test_shardings_are_kept_on_8_devices():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    env["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "same on 8 devices" in done.stdout


def test_importing_does_not_touch_a_device():
    code = (
        "import imm_jax.merging, jax._src.xla_bridge as b; assert not b._backends, b._backends;"
        "merging = imm_jax.merging; merging.ties(0.2); merging.dare_ties(0.5);"
        "assert not b._backends"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


METHODS_SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from imm_jax import merging

mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
sharding = NamedSharding(mesh, P(None, "fsdp", "tensor"))
key = jax.random.key(0)

def draw(seed):
    x = np.random.default_rng(seed).normal(size=(2, 8, 4))
    return {"layers": {"kernel": jnp.asarray(x)}}

def merge_by(name):
    row = merging.METHODS[name]

    def merge(trees, first=0.3):
        models = trees[1:2] if row.models == (1, 1) else trees[1:]
        base = {"base": trees[0]} if row.base == "required" else {}
        weight = None if row.weight is None else [first, 0.6][: len(models)]
        if name == "fisher":
            weight = [jax.tree.map(lambda x: w * x**2, m) for w, m in zip(weight, models)]
        out = merging.merge_models(name, models, weight=weight, key=key, **base)
        return out["layers"]["kernel"]

    return merge

def check_devices(name):
    trees = [draw(i) for i in range(3)]
    merge, placed = merge_by(name), jax.device_put(trees, sharding)
    alone, traced, out = merge(trees), jax.jit(merge)(trees), merge(placed)
    assert np.any(alone != 0) and np.all(np.isfinite(alone)), name
    np.testing.assert_allclose(traced, alone, rtol=1e-6, atol=1e-6, err_msg=name + " in jit")
    np.testing.assert_allclose(out, alone, rtol=1e-6, atol=1e-6, err_msg=name + " on 8 devices")
    assert out.sharding == sharding, (name, out.sharding)

def check_gradient(name):
    with jax.enable_x64(True):
        trees, h = [draw(i) for i in range(3)], 1e-6
        merge = merge_by(name)
        loss = jax.jit(jax.value_and_grad(lambda w: jnp.sum(jnp.sin(merge(trees, w)))))
        (below, _), (_, slope), (above, _) = (loss(0.3 + step) for step in (-h, 0, h))
        expected = (above - below) / (2 * h)
        assert abs(expected) > 1e-3, (name, expected)
        np.testing.assert_allclose(slope, expected, rtol=1e-5, err_msg="slope of " + name)

for name in merging.METHODS:
    check_devices(name)
    if merging.METHODS[name].weight is not None:
        check_gradient(name)
    print("right", name)
"""


@pytest.mark.slow
def test_every_method_in_jit_on_8_devices_and_by_its_gradient():
    """Gradients by the first model's weight, in float64, are held against finite differences."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }  # for 1e-6 they need none
    command = [sys.executable, "-c", METHODS_SCRIPT]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:-1] == [f"right {name}" for name in merging.METHODS]
