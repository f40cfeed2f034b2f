"""What each supported ``model_type`` of Hugging Face has in its ``config.json``, as tables."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# What changes no logits: bookkeeping, defaults of sampling, and heads that are not used.
WITHOUT_EFFECT = frozenset(
    [
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "use_bfloat16",
        "cache_implementation",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "torchscript",
        "pretraining_tp",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "return_dict",
        "return_dict_in_generate",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "tokenizer_class",
        "prefix",
        "unk_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "model_max_length",
        "is_decoder",
        "cross_attention_hidden_size",
        "tf_legacy_loss",
        "is_llama_config",
        "transformers.js_config",
        "unsloth_version",
        "unsloth_fixed",
        "tie_last_hidden_states",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "do_sample",
        "early_stopping",
        "max_length",
        "min_length",
        "max_new_tokens",
    ]
)

# What the decoder does not have; only the value that switches it off is accepted.
OFF: dict[str, Any] = {
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
    "use_bidirectional_attention": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "per_layer_config": None,
    "auto_map": None,
}

# Hugging Face key: (fields of ModelConfig it sets, what its value must be).
BASE_KEYS: dict[str, tuple[tuple[str, ...], str]] = {
    "vocab_size": (("vocab_size",), "positive integer"),
    "hidden_size": (("hidden_size",), "positive integer"),
    "intermediate_size": (("intermediate_size",), "positive integer"),
    "num_hidden_layers": (("num_hidden_layers",), "positive integer"),
    "num_attention_heads": (("num_attention_heads",), "positive integer"),
    "num_key_value_heads": (("num_key_value_heads",), "positive integer or null"),
    "head_dim": (("head_dim",), "positive integer or null"),
    "max_position_embeddings": (("max_position_embeddings",), "positive integer"),
    "hidden_act": (("hidden_act",), "activation"),
    "rms_norm_eps": (("rms_norm_eps",), "positive number"),
    "initializer_range": (("initializer_range",), "positive number"),
    "tie_word_embeddings": (("tie_word_embeddings",), "true or false"),
    "bos_token_id": (("bos_token_id",), "token id or null"),
    "eos_token_id": (("eos_token_id",), "token id, list of them or null"),
    "pad_token_id": (("pad_token_id",), "token id or null"),
}
ATTENTION_BIAS = {"attention_bias": (("qkv_bias", "o_bias"), "true or false")}
ACTIVATIONS = {  # Hugging Face's names of one function: ours
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh",
}
BASE_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One ``model_type``: the keys it has, what transformers takes for absent ones, and the rest.

    ``windows`` is how its layers come to slide, a key of ``window_config.WINDOW_KEYS``.
    """

    architecture: str
    keys: Mapping[str, tuple[tuple[str, ...], str]]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    windows: str = "none"
    window_default: int | None = None
    rope_theta: float = 10000.0
    rope_local: float | None = None

    @property
    def rope_keys(self) -> tuple[str, ...]:
        """The keys that say how positions are encoded."""
        local = ("rope_local_base_freq",) if self.rope_local is not None else ()
        return ("rope_theta", "rope_scaling", "rope_parameters", *local)


GEMMA_KEYS = {k: v for k, v in BASE_KEYS.items() if k != "hidden_act"} | {
    "hidden_activation": (("hidden_act",), "activation"),
    "query_pre_attn_scalar": (("query_pre_attn_scalar",), "positive number"),
    "attn_logit_softcapping": (("attn_logit_softcapping",), "positive number or null"),
    "final_logit_softcapping": (("final_logit_softcapping",), "positive number or null"),
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        keys=BASE_KEYS | ATTENTION_BIAS | {"mlp_bias": (("mlp_bias",), "true or false")},
        defaults=BASE_DEFAULTS | {"mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        keys=BASE_KEYS,
        defaults=BASE_DEFAULTS
        | {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        windows="all",
        window_default=4096,
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        keys=BASE_KEYS,
        defaults=BASE_DEFAULTS | {"num_key_value_heads": 32, "max_position_embeddings": 32768},
        fixed={"qkv_bias": True},
        windows="upper",
        window_default=4096,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        keys=BASE_KEYS | ATTENTION_BIAS,
        defaults=BASE_DEFAULTS
        | {"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
        fixed={"qk_norm": True},
        windows="upper",
        window_default=4096,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        keys=GEMMA_KEYS | ATTENTION_BIAS,
        defaults=BASE_DEFAULTS
        | {
            "vocab_size": 262208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        fixed={"rms_norm_unit_offset": True, "sandwich_norm": True, "qk_norm": True},
        windows="pattern",
        window_default=4096,
        rope_theta=1e6,
        rope_local=1e4,
    ),
}

# Other families that tie the head where their config.json does not say: files of any family are
# merged.
TIED = frozenset(
    ["bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3", "gemma3n_text", "gpt2",
     "gpt_bigcode", "gpt_neo", "lfm2", "opt", "smollm3", "starcoder2"]
)  # fmt: skip


def ties_by_default(model_type: str) -> bool:
    """Whether an absent ``tie_word_embeddings`` means that the embedding serves as the head."""
    if model_type in FAMILIES:
        return FAMILIES[model_type].defaults["tie_word_embeddings"]
    return model_type in TIED


MULTIMODAL = "gemma3"  # its text part is a gemma3_text
MULTIMODAL_KEYS = frozenset(
    [
        "model_type",
        "architectures",
        "text_config",
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
    ]
)
