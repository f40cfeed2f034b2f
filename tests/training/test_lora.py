import dataclasses
import re
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from imm_jax.errors import InputError
from imm_jax.training.batching import Batches
from imm_jax.training.config import LoraConfig
from imm_jax.training.fit import fit
from imm_jax.training.lora import attach, init_adapters, low_rank, merge_adapters
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import init_state, make_train_step
from imm_jax.tree import map_with_path, unstack_layers

LORA = LoraConfig(rank=4, alpha=6.0)
SCALE = 6.0 / 4


@pytest.fixture(scope="module")
def config(small_config):
    return dataclasses.replace(small_config, lora=LORA, loss_chunk=20, save_every_steps=2)


@pytest.fixture(scope="module")
def sequences(make_sequences):
    return make_sequences(20)


@pytest.fixture(scope="module")
def adapters(tiny):
    """Adapters on every kernel, with products that matter."""
    made = init_adapters(tiny[1], LORA, jax.random.key(0))
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32)
    return {path: {"a": np.asarray(ab["a"]), "b": draw(ab["b"])} for path, ab in made.items()}


def leaf(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return np.asarray(tree, np.float64)


def product(adapter):
    return SCALE * np.matmul(*(np.asarray(adapter[key], np.float64) for key in "ab"))


# --- what adapters are


def test_adapters_start_as_pefts_do(tiny):
    _, params = tiny
    wide = LoraConfig(rank=200)
    made = init_adapters(params, wide, jax.random.key(0))
    assert len(made) == 7  # q, k, v, o, gate, up, down; neither embedding nor norms
    for path, ab in made.items():
        *stack, rows, columns = leaf(params, path).shape
        assert ab["a"].shape == (*stack, rows, 200) and ab["b"].shape == (*stack, 200, columns)
        assert ab["a"].dtype == ab["b"].dtype == jnp.float32
        assert not ab["b"].any()
        # Uniform in +-1/sqrt(in): the ends are reached, the variance is a third of their square.
        bound, a = rows**-0.5, np.asarray(ab["a"])
        assert 0.99 * bound < a.max() <= bound and -bound <= a.min() < -0.99 * bound
        assert abs(a.mean()) < 0.02 * bound and abs(a.var() * 3 / bound**2 - 1) < 0.05
    again, other = (init_adapters(params, wide, jax.random.key(seed)) for seed in (0, 1))
    first = "layers/attn/q/kernel"
    np.testing.assert_array_equal(made[first]["a"], again[first]["a"])
    for same_shape in (
        other[first]["a"],
        made["layers/attn/k/kernel"]["a"],
        made[first]["a"][::-1],
    ):
        assert not np.array_equal(made[first]["a"], same_shape)


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (("layers/attn",), "attn/q attn/k attn/v attn/o"),
        (("layers/*/q/kernel", "*/v"), "attn/q attn/v"),
        (("layers/mlp/down", "layers/mlp/*"), "mlp/gate mlp/up mlp/down"),
    ],
)
def test_targets_are_patterns_of_paths(tiny, targets, parts):
    made = init_adapters(tiny[1], LoraConfig(targets=targets), jax.random.key(0))
    assert set(made) == {f"layers/{part}/kernel" for part in parts.split()}


@pytest.mark.parametrize("pattern", ["layers/attn/w", "embed", "*/bias", "final_norm/scale"])
def test_a_target_that_is_no_kernel_of_a_layer_is_an_error(tiny, config, sequences, pattern):
    lora = LoraConfig(targets=("layers/attn", pattern))
    says = rf"^training\.lora\.targets: '{re.escape(pattern)}' matches no kernel of a layer, "
    with pytest.raises(InputError, match=says + r".* such as layers/attn/k/kernel$"):
        fit(*tiny, sequences, dataclasses.replace(config, lora=lora), seed=0)


def test_a_head_gets_no_adapter(tiny_config, random_params):
    params = random_params(tiny_config("llama", tie_word_embeddings=False))
    assert "lm_head/kernel" not in init_adapters(params, LORA, jax.random.key(0))
    with pytest.raises(InputError, match="'lm_head' matches no kernel of a layer"):
        init_adapters(params, LoraConfig(targets=("lm_head",)), jax.random.key(0))


# --- the forward pass and its gradient


def one_layer(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape)
    return draw(5, 3, 7), draw(7, 6), draw(6), draw(7, 4), draw(4, 6), draw(5, 3, 6)


def ours_of_one_layer(x, kernel, bias, a, b, cotangent):
    """Output of a Dense with an adapter, and the gradients of its adapter and its input."""
    model = nn.Dense(6)
    params = {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}

    @jax.jit
    def run(adapter, x):
        with nn.intercept_methods(low_rank(6.0)):
            return model.apply({"params": attach(params, {"kernel": adapter})}, x)

    y, back = jax.vjp(run, {"a": jnp.float32(a), "b": jnp.float32(b)}, jnp.float32(x))
    grads, d_x = back(jnp.float32(cotangent))
    return y, grads["a"], grads["b"], d_x


