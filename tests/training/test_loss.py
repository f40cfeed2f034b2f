import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.merging import mean_entropy
from imm_jax.training.loss import chunk_size, prediction_entropy, response_loss, token_logprobs

B, T, D, V = 3, 7, 8, 53


def inputs(seed=0, mask="random", dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    head = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    masks = {"random": rng.integers(0, 2, (B, T)), "all": np.ones((B, T)), "none": np.zeros((B, T))}
    return hidden, head, targets, jnp.asarray(masks[mask], jnp.float32)


def oracle(hidden, head, targets, mask, softcap=None):
    """Loss, gradients, correct tokens and log-probabilities in float64, from the definition."""
    h, w, m = (np.asarray(x, np.float64) for x in (hidden, head, mask))
    logits = h @ w.T
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    onehot = np.eye(w.shape[0])[np.asarray(targets)]
    picked = (logp * onehot).sum(-1)
    d_logits = (np.exp(logp) - onehot) * m[..., None]
    if softcap:
        d_logits *= 1 - (logits / softcap) ** 2
    correct = ((logits.argmax(-1) == np.asarray(targets)) * m).sum()
    grads = d_logits @ w, np.einsum("btv,btd->vd", d_logits, h)
    return -(picked * m).sum(), grads, correct, picked * m


@pytest.mark.parametrize("chunk", [1, 4, 1000, None])  # 21 tokens: 4 does not divide them
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_loss_and_gradients_match_float64(chunk, softcap):
    plain = jax.jit(partial(response_loss, chunk=chunk, softcap=softcap))

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(hidden, head, targets, mask):
        sums = response_loss(hidden, head, targets, mask, chunk=chunk, softcap=softcap)
        return sums.loss, sums

    for mask in ("random", "all", "none"):
        args = inputs(mask=mask)
        (value, sums), grads = loss(*args)
        want, want_grads, correct, _ = oracle(*args, softcap)
        np.testing.assert_allclose(value, want, rtol=1e-6)
        assert float(sums.tokens) == float(args[-1].sum())
        assert float(sums.correct) == correct
        for grad, expected in zip(grads, want_grads):
            np.testing.assert_allclose(grad, expected, atol=2e-6)
        # Without a gradient another loop runs: the same numbers.
        np.testing.assert_allclose(plain(*args), sums, rtol=1e-6)


def test_gradient_equals_that_of_the_unchunked_loss_inside_a_larger_function():
    hidden, head, targets, mask = inputs()

    def chunked(hidden, head):
        sums = response_loss(jnp.sin(hidden), head * 2, targets, mask, chunk=4)
        return sums.loss / sums.tokens * 0.3

    def whole(hidden, head):
        logp = jax.nn.log_softmax(jnp.sin(hidden) @ (head * 2).T)
        picked = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
        return -(picked * mask).sum() / mask.sum() * 0.3

    for ours, theirs in zip(
        jax.grad(chunked, (0, 1))(hidden, head), jax.grad(whole, (0, 1))(hidden, head)
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_bfloat16_hidden_states_keep_a_float32_loss_and_head_gradient():
    hidden, head, targets, mask = inputs(dtype=jnp.bfloat16)
    head = head.astype(jnp.bfloat16).astype(jnp.float32)  # exact in both
    f = lambda h, w: response_loss(h, w, targets, mask, chunk=4).loss
    value, (d_hidden, d_head) = jax.value_and_grad(f, (0, 1))(hidden, head)
    want, (want_hidden, want_head), _, _ = oracle(hidden, head, targets, mask)
    assert (value.dtype, d_hidden.dtype, d_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(d_hidden.astype(jnp.float32), want_hidden, atol=0.05)
    np.testing.assert_allclose(d_head, want_head, atol=0.05)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_products_in_bfloat16_round_their_factors_alone(softcap):
    hidden, head, targets, mask = inputs()
    f = lambda h, w: (
        response_loss(h, w, targets, mask, chunk=4, softcap=softcap, dtype=jnp.bfloat16).loss
    )
    value, grads = jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, head)
    assert {x.dtype.name for x in (value, *grads)} == {"float32"}
    narrow = (x.astype(jnp.bfloat16) for x in (hidden, head))
    want, want_grads, _, _ = oracle(*narrow, targets, mask, softcap)
    np.testing.assert_allclose(value, want, rtol=1e-6)  # logits are exact sums
    for ours, exact in zip(grads, want_grads):  # the gradient by the logits is rounded
        assert 1e-5 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 3e-3


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [4, None])
def test_token_logprobs_match_float64(chunk, softcap):
    hidden, head, targets, mask = inputs()
    ours = token_logprobs(hidden, head, targets, mask, chunk=chunk, softcap=softcap)
    np.testing.assert_allclose(
        ours, oracle(hidden, head, targets, mask, softcap)[3], rtol=1e-5, atol=1e-6
    )


def test_extreme_logits_stay_finite():
    hidden, head, targets, mask = inputs(mask="all")
    f = lambda h, w: response_loss(h * 1e4, w, targets, mask, chunk=4).loss
    value, grads = jax.value_and_grad(f, (0, 1))(hidden, head)
    assert all(np.isfinite(g).all() for g in grads)
    logits = np.asarray(hidden * 1e4, np.float64) @ np.asarray(head, np.float64).T
    picked = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    best = logits.max(-1)
    lse = best + np.log(np.exp(logits - best[..., None]).sum(-1))
    np.testing.assert_allclose(value, (lse - picked).sum(), rtol=1e-5)


def test_vmap_gives_each_row_its_own_loss():
    hidden, head, targets, mask = inputs()
    rows = jax.vmap(lambda h, t, m: response_loss(h[None], head, t[None], m[None], chunk=2).loss)
    ours = rows(hidden, targets, mask)
    want = [oracle(h[None], head, t[None], m[None])[0] for h, t, m in zip(hidden, targets, mask)]
    np.testing.assert_allclose(ours, want, rtol=1e-5)


def entropy_oracle(hidden, head, mask, softcap=None):
    """Mean entropy and gradients in float64, from the definition."""
    h, w, m = (np.asarray(x, np.float64) for x in (hidden, head, mask))
    logits = h @ w.T
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1)
    # dH/dz_v = sum_u -(log p_u + 1) dp_u/dz_v, with dp_u/dz_v = p_u ((u = v) - p_v)
    by_p = -(np.log(p) + 1)
    d_logits = p * (by_p - (p * by_p).sum(-1, keepdims=True)) * m[..., None] / max(m.sum(), 1)
    if softcap:
        d_logits *= 1 - (logits / softcap) ** 2
    grads = d_logits @ w, np.einsum("btv,btd->vd", d_logits, h)
    return (entropy * m).sum() / max(m.sum(), 1), grads


