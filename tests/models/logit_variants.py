"""Configurations of small models, of every family and with every option that logits depend on."""

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LOCAL_GLOBAL = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {
    "model_type": "gemma3_text",
    "head_dim": 16,
    "sliding_window": 5,
    "layer_types": LOCAL_GLOBAL,
    "query_pre_attn_scalar": 24,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}

# name: what the transformers configuration gets beside SIZES
VARIANTS: dict[str, dict] = {
    "llama": {"model_type": "llama"},
    "llama_tied_mha": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
    },
    "llama_biases_wide_heads": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 24,
        "num_key_value_heads": 1,
    },
    "llama_llama3": {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama_linear": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "linear", "factor": 3.0},
    },
    "llama_yarn": {"model_type": "llama", "rope_scaling": YARN},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral_short_window": {"model_type": "mistral", "sliding_window": 7, "head_dim": 16},
    "mistral_long_window": {"model_type": "mistral", "sliding_window": 40},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_upper_windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen2_yarn": {
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "rope_scaling": YARN
        | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.25},
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3_bias_mscale": {
        "model_type": "qwen3",
        "head_dim": 16,
        "attention_bias": True,
        "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    },
    "gemma3": GEMMA,
    "gemma3_untied_caps": GEMMA
    | {
        "tie_word_embeddings": False,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 1.5,
        "attention_bias": True,
    },
    "gemma3_linear_long_window": GEMMA
    | {
        "sliding_window": 100,
        "rope_parameters": GEMMA["rope_parameters"]
        | {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}},
    },
}
