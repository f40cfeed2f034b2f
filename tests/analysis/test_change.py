"""Distances against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.analysis.change import change_by_layer, relative_distance
from imm_jax.errors import InputError


def expected(base, tuned):
    pairs = list(zip(jax.tree.leaves(base), jax.tree.leaves(tuned)))
    wide = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs]
    moved = sum(((y - x) ** 2).sum() for x, y in wide)
    return (moved / sum((x**2).sum() for x, _ in wide)) ** 0.5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("step", [1.0, 1e-2])
def test_it_is_the_ratio_of_norms(dtype, step):
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    base = {"embed": array(300, 40), "layers": {"a": array(3, 40, 40), "b": array(3, 40)}}
    tuned = jax.tree.map(lambda x: (x + step * array(*x.shape)).astype(dtype), base)
    assert relative_distance(base, tuned) == pytest.approx(expected(base, tuned), rel=1e-5)


def test_nothing_moved():
    base = {"a": jnp.arange(1.0, 5.0)}
    assert relative_distance(base, base) == 0.0
    assert relative_distance(base, {"a": 3 * base["a"]}) == pytest.approx(2.0)


def test_by_layer_and_module(tiny_config, random_params):
    """Every layer and module against the norm of what belongs to it, picked by hand."""
    config = tiny_config("qwen2", tie_word_embeddings=False)  # q, k and v have biases
    base, tuned = random_params(config), random_params(config, seed=1)
    found = change_by_layer(base, tuned)
    for layer in range(3):
        pick = lambda tree, i=layer: jax.tree.map(lambda x: x[i], tree["layers"])
        one, other = pick(base), pick(tuned)
        assert found.layers_relative[layer] == pytest.approx(expected(one, other), rel=1e-5)
        flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        gap = np.linalg.norm(np.float64(flat(other)) - np.float64(flat(one)))
        assert found.layers[layer] == pytest.approx(gap, rel=1e-5)
        q = flat(other["attn"]["q"]) - np.float64(flat(one["attn"]["q"]))
        assert found.plain.modules["attn/q"][layer] == pytest.approx(np.linalg.norm(q), rel=1e-5)
        norms = lambda tree: {name: tree[name] for name in ("attn_norm", "mlp_norm")}
        assert found.relative.modules["norms"][layer] == pytest.approx(
            expected(norms(one), norms(other)), rel=1e-5
        )
    assert set(found.plain.modules) == {
        "attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down", "norms",
    }  # fmt: skip
    for name in ("embed", "final_norm", "lm_head"):
        assert found.relative.outside[name] == pytest.approx(
            expected(base[name], tuned[name]), rel=1e-5
        )


def test_other_shapes_are_named(tiny_config, random_params):
    base = random_params(tiny_config("llama"))
    wide = random_params(tiny_config("llama", intermediate_size=40))
    with pytest.raises(InputError, match=r"layers/mlp/down/kernel: \(3, 40, 32\) in the tuned"):
        change_by_layer(base, wide)
    headed = random_params(tiny_config("llama", tie_word_embeddings=False))
    with pytest.raises(InputError, match="lm_head/kernel"):
        change_by_layer(base, headed)
