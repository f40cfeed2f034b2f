import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.models import attention
from imm_jax.models.attention import attend, attend_causal, causal_mask, fused_serves
from imm_jax.models.decoder import Decoder, fuses

CASE = (4, 2, 8, None, "bfloat16")  # heads, key-value heads, head size, window, dtype


@pytest.fixture
def on_gpu(monkeypatch):
    """A GPU, as far as the question goes who attends; XLA's attention in the place of cuDNN's."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "FUSED", "xla")
    fused_serves.cache_clear()
    yield
    fused_serves.cache_clear()


@pytest.fixture
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, (2, 9, heads, 8)) for k, heads in zip(keys, (4, 2, 2))]


@pytest.mark.parametrize("window", [None, 3])
def test_ours_is_jaxs_attention_forward_and_backward(qkv, window):
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    mask = causal_mask(positions, positions, window)

    def ours(q, k, v):
        return attend(q, [(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), mask)], scale=0.3)

    def jaxs(q, k, v):
        return attend_causal(q, k, v, scale=0.3, window=window, implementation="xla")

    for f in (lambda g: g, lambda g: jax.grad(lambda *x: jnp.sum(g(*x) ** 2), (0, 1, 2))):
        for one, two in zip(*(jax.tree.leaves(jax.jit(f(g))(*qkv)) for g in (ours, jaxs))):
            np.testing.assert_allclose(one, two, atol=2e-5)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_segments_are_attended_to_as_one(queries, softcap):
    """A shared prefix, part of it empty, then each row's own slots: against NumPy in float64."""
    rng = np.random.default_rng(0)
    B, K, G, E, P, S = 3, 2, 2, 8, 6, 5
    q = np.float32(rng.standard_normal((B, queries, K * G, E)))
    shared = rng.standard_normal((K, E, P)), rng.standard_normal((K, P, E))
    own = rng.standard_normal((B, K, E, S)), rng.standard_normal((B, K, S, E))
    masks = rng.random((B, queries, P)) < 0.7, rng.random((B, queries, S)) < 0.7
    masks[1][:, :, 0] = True
    masks[0][0] = False  # a row that sees nothing of the prefix
    segments = [(*map(jnp.asarray, kv), m) for kv, m in zip((shared, own), masks)]
    found = attend(jnp.asarray(q), segments, scale=0.3, softcap=softcap)

    keys, values = (
        np.concatenate([np.broadcast_to(x, (B, *x.shape)), y], axis)
        for x, y, axis in zip(shared, own, (3, 2))
    )
    score = 0.3 * np.einsum("btkge,bkes->bkgts", q.reshape(B, queries, K, G, E), keys)
    score = score if softcap is None else softcap * np.tanh(score / softcap)
    weight = np.exp(score) * np.concatenate(masks, -1)[:, None, None]
    weight /= weight.sum(-1, keepdims=True)
    expected = np.einsum("bkgts,bkse->btkge", weight, values).reshape(q.shape)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_cpu_never_tries_the_fused_kernel(monkeypatch):
    def tried(*_):
        raise AssertionError("tried")

    monkeypatch.setattr(attention, "_difference", tried)
    fused_serves.cache_clear()
    assert not fused_serves(*CASE)


def test_it_is_tried_once_and_taken_where_it_agrees(on_gpu, monkeypatch):
    tries, real = [], attention._difference
    monkeypatch.setattr(attention, "_difference", lambda *x: tries.append(x) or real(*x))
    # Asked inside a traced function, as a training step does.
    assert jax.jit(lambda x: x + fused_serves(*CASE))(0) == 1
    assert fused_serves(*CASE) and tries == [CASE]
    assert not fused_serves(*CASE[:-1], "float32") and len(tries) == 1  # cuDNN has half types only


@pytest.mark.parametrize(
    ("outcome", "message"),
    [(0.5, "differs from it by 0.5"), (float("nan"), "differs"), (RuntimeError("no\nmore"), "no)")],
)
def test_a_kernel_that_fails_or_differs_is_left_with_one_line(
    on_gpu, monkeypatch, caplog, outcome, message
):
    def difference(*_):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(attention, "_difference", difference)
    with caplog.at_level(logging.INFO, logger="imm_jax"):
        assert not fused_serves(*CASE) and not fused_serves(*CASE)
    assert len(caplog.messages) == 1 and message in caplog.messages[0]


def test_cudnn_on_a_machine_without_a_gpu_is_a_failure_not_an_end(on_gpu, monkeypatch):
    monkeypatch.setattr(attention, "FUSED", "cudnn")
    assert not fused_serves(*CASE)


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_training_takes_it_for_padded_rows_with_the_same_loss_and_gradient(
    on_gpu, monkeypatch, tiny_config, random_params, family
):
    config = tiny_config(family)
    params, tokens = random_params(config), jnp.arange(18).reshape(2, 9)
    model, calls = Decoder(config, remat=True), []
    real = attention.attend_causal
    monkeypatch.setattr(
        "imm_jax.models.decoder.attend_causal", lambda *x, **k: calls.append(k) or real(*x, **k)
    )

    def loss(params, *packed):
        hidden = model.apply({"params": params}, tokens, *packed, method="hidden")
        return jnp.sum(hidden**3)

    monkeypatch.setattr(attention, "fused_serves", lambda *_: False)
    run = lambda: jax.jit(jax.value_and_grad(lambda params: loss(params)))(params)
    masked = run()
    assert not calls
    monkeypatch.setattr(attention, "fused_serves", lambda *_: True)
    fused = run()
    assert calls and {call["window"] for call in calls} == {config.windows[0]}
    for one, two in zip(jax.tree.leaves(masked), jax.tree.leaves(fused)):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4 * np.abs(one).max())
    calls.clear()
    jax.eval_shape(loss, params, jnp.zeros_like(tokens), jnp.ones_like(tokens))
    assert not calls  # packed rows need their masks


def test_layers_that_differ_or_cap_their_scores_keep_the_masks(on_gpu, monkeypatch, tiny_config):
    monkeypatch.setattr(attention, "fused_serves", lambda *_: True)
    assert fuses(tiny_config("llama"), jnp.bfloat16)
    assert not fuses(tiny_config("gemma3_text"), jnp.bfloat16)  # local and global layers
    assert not fuses(tiny_config("llama", attn_logit_softcapping=30.0), jnp.bfloat16)
