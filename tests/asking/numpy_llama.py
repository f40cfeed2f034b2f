"""A Llama in float64 NumPy, one sequence at a time: its logits, and what each kernel reads."""

import numpy as np

from imm_jax.models.config import ModelConfig


def forward(params: dict, config: ModelConfig, tokens) -> tuple[np.ndarray, dict]:
    """Logits ``[T, V]``; by path, what each kernel reads: ``[L, T, in]``, the head ``[T, in]``."""
    params = _over(params, np.float64)
    x, seen = params["embed"]["embedding"][np.asarray(tokens)], {}
    for number in range(config.num_hidden_layers):
        layer = _over(params["layers"], lambda x, n=number: x[n])
        x, read = _block(layer, config, x)
        for path, value in read.items():
            seen.setdefault(f"layers/{path}/kernel", []).append(value)
    x = _norm(x, params["final_norm"], config)
    found = {path: np.stack(rows) for path, rows in seen.items()} | {"lm_head/kernel": x}
    return x @ params["lm_head"]["kernel"], found


def _over(tree, fn):
    return {k: _over(v, fn) if isinstance(v, dict) else fn(v) for k, v in tree.items()}


def _norm(x, norm, config):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.rms_norm_eps) * norm["scale"]


def _block(layer, config, x):
    T, H, K, E = len(x), config.num_attention_heads, config.num_key_value_heads, config.head_dim
    angles = np.arange(T)[:, None, None] * config.rope_theta ** (-np.arange(0, E, 2) / E)
    cos, sin = np.cos(angles), np.sin(angles)
    read = {}

    def product(path, x):
        read[path] = x
        block, name = path.split("/")
        return x @ layer[block][name]["kernel"]

    def rotate(x):
        a, b = x[..., : E // 2], x[..., E // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    h = _norm(x, layer["attn_norm"], config)
    q = rotate(product("attn/q", h).reshape(T, H, E))
    k = rotate(product("attn/k", h).reshape(T, K, E)).repeat(H // K, axis=1)
    v = product("attn/v", h).reshape(T, K, E).repeat(H // K, axis=1)
    scores = np.einsum("the,she->hts", q, k) / np.sqrt(E)
    weights = np.exp(np.where(np.tri(T, dtype=bool), scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    x = x + product("attn/o", np.einsum("hts,she->the", weights, v).reshape(T, H * E))
    h = _norm(x, layer["mlp_norm"], config)
    gate = product("mlp/gate", h)
    return x + product("mlp/down", gate / (1 + np.exp(-gate)) * product("mlp/up", h)), read