@pytest.mark.parametrize("chunk", [4, None])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_entropy_and_gradients_match_float64_and_the_plain_formula(chunk, softcap):
    def plain(hidden, head, mask):
        logits = hidden @ head.T
        logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
        return mean_entropy(logits, mask > 0)

    ours = partial(prediction_entropy, chunk=chunk, softcap=softcap)
    for mask in ("random", "all", "none"):
        hidden, head, _, mask = inputs(mask=mask)
        value, grads = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head, mask)
        theirs = jax.value_and_grad(plain, (0, 1))(hidden, head, mask)
        for want, want_grads in (entropy_oracle(hidden, head, mask, softcap), theirs):
            np.testing.assert_allclose(value, want, rtol=1e-6)
            for grad, expected in zip(grads, want_grads):
                np.testing.assert_allclose(grad, expected, atol=1e-6)
        np.testing.assert_allclose(ours(hidden, head, mask > 0), value, rtol=1e-6)


def test_entropy_of_extreme_logits():
    hidden, head, _, mask = inputs(mask="all")
    value, grads = jax.value_and_grad(prediction_entropy, (0, 1))(hidden * 1e4, head, mask)
    assert 0 <= value < 1e-3 and all(np.isfinite(g).all() for g in grads)
    flat = prediction_entropy(jnp.zeros_like(hidden), head, mask)
    np.testing.assert_allclose(flat, np.log(V), rtol=1e-6)


@pytest.mark.parametrize("measure, chunk", [("loss", 64), ("entropy", 32)])
def test_logits_of_the_whole_batch_never_exist(measure, chunk):
    batch, length, vocabulary = 8, 128, 4099
    shapes = (batch, length, D), (vocabulary, D), (batch, length), (batch, length)
    dtypes = jnp.float32, jnp.float32, jnp.int32, jnp.float32
    args = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes)]

    def loss(hidden, head, targets, mask):
        if measure == "entropy":
            return prediction_entropy(hidden, head, mask, chunk=chunk)
        return response_loss(hidden, head, targets, mask, chunk=chunk).loss

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile()
    whole = batch * length * vocabulary
    sizes = [
        np.prod([int(n) for n in dims.split(",")])
        for dims in re.findall(r"\b[a-z]+[0-9]*\[([0-9,]+)\]", compiled.as_text())
    ]
    # The search does see the program's arrays: the head is there.
    assert vocabulary * D in sizes and max(sizes) < whole / 10
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * whole / 5


def test_prompt_and_padding_cost_nothing():
    """The loop runs over the chunks that hold response tokens only."""
    hidden, head, targets, mask = inputs(mask="none")
    poison = hidden.at[0, 0].set(jnp.nan)  # a masked token that would spoil any chunk it entered
    sums = response_loss(poison, head, targets, mask.at[2].set(1), chunk=T)
    assert np.isfinite(sums.loss)
    assert np.isfinite(prediction_entropy(poison, head, mask.at[2].set(1), chunk=T))


def test_chunk_never_exceeds_the_tokens():
    assert chunk_size(None, 10) == 10
    assert chunk_size(64, 100) == 64
