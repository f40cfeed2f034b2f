"""config.json and ModelConfig: published files, both spellings, and what is refused."""

import copy
import dataclasses
import json

import pytest

from imm_jax.errors import InputError
from imm_jax.models.config import RopeScaling
from imm_jax.models.huggingface.families import config_from_hf, config_to_hf
from imm_jax.models.huggingface.family_tables import FAMILIES, TIED, ties_by_default
from tests.models.published import PUBLISHED


def theirs(data: dict):
    """transformers' own reading; of a multimodal model, its text part."""
    from transformers import AutoConfig

    data = copy.deepcopy(data)
    config = AutoConfig.for_model(data.pop("model_type"), **data)
    return getattr(config, "text_config", config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_as_transformers_reads_them(name):
    ours, want = config_from_hf(PUBLISHED[name]), theirs(PUBLISHED[name])
    for field in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
        "tie_word_embeddings", "initializer_range", "bos_token_id", "pad_token_id",
    ):  # fmt: skip
        assert getattr(ours, field) == getattr(want, field), field
    assert ours.head_dim == getattr(want, "head_dim", want.hidden_size // want.num_attention_heads)
    types = getattr(want, "layer_types", None)
    window = getattr(want, "sliding_window", None)
    types = types or ["sliding_attention" if window else "full_attention"] * ours.num_hidden_layers
    assert list(ours.windows) == [window if t == "sliding_attention" else None for t in types]
    rope = want.rope_parameters
    full = rope.get("full_attention", rope)
    assert ours.rope_theta == full["rope_theta"]
    assert getattr(ours.rope_scaling, "rope_type", "default") == full["rope_type"]
    if ours.rope_scaling is not None:
        given = {k: v for k, v in full.items() if k not in ("rope_theta", "rope_type")}
        assert {k: getattr(ours.rope_scaling, k) for k in given} == given
    local = rope["sliding_attention"]["rope_theta"] if "sliding_attention" in rope else None
    assert ours.rope_local_base_freq == local


@pytest.mark.parametrize("family", [*FAMILIES, *sorted(TIED), "gpt_neox", "phi3", "olmo2"])
def test_heads_are_tied_by_default_as_in_transformers(family):
    from transformers import AutoConfig

    assert ties_by_default(family) == AutoConfig.for_model(family).tie_word_embeddings


def test_multimodal_gemma_takes_token_ids_from_above():
    config = config_from_hf(PUBLISHED["gemma-3-4b-it"])
    assert config.eos_token_id == (1, 106)
    assert config.model_type == "gemma3_text"
    assert (config.vocab_size, config.head_dim, config.embed_scale) == (262208, 256, 2560**0.5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_reads_back_and_means_the_same_to_transformers(name):
    config = config_from_hf(PUBLISHED[name])
    written = config_to_hf(config, "bfloat16")
    assert config_from_hf(json.loads(json.dumps(written))) == config
    back = theirs(written)
    assert config_from_hf(json.loads(back.to_json_string())) == config
    assert str(back.dtype).endswith("bfloat16")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_spelling_alone_is_enough(family, tiny_config):
    scaling = RopeScaling(rope_type="linear", factor=2.0)
    config = tiny_config(family, rope_theta=5e5, rope_scaling=scaling)
    written = config_to_hf(config)
    four = {k: v for k, v in written.items() if k not in ("rope_parameters", "dtype")}
    older = ("rope_theta", "rope_scaling", "rope_local_base_freq", "torch_dtype")
    five = {k: v for k, v in written.items() if k not in older}
    assert config_from_hf(four) == config
    assert config_from_hf(five) == config


def test_windows_from_patterns():
    gemma = {k: v for k, v in PUBLISHED["gemma-3-270m"].items() if k != "layer_types"}
    assert config_from_hf(gemma) == config_from_hf(PUBLISHED["gemma-3-270m"])
    config = config_from_hf(gemma | {"sliding_window_pattern": 2, "num_hidden_layers": 4})
    assert config.windows == (512, None, 512, None)
    qwen = PUBLISHED["Qwen2.5-0.5B-Instruct"] | {"use_sliding_window": True}
    assert config_from_hf(qwen).windows == (None,) * 21 + (32768,) * 3
    none = config_from_hf(PUBLISHED["Mistral-7B-v0.1"] | {"sliding_window": None})
    assert none.windows == (None,) * 32


def test_yarn_keeps_every_setting():
    yarn = {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 32768,
        "beta_fast": 20,
        "beta_slow": 2,
        "attention_factor": 1.5,
        "mscale": 0.7,
        "mscale_all_dim": 0.9,
        "truncate": False,
    }
    config = config_from_hf(PUBLISHED["Qwen3-0.6B"] | {"rope_scaling": yarn})
    want = {k: v for k, v in yarn.items() if k != "type"} | {"rope_type": "yarn"}
    assert dataclasses.asdict(config.rope_scaling).items() >= want.items()
    assert config_from_hf(config_to_hf(config)) == config


LLAMA = PUBLISHED["Llama-3.2-1B-Instruct"]
# what changes in Llama's file (absent where the value is ...): what the message must say
REFUSED = [
    ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
    ({"model_type": "lama"}, "did you mean 'llama'"),
    ({"model_type": ...}, "model_type is missing"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"hidden_size": ...}, "hidden_size is missing"),
    ({"num_hidden_layers": "16"}, "num_hidden_layers is '16', expected positive integer"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected positive integer"),
    ({"vocab_size": -5}, "vocab_size is -5"),
    ({"vocab_size": True}, "vocab_size is True"),
    ({"hidden_size": 2048.5}, "hidden_size is 2048.5"),
    ({"intermediate_size": None}, "intermediate_size is None"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected positive number"),
    ({"mlp_bias": "no"}, "mlp_bias is 'no', expected true or false"),
    ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple of"),
    ({"head_dim": None, "num_attention_heads": 24}, "hidden_size 2048 is not a multiple of"),
    ({"head_dim": 63}, "head_dim is 63, expected an even number"),
    ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
    ({"eos_token_id": [1, 128256]}, "eos_token_id 128256 is outside the vocabulary"),
    ({"eos_token_id": []}, "eos_token_id is []"),
    ({"pad_token_id": -2}, "pad_token_id is -2"),
    ({"attention_dropout": 0.1}, "attention_dropout 0.1 is not supported"),
    ({"rope_interleaved": True}, "rope_interleaved True is not supported"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ({"auto_map": {"AutoModel": "modeling.X"}}, "auto_map"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ({"sliding_window": 128}, "sliding_window 128 is not supported for model_type 'llama'"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not supported"),
    ({"logit_scale": 0.25}, "logit_scale 0.25 is not supported"),
    ({"num_experts": 8}, "num_experts 8 is not supported"),
    ({"rms_norm_epss": 1e-5}, "did you mean 'rms_norm_eps'"),
    ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2'"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "alpha": 1}}, "alpha 1 is not"),
    ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "differ"),
    ({"rope_scaling": LLAMA["rope_scaling"] | {"high_freq_factor": 1.0}}, "low_freq_factor"),
    ({"rope_scaling": [2.0]}, "rope_scaling is [2.0], expected object"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "contradict each other"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
]
REFUSED_OTHERS = [
    ("gemma-3-270m", {"layer_types": ["full_attention"] * 3}, "layer_types names 3 layers"),
    ("gemma-3-270m", {"layer_types": ["chunked_attention"] * 18}, "holds 'chunked_attention'"),
    ("gemma-3-270m", {"sliding_window": None}, "no sliding_window is set"),
    ("gemma-3-270m", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma-3-270m", {"rope_parameters": {"rope_theta": 1e6}}, "one for sliding_attention"),
    ("gemma-3-270m", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ("gemma-3-4b-it", {"text_config": None}, "text_config: expected a JSON object"),
    ("gemma-3-4b-it", {"audio_config": {}}, "audio_config"),
    ("Qwen2.5-0.5B-Instruct", {"use_mrope": True}, "use_mrope True is not supported"),
    ("Qwen2.5-0.5B-Instruct", {"max_window_layers": "x", "use_sliding_window": True}, "'x'"),
    ("Mistral-7B-v0.1", {"layer_types": ["full_attention"] * 32}, "layer_types"),
]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [("Llama-3.2-1B-Instruct", change, says) for change, says in REFUSED] + REFUSED_OTHERS,
)
def test_refused(name, change, says):
    data = {k: v for k, v in (PUBLISHED[name] | change).items() if v is not ...}
    with pytest.raises(InputError) as error:
        config_from_hf(data, "some/config.json")
    message = str(error.value)
    assert says in message
    assert message.startswith("some/config.json")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("family", "change", "says"),
    [
        (
            "llama",
            {"sliding_window": 4, "layer_types": ("sliding_attention",) * 3},
            "sliding_window",
        ),
        ("llama", {"qk_norm": True}, "qk_norm True cannot be written"),
        ("llama", {"qkv_bias": True}, "o_bias"),
        ("llama", {"embed_scale": 2.0}, "embed_scale 2.0 cannot be written"),
        ("qwen2", {"qkv_bias": False}, "qkv_bias False cannot be written"),
        ("mistral", {"layer_types": ("full_attention", "sliding_attention") * 2}, "layer_types"),
        ("mistral", {"final_logit_softcapping": 3.0}, "final_logit_softcapping"),
        ("qwen3", {"model_type": "phi"}, "'phi' has no Hugging Face counterpart"),
    ],
)
def test_what_a_family_cannot_say_is_not_written(family, change, says, tiny_config):
    config = dataclasses.replace(tiny_config(family), **change)
    config = dataclasses.replace(config, num_hidden_layers=len(config.layer_types) or 3)
    with pytest.raises(InputError) as error:
        config_to_hf(config)
    assert says in str(error.value)
