"""Tensors that are merged in blocks, against ``merge_params`` on the same arrays.

``merge_params`` has its own oracles; here blocks are so small that every tensor takes several.
"""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.errors import InputError
from imm_jax.merging import METHODS, block_program, outofcore, streaming
from imm_jax.merging.selective import _share_of
from imm_jax.merging.streaming import Part, Task, measure_model, merge_part, merge_parts
from tests.merging import merge_oracles as oracle

KEY = jax.random.key(5, impl="threefry2x32")
BFLOAT16 = ml_dtypes.bfloat16
# Their statistics are sums in float32, which blocks add up in another order; DELLA divides by a
# probability, which programs may round differently.
ROUNDED = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "della"}
ROUNDED |= {"della_linear"}
ULPS = 4  # by which they may differ, of the tensor's largest number


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 256)
    monkeypatch.setattr(streaming, "SMALL", 64)
    monkeypatch.setattr(outofcore, "HELD", 100)
    monkeypatch.setattr(outofcore, "SAMPLED", 16)


def draw(shapes, seed, near=None, unchanged=0.3):
    """A tensor for each shape and type; near a base, a share of its elements unchanged."""
    rng, out = np.random.default_rng(seed), {}
    for name, (shape, dtype) in shapes.items():
        x = rng.normal(size=shape)
        if near is not None:
            moved = 0.3 * x * (rng.random(shape) >= unchanged)
            x = near[name].astype(np.float64) + moved
        out[name] = np.asarray(x).astype(dtype)
    return out


def parts_of(base, tuned, weights, dtype=None):
    def read(x):
        return lambda start, stop: x.reshape(-1)[start:stop]

    return [
        Part(
            name=name,
            shape=x.shape,
            base=read(x),
            tuned=tuple(read(model[name]) for model in tuned),
            weights=tuple(read(w[name]) if isinstance(w, dict) else w for w in weights),
            dtype=dtype or x.dtype,
        )
        for name, x in base.items()
    ]


def streamed(parts, transform, key=KEY):
    shared = measure_model(parts, transform, key)
    merged = {}
    for part in parts:
        pieces = list(merge_part(part, transform, key, shared))
        assert all(piece.ndim == 1 for piece in pieces)
        merged[part.name] = np.concatenate(pieces).reshape(part.shape)
    return merged


def assert_bits(one, other):
    for name, x in one.items():
        y = np.asarray(other[name])
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name


def assert_close(one, other):
    for name, x in one.items():
        y = np.asarray(other[name])
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        ulp = np.spacing(np.abs(y).max(initial=0)).astype(np.float64)
        error = np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0)
        assert error <= (ULPS if x.dtype == np.float32 else 1) * ulp, (name, error / ulp)


# The matrix takes four blocks of elements, or two of rows; the rest is shorter than one.
SHAPES = {"matrix": ((40, 25), np.float32), "bias": ((50,), BFLOAT16), "scalar": ((), BFLOAT16)}
OTHER_SHAPES = {"half": ((9, 7), np.float16), "empty": ((0, 3), np.float32)}
DENSITY = {"density": 0.6}
CRUMBS = {"density": 0.6, "gamma": 0.1}
ARGUMENTS = {
    "task_arithmetic": {"lambda_": 0.7},
    "ties": {"density": 0.3},
    "dare_linear": DENSITY,
    "dare_ties": DENSITY,
    "della": DENSITY,
    "della_linear": {"density": (0.6, 0.5), "epsilon": 0.1},
    "breadcrumbs": CRUMBS,
    "breadcrumbs_ties": CRUMBS,
    "sce": {"select_topk": 0.29},
    "ram": {"epsilon": 0.1},
    "ramplus_tl": {"epsilon": 0.1},
    "nearswap": {"t": 0.1},
}


def method(name):
    """Its transform, and weights of as many models as it merges, at most two."""
    row = METHODS[name]
    arguments = dict(ARGUMENTS.get(name, {}))
    if row.base == "optional":
        arguments["about_base"] = name == "multislerp"
    weights = [0.7] if row.models[1] == 1 else [0.75, 0.4]
    return row.build(**arguments), weights