def test_one_layer_and_its_gradients_match_the_papers_formula_in_float64():
    x, kernel, bias, a, b, d_y = one_layer()
    flat_x, flat_d = x.reshape(-1, 7), d_y.reshape(-1, 6)
    want = (
        x @ (kernel + SCALE * a @ b) + bias,
        SCALE * flat_x.T @ flat_d @ b.T,
        SCALE * a.T @ flat_x.T @ flat_d,
        d_y @ (kernel + SCALE * a @ b).T,
    )
    for ours, theirs in zip(ours_of_one_layer(x, kernel, bias, a, b, d_y), want):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parity
def test_one_layer_matches_pefts_module_in_torch():
    """``result + lora_B(lora_A(x)) * scaling``, and ``kaiming_uniform_(a=sqrt(5))``."""
    torch = pytest.importorskip("torch")
    x, kernel, bias, a, b, d_y = (torch.tensor(value) for value in one_layer())
    linear = torch.nn.functional.linear
    a_, b_, x_ = a.T.clone().requires_grad_(), b.T.clone().requires_grad_(), x.requires_grad_()
    y = linear(x_, kernel.T, bias) + linear(linear(x_, a_), b_) * SCALE
    y.backward(d_y)
    want = y.detach(), a_.grad.T, b_.grad.T, x_.grad
    for ours, theirs in zip(ours_of_one_layer(*one_layer()), want):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    drawn = torch.nn.init.kaiming_uniform_(torch.empty(1000, 64), a=5**0.5)
    made = init_adapters(
        {"layers": [{"kernel": np.zeros((64, 8))}]}, LoraConfig(rank=1000), jax.random.key(0)
    )["layers/0/kernel"]["a"]
    for of in (np.max, np.min, np.std):
        np.testing.assert_allclose(of(np.asarray(made)), of(drawn.numpy()), rtol=0.01)


@cache
def compiled(model, config, optimizer):
    return make_train_step(model, optimizer, config)


SGD = optax.sgd(1.0)  # the update is then the gradient


def descend(tiny, config, params, frozen, sequences, updates=1, optimizer=SGD):
    step, batch = compiled(tiny[0], config, optimizer), Batches(sequences, config, seed=0)[0]
    state = init_state(params, optimizer, 10)
    for _ in range(updates):
        state, metrics = step(state, batch, *([] if frozen is None else [frozen]))
    return state.params, metrics


def test_a_new_adapter_leaves_the_model_as_it_is(tiny, config, sequences):
    _, params = tiny
    fresh = init_adapters(params, LORA, jax.random.key(0))
    _, with_adapters = descend(tiny, config, fresh, params, sequences)
    _, without = descend(tiny, dataclasses.replace(config, lora=None), params, None, sequences)
    assert float(with_adapters["loss"]) == float(without["loss"])
    jax.tree.map(np.testing.assert_array_equal, merge_adapters(params, fresh, 6.0), params)


def test_gradients_are_those_of_the_full_model_through_the_product(
    tiny, config, sequences, adapters
):
    """``dL/da = s G b^T`` and ``dL/db = s a^T G``, G the full fine-tune's gradient at W + s ab."""
    _, params = tiny
    new, metrics = descend(tiny, config, adapters, params, sequences)
    merged = map_with_path(
        lambda path, w: np.float32(w + product(adapters[path])) if path in adapters else w, params
    )
    full, plain = descend(tiny, dataclasses.replace(config, lora=None), merged, None, sequences)
    np.testing.assert_allclose(metrics["loss"], plain["loss"], rtol=1e-6)
    for path, adapter in adapters.items():
        gradient = leaf(merged, path) - leaf(full, path)
        a, b = adapter["a"], adapter["b"]
        np.testing.assert_allclose(
            a - new[path]["a"], SCALE * gradient @ b.swapaxes(-1, -2), atol=2e-6
        )
        np.testing.assert_allclose(
            b - new[path]["b"], SCALE * a.swapaxes(-1, -2) @ gradient, atol=2e-6
        )


def test_narrow_products_are_taken_beside_adapters(tiny, config, sequences, adapters):
    """The frozen kernel's product is in bfloat16, the adapter's in float32."""
    narrow = dataclasses.replace(config, compute_dtype="bfloat16")
    exact, theirs = descend(tiny, config, adapters, tiny[1], sequences)
    ours, metrics = descend(tiny, narrow, adapters, tiny[1], sequences)
    assert 0 < abs(float(metrics["loss"] / theirs["loss"]) - 1) < 1e-3
    norm = lambda one, two: optax.global_norm(jax.tree.map(jnp.subtract, one, two))
    assert 1e-4 < norm(ours, exact) / norm(adapters, exact) < 0.02


