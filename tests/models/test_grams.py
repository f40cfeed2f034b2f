"""What the kernels of the decoder read, against its layers run by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import merging
from imm_jax.errors import InputError
from imm_jax.models.decoder import Decoder
from imm_jax.models.grams import kernel_grams

TOKENS = jnp.array([[5, 9, 200, 7, 31], [8, 2, 44, 1, 1]])
MASK = TOKENS != 1


@pytest.fixture(scope="module")
def decoder(tiny_config, random_params):
    config = tiny_config("qwen2", tie_word_embeddings=False)
    return Decoder(config), random_params(config)


def first_inputs(model, params):
    """The hidden states that the first layer's q and the head read, without the code under test."""
    scale = np.float64(params["layers"]["attn_norm"]["scale"][0])
    x = np.float64(params["embed"]["embedding"])[np.asarray(TOKENS)]
    normed = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + model.config.rms_norm_eps) * scale
    last = model.apply({"params": params}, TOKENS, method="hidden")
    return normed, np.float64(last)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_grams_of_the_decoder(decoder, mask):
    model, params = decoder
    grams, rows = jax.jit(lambda p, t: kernel_grams(model, p, t, mask=mask))(params, TOKENS)
    counted = np.ones((2, 5), bool) if mask is None else np.asarray(mask)
    assert rows == counted.sum()
    first, last = (x[counted] for x in first_inputs(model, params))
    q, down = grams["layers"]["attn"]["q"]["kernel"], grams["layers"]["mlp"]["down"]["kernel"]
    np.testing.assert_allclose(q[0], first.T @ first, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grams["lm_head"]["kernel"], last.T @ last, rtol=1e-4, atol=1e-4)
    assert q.shape == (3, 32, 32) and down.shape == (3, 48, 48)
    kernels = {p for p, _ in jax.tree_util.tree_leaves_with_path(params) if p[-1].key == "kernel"}
    assert {p for p, _ in jax.tree_util.tree_leaves_with_path(grams)} == kernels


def test_regmean_of_decoders(decoder):
    model, params = decoder
    tuned = [jax.tree.map(lambda x, s=s: x * s, params) for s in (1.0, 1.1)]
    batches = jnp.stack([TOKENS, TOKENS + 1])
    sums = lambda params, batch: kernel_grams(model, params, batch)
    collect = jax.jit(lambda params: merging.collect_grams(sums, params, batches))
    grams = [{"layers": {"attn": collect(p)["layers"]["attn"]}} for p in tuned]
    out = merging.regmean(tuned, grams)
    assert jax.tree.structure(out) == jax.tree.structure(params)
    np.testing.assert_allclose(
        out["embed"]["embedding"], 1.05 * params["embed"]["embedding"], rtol=1e-6
    )

    def misses(merged):
        """Summed squared differences of the outputs of the first layer's q."""
        parts = []
        for own in tuned:
            x, _ = first_inputs(model, own)
            change = merged["layers"]["attn"]["q"]["kernel"] - own["layers"]["attn"]["q"]["kernel"]
            parts.append(np.sum(np.square(x @ np.float64(change[0]))))
        return sum(parts)

    assert misses(out) < misses(merging.merge_models("linear", tuned))


class Closed(nn.Module):
    """A scan that lets no intermediates out."""

    @nn.compact
    def __call__(self, x):
        body = lambda dense, x, _: (dense(x), None)
        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return scan(nn.Dense(3), x, None)[0]


def test_a_scan_that_shows_nothing_is_said():
    x = jnp.ones((2, 3))
    params = Closed().init(jax.random.key(0), x)["params"]
    with pytest.raises(InputError, match="Closed shows no inputs"):
        kernel_grams(Closed(), params, x)
