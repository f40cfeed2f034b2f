"""Products in a narrow type against float64 products of factors that NumPy rounded."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imm_jax.models.products import narrow_products, product, sum_of_outer

ROUND = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def rounded(x, dtype):
    return np.asarray(x).astype(ROUND[dtype]).astype(np.float64)


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("dtype", ROUND)
@pytest.mark.parametrize("lead", [(3, 40), (7,), ()])
def test_a_product_and_its_gradient_round_their_factors_once(dtype, lead):
    x, w, g = draw((*lead, 64), (64, 48), (*lead, 48))
    y, vjp = jax.vjp(lambda x, w: product(x, w, dtype), x, w)
    dx, dw = jax.jit(vjp)(g)
    x, w, g = (rounded(a, dtype) for a in (x, w, g))
    want = x @ w, g @ w.T, x.reshape(-1, 64).T @ g.reshape(-1, 48)
    for ours, exact in zip((y, dx, dw), want):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, atol=2e-5)


def test_gradients_have_the_dtypes_of_what_they_belong_to():
    x, w = draw((5, 8), (8, 4))
    grads = jax.grad(lambda *a: product(*a, jnp.bfloat16).sum(), (0, 1))(x, w.astype(np.float16))
    assert [g.dtype.name for g in grads] == ["float32", "float16"]


def test_it_works_under_vmap_scan_and_remat():
    x, w = draw((6, 5, 8), (3, 8, 8))

    def loss(w, x, product):
        body = jax.checkpoint(lambda h, k: (jnp.tanh(product(h, k)), None))
        return jax.lax.scan(body, x, w)[0].sum()

    def exact(x, w):  # the same rounding, left to plain differentiation
        narrow = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
        return narrow(x) @ narrow(w)

    grad = lambda of: jax.jit(jax.vmap(jax.grad(loss), (None, 0, None)), static_argnums=2)(w, x, of)
    ours = grad(lambda x, w: product(x, w, jnp.bfloat16))
    error = np.linalg.norm(ours - grad(exact)) / np.linalg.norm(ours)
    assert 0 < error < 0.01  # cotangents are rounded too
    for one, of in zip(ours, x):
        alone = jax.grad(loss)(w, of, lambda x, w: product(x, w, jnp.bfloat16))
        np.testing.assert_allclose(one, alone, atol=1e-5)


@pytest.mark.parametrize("dtype", [*ROUND, "float32"])
def test_sums_of_outer_products_by_part(dtype):
    x, y = draw((2, 30, 8), (2, 30, 6))
    want = np.einsum("pnk,pnm->pkm", *(rounded(a, dtype) if dtype in ROUND else a for a in (x, y)))
    np.testing.assert_allclose(sum_of_outer(x, y, dtype), want, atol=1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_layers_take_narrow_products_where_asked(use_bias):
    layer = nn.Dense(6, use_bias=use_bias)
    (x,) = draw((4, 8))
    params = layer.init(jax.random.key(0), x)["params"]
    if use_bias:
        params["bias"] = jnp.linspace(0, 1, 6)
    half = {**params, "kernel": params["kernel"].astype(jnp.bfloat16)}

    def run(dtype, params, layer=layer):
        with nn.intercept_methods(narrow_products(dtype)):
            return layer.apply({"params": params}, x)

    want = rounded(x, "bfloat16") @ rounded(params["kernel"], "bfloat16") + params.get("bias", 0)
    np.testing.assert_allclose(run("bfloat16", params), want, atol=1e-5)
    np.testing.assert_allclose(run(None, half), want, atol=1e-5)  # as its kernel
    plain = layer.apply({"params": params}, x)
    for not_narrower in (None, "float32"):
        np.testing.assert_array_equal(run(not_narrower, params), plain)
    own = layer.clone(dtype=jnp.bfloat16)  # which a wider type leaves alone
    np.testing.assert_array_equal(run("float32", params, own), own.apply({"params": params}, x))


def test_a_policy_may_keep_what_a_product_gives():
    x, w = draw((5, 8), (8, 8))
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    for keep, products in ((None, 4), (policy, 3)):  # forward; perhaps again; two of the gradient
        loss = jax.checkpoint(lambda x, w: jnp.sin(product(x, w, "float32")).sum(), policy=keep)
        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, w))
        assert text.count("dot_general[") == products


def test_a_factor_without_a_gradient_costs_none():
    x, w = draw((5, 8), (8, 6))
    loss = lambda x, w: jnp.sin(product(x, w, "float32")).sum()
    for argument, shape in ((0, (5, 8)), (1, (8, 6))):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argument))(x, w)
        assert str(jaxpr).count("dot_general[") == 2 and jaxpr.out_avals[0].shape == shape