def test_with_a_fixed_it_is_full_fine_tuning_within_the_span_of_a(tiny, config, sequences):
    """With orthonormal columns and alpha = rank, ``W -= rate a a^T G``: gradients projected."""
    _, params = tiny
    lora = LoraConfig(rank=4, alpha=4.0, targets=("layers/mlp",))
    fresh = init_adapters(params, lora, jax.random.key(0))
    fresh = {p: {"a": np.linalg.qr(ab["a"])[0], "b": ab["b"]} for p, ab in fresh.items()}
    hold_a = optax.masked(
        optax.set_to_zero(), lambda tree: map_with_path(lambda path, _: path.endswith("/a"), tree)
    )
    only_b = optax.chain(optax.sgd(0.5), hold_a)
    adapted, _ = descend(
        tiny, dataclasses.replace(config, lora=lora), fresh, params, sequences, 3, only_b
    )
    plain, projected = dataclasses.replace(config, lora=None), params
    for _ in range(3):
        stepped, _ = descend(tiny, plain, projected, None, sequences)

        def project(path, w, stepped):
            if path not in fresh:
                return w
            a = np.float64(fresh[path]["a"])
            return np.float32(w - 0.5 * a @ a.swapaxes(-1, -2) @ (w - np.asarray(stepped)))

        projected = map_with_path(project, projected, stepped)
    for path in fresh:
        np.testing.assert_array_equal(adapted[path]["a"], fresh[path]["a"])
        moved = leaf(projected, path) - leaf(params, path)
        assert np.abs(moved).max() > 0.01
        made = np.float64(adapted[path]["a"]) @ np.float64(adapted[path]["b"])
        np.testing.assert_allclose(made, moved, atol=2e-5)


def dot_shapes(jaxpr):
    """The shapes of all matrix products of a program, at any depth."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += dot_shapes(inner)
    return found


def test_no_kernel_and_no_gradient_of_one_is_ever_formed(tiny, config, sequences, adapters):
    _, params = tiny
    batch = Batches(sequences, config, seed=0)[0]
    step = compiled(tiny[0], config, SGD)
    lora = jax.make_jaxpr(step)(init_state(adapters, SGD, 1), batch, params)
    plain = dataclasses.replace(config, lora=None)
    full = jax.make_jaxpr(compiled(tiny[0], plain, SGD))(init_state(params, SGD, 1), batch)
    kernels = {tuple(sorted(leaf(params, path).shape[1:])) for path in adapters}
    formed = lambda jaxpr: {tuple(sorted(shape)) for shape in dot_shapes(jaxpr.jaxpr)} & kernels
    assert formed(full) == kernels and formed(lora) == set()


def test_adapters_decay_as_kernels_do(tiny, config):
    fresh = init_adapters(tiny[1], LoraConfig(targets=("layers/mlp/up",)), jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, fresh)
    options = {
        "weight_decay": 0.1,
        "learning_rate": 0.5,
        "schedule": "constant",
        "warmup_ratio": 0.0,
    }
    optimizer = make_optimizer(dataclasses.replace(config, **options))
    zeros = jax.tree.map(jnp.zeros_like, ones)
    moved, _ = optimizer.update(zeros, optimizer.init(ones), ones, step=0, total_steps=1)
    assert {float(x) for leaf in jax.tree.leaves(moved) for x in leaf.ravel()} == {
        np.float32(-0.05)
    }


# --- merging


def test_merging_is_the_sum_rounded_once(tiny, adapters):
    _, params = tiny
    some = {path: ab for path, ab in adapters.items() if "mlp" in path}
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    for tree, tolerance in ((params, 1e-6), (half, 2**-8)):
        merged = merge_adapters(tree, some, 6.0)
        assert jax.tree.structure(merged) == jax.tree.structure(tree)

        def check(path, new, old, tolerance=tolerance):
            assert new.dtype == old.dtype
            if path not in some:
                return np.testing.assert_array_equal(new, old)
            want = np.float64(old) + product(some[path])
            np.testing.assert_allclose(np.float64(new), want, rtol=tolerance, atol=1e-6)

        map_with_path(check, merged, tree)


def test_merging_gives_the_same_in_both_layouts(tiny, adapters):
    _, params = tiny
    layers = {
        path.replace("layers", f"layers/{i}", 1): {key: x[i] for key, x in ab.items()}
        for path, ab in adapters.items()
        for i in range(3)
    }
    apart = merge_adapters(unstack_layers(params), layers, 6.0)
    whole = unstack_layers(merge_adapters(params, adapters, 6.0))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), apart, whole)


def test_an_adapter_of_another_model_is_refused(tiny, adapters):
    _, params = tiny
    stranger = {"layers/attn/w/kernel": adapters["layers/attn/q/kernel"]}
    with pytest.raises(InputError, match=r"^adapters: layers/attn/w/kernel fits no parameter"):
        merge_adapters(params, adapters | stranger, 6.0)
    swapped = {"layers/mlp/up/kernel": adapters["layers/mlp/down/kernel"]}
    with pytest.raises(InputError, match=r"mlp/up/kernel fits no .* shape \[3, 48, 32\] there$"):
        merge_adapters(params, swapped, 6.0)