def both(name, shapes, transform=None, weights=None):
    built, own = method(name)
    transform, weights = transform or built, weights or own
    base = draw(shapes, 0)
    tuned = [draw(shapes, i + 1, base) for i in range(len(weights))]
    if name == "fisher":
        weights = [{n: np.abs(x.astype(np.float32)) for n, x in model.items()} for model in tuned]
        weights[0]["matrix"][0] = weights[1]["matrix"][0] = 0
    ours = streamed(parts_of(base, tuned, weights), transform)
    return ours, merging.merge_params(base, tuned, weight=weights, transform=transform, key=KEY)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_in_blocks_and_in_memory(name):
    ours, theirs = both(name, SHAPES)
    (assert_close if name in ROUNDED else assert_bits)(ours, theirs)


@pytest.mark.parametrize("name", ["linear", "dare_ties", "breadcrumbs", "nuslerp", "arcee_fusion"])
def test_float16_and_empty_tensors(name):
    ours, theirs = both(name, OTHER_SHAPES)
    (assert_close if name in ROUNDED else assert_bits)(ours, theirs)


def test_rows_apart():
    for transform in (
        merging.nuslerp(nuslerp_flatten=False, nuslerp_row_wise=True),
        merging.model_stock(filter_wise=True),
    ):
        assert_close(*both("nuslerp", {"matrix": SHAPES["matrix"]}, transform))


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_rescaled(scope):
    """Sums in float32, which blocks add up in another order."""
    assert_close(*both("ties", MODEL, merging.ties((0.3, 0.9), scope=scope, rescale=True)))
    assert_close(*both("ties", SHAPES, merging.breadcrumbs(**CRUMBS, rescale=True)))


# An empty tensor first, from which nothing can be guessed.
MODEL = {
    "nothing": ((0,), np.float32),
    "one": ((6, 50), np.float32),
    "two": ((2, 3, 4), BFLOAT16),
}


@pytest.mark.parametrize("density", [0.37, (0.01, 0.9)])
def test_trimming_over_the_whole_model(density):
    transform = merging.ties(density=density, scope="model")
    assert_bits(*both("ties", MODEL, transform))


def test_trimming_a_model_of_ties():
    base = {name: np.zeros(300, np.float32) for name in "abc"}
    tuned = {name: np.repeat(np.float32([-2, 0, 1]), 100) for name in "abc"}
    transform = merging.chain(merging.trim(0.4, "model"))
    ours = streamed(parts_of(base, [tuned], [1.0]), transform)
    for x in ours.values():  # of 900 numbers 360: 300 twos, and all ones since they tie
        np.testing.assert_array_equal(x, tuned["a"])


def test_types_may_differ():
    """Models stored in different types, and a result in a fourth."""
    base = draw({"x": ((700,), np.float32)}, 0)
    stored = [np.float32, BFLOAT16, np.float16]
    tuned = [{"x": (base["x"] + i + 1).astype(stored[i])} for i in range(3)]
    weights = [0.2, 0.5, 0.1]
    wide = {"x": base["x"].astype(np.float64)}
    for model, w in zip(tuned, weights):
        wide["x"] = wide["x"] + w * (model["x"].astype(np.float64) - base["x"])
    for dtype in (BFLOAT16, np.float16):
        ours = streamed(parts_of(base, tuned, weights, np.dtype(dtype)), None)
        assert_bits({"x": wide["x"].astype(dtype)}, ours)


@pytest.mark.parametrize(
    ("name", "axis", "row"), [("q/kernel", None, 0), ("q/weight", None, 1), ("q/weight", 0, 0)]
)
def test_rows_lie_along_the_axis_that_is_asked_for(name, axis, row):
    """``[in, out]`` kernels, and an axis of one's own, against the probabilities' formula."""
    shapes = {name: ((70, 40), np.float32)}
    base = {name: np.zeros((70, 40), np.float32)}
    tuned = draw(shapes, 1)
    drop = merging.drop_by_magnitude(0.6, 0.3, **({} if axis is None else {"axis": axis}))
    ours = streamed(parts_of(base, [tuned], [1.0]), drop)[name]
    chance = oracle.della_chance(tuned[name], 0.6, 0.3, row)
    key = merging.fold_path(KEY, name, None)
    key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)  # of the transform, of the model
    kept = np.asarray(jax.random.bits(key, (70, 40), "uint32")) < chance * 2**32
    np.testing.assert_allclose(ours, kept * tuned[name] / chance, rtol=1e-6)


