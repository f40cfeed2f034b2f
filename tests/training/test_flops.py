import dataclasses

import jax
import jax.numpy as jnp
import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.training.flops import forward_flops, train_flops


def counted(jaxpr) -> int:
    """Operations of every matrix product in a program, from the shapes in its jaxpr."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (left, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner = 1
            for axis in left:
                inner *= shape[axis]
            total += 2 * eqn.outvars[0].aval.size * inner
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                total += times * counted(getattr(value, "jaxpr", value))
    return total


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"head_dim": 24, "qkv_bias": True}]
)
def test_they_are_the_matrix_products_of_the_forward_and_the_backward_pass(tiny_config, changes):
    """The oracle counts every product of the traced programs; those attend to all T keys."""
    config = dataclasses.replace(tiny_config("llama"), **changes)
    model, tokens = Decoder(config), jnp.zeros((3, 7), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    loss = lambda params: model.apply({"params": params}, tokens).sum()
    forward = counted(jax.make_jaxpr(loss)(params).jaxpr)
    assert forward_flops(config, 21, 7) == forward
    # All but the first layer's input needs a gradient, and that one (the embedding) has one too.
    both = counted(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    half = 3 * (forward_flops(config, 21, 7) - forward_flops(config, 21, 3.5))
    assert train_flops(config, [7] * 3) == both - half


def test_a_window_leaves_out_the_pairs_beyond_it(tiny_config):
    config = tiny_config("llama")
    kinds = ("sliding_attention", "full_attention", "sliding_attention")
    sliding = dataclasses.replace(config, sliding_window=4, layer_types=kinds)
    heads = config.num_attention_heads * config.head_dim
    # Two layers see 4 keys instead of 10, and 9 * 4 - 8 pairs instead of 9 * 9 / 2.
    assert forward_flops(config, 5, 10) - forward_flops(sliding, 5, 10) == 4 * heads * 5 * 2 * 6
    assert train_flops(config, [9]) - train_flops(sliding, [9]) == 12 * heads * 2 * (40.5 - 28)
    assert train_flops(config, [3]) == train_flops(sliding, [3])


def test_tokens_that_are_not_scored_do_not_meet_the_head(tiny_config):
    config = tiny_config("llama")
    head = config.vocab_size * config.hidden_size
    assert forward_flops(config, 9, 4) - forward_flops(config, 9, 4, scored=2) == 2 * 7 * head
    assert train_flops(config, [5, 4]) - train_flops(config, [5, 4], scored=2) == 6 * 7 * head