def test_tensors_one_after_another():
    shapes = {f"layers.{i}.weight": ((n,), np.float32) for i, n in enumerate((1, 700, 0, 64, 300))}
    base, tuned = draw(shapes, 0), draw(shapes, 1)
    transform = merging.chain(merging.trim(0.4), merging.drop_and_rescale(0.3))
    parts = parts_of(base, [tuned], [0.7])
    together = list(merge_parts([Task(part, transform) for part in parts], KEY))
    assert [name for name, _ in itertools.groupby(p.name for p, _ in together)] == [*shapes]
    for part in parts:
        pieces = [piece for of, piece in together if of.name == part.name]
        alone = merging.merge_params(
            {part.name: base[part.name]},
            {part.name: tuned[part.name]},
            weight=0.7,
            transform=transform,
            key=KEY,
        )
        assert_bits({part.name: np.concatenate(pieces)}, alone)


@pytest.mark.parametrize(("kept", "times"), [(2000, 1), (1999, 2)])
def test_a_measured_tensor_that_is_small_is_read_once(kept, times, monkeypatch):
    monkeypatch.setattr(streaming, "KEPT", kept)
    monkeypatch.setattr(outofcore, "HELD", 2000)  # one pass measures
    x, asked = np.arange(1000, dtype=np.float32), []

    def reader(model):
        def read(start, stop):
            asked.append((model, start))
            return x[start:stop] * model

        return read

    part = Part("x", x.shape, reader(1), (reader(2),), (1.0,), x.dtype)
    np.concatenate(list(merge_part(part, merging.trim(0.2))))
    assert sorted(asked) == sorted([(m, n) for m in (1, 2) for n in range(0, 1000, 256)] * times)


@pytest.mark.parametrize("share", [0.1, 0.29, 0.57])
def test_a_share_of_a_count_is_the_same_number_traced_or_not(share):
    counts = np.arange(1, 3000)
    traced = _share_of(jnp.asarray(counts, jnp.uint32), share)
    np.testing.assert_array_equal([_share_of(int(n), share) for n in counts], traced)


def test_what_is_missing_is_said():
    (part,) = parts_of(*[draw({"x": ((3,), np.float32)}, 0)] * 1, [], [])
    with pytest.raises(InputError, match=r"drop_and_rescale.* draws random numbers"):
        list(merge_part(part, merging.drop_and_rescale(0.2)))
    with pytest.raises(InputError, match=r"trim.* measures the whole model"):
        list(merge_part(part, merging.trim(0.2, "model")))
    with pytest.raises(InputError, match="threefry2x32"):
        part = part._replace(tuned=(part.base,), weights=(1.0,))
        list(merge_part(part, merging.drop_and_rescale(0.2), jax.random.key(0, impl="rbg")))


# Compilation


@pytest.fixture
def compilations():
    """A list that grows with each program that is compiled."""
    found = []

    def note(name, *_, **__):
        if "backend_compile" in name:
            found.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def model_of_many_sizes():
    sizes = [*range(1, 60, 4), *range(61, 1500, 96)]
    shapes = {f"layers.{i}.weight": ((n,), np.float32) for i, n in enumerate(sizes)}
    base = draw(shapes, 0)
    return base, [draw(shapes, i, base) for i in (1, 2)]


def test_tensors_of_all_sizes_share_programs(compilations):
    base, tuned = model_of_many_sizes()
    assert len(base) >= 30
    transform = merging.chain(merging.trim(0.41), merging.clip(9))
    gradient = np.linspace(0.1, 0.9, len(base))
    streamed(parts_of(base, tuned, [0.5, 0.3]), transform)
    # Two sizes of blocks: a program that measures and one that merges.
    assert 0 < len(compilations) <= 4 + 4  # and a few of jax's own, of constants and keys
    before = len(compilations)
    for part, weight in zip(parts_of(base, tuned, [0.0, 0.0]), gradient):
        own = part._replace(weights=(float(weight), 1 - float(weight)))
        assert len(np.concatenate(list(merge_part(own, transform, KEY)))) == part.size
    assert len(compilations) == before


def test_a_transform_made_from_arrays_is_not_remembered():
    held = block_program._compiled.cache_info().currsize
    base, tuned = draw({"x": ((20,), np.float32)}, 0), draw({"x": ((20,), np.float32)}, 1)
    for factor in (2.0, 3.0):
        transform = merging.scale(jnp.float32(factor))
        ours = streamed(parts_of(base, [tuned], [1.0]), transform)
        theirs = base["x"] + np.float64(factor) * (tuned["x"].astype(np.float64) - base["x"])
        np.testing.assert_allclose(ours["x"], theirs, rtol=1e-6)
    assert block_program._compiled.cache_info().currsize == held
