"""Logits equal transformers' on small random models of every family; golden files without it."""

import contextlib
import dataclasses
import json
import os
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.families import config_from_hf
from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.huggingface.weight_names import weight_sources
from imm_jax.models.load import load_model
from tests.models.logit_variants import GEMMA, SIZES, VARIANTS

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
LENGTH = 24
GOLDEN_AT = [9, 23]  # the positions whose logits are kept

GOLDEN_VARIANTS = [
    "llama_biases_wide_heads",
    "llama_llama3",
    "llama_linear",
    "llama_yarn",
    "mistral_short_window",
    "qwen2",
    "qwen2_upper_windows",
    "qwen3_bias_mscale",
    "gemma3",
    "gemma3_untied_caps",
]

# (variant, what is taken away from its configuration): each must change the logits.
TAKEN_AWAY = [
    ("llama_llama3", {"rope_scaling": None}),
    ("llama_linear", {"rope_scaling": None}),
    ("llama_yarn", {"rope_scaling": None}),
    ("mistral_short_window", {"sliding_window": LENGTH}),
    ("qwen2_upper_windows", {"layer_types": ("sliding_attention",) * 3}),
    ("qwen2", {"rope_theta": 5e5}),
    ("gemma3", {"rope_local_base_freq": None}),
    ("gemma3", {"query_pre_attn_scalar": None}),
    ("gemma3", {"sliding_window": LENGTH}),
    ("gemma3_untied_caps", {"attn_logit_softcapping": None}),
    ("gemma3_untied_caps", {"final_logit_softcapping": None}),
]


def tokens(rows: int = 2) -> np.ndarray:
    return np.random.RandomState(0).randint(3, SIZES["vocab_size"], (rows, LENGTH))


def weight(name: str, shape: tuple[int, ...], centre: float) -> np.ndarray:
    """The random tensor that goes by this name, from NumPy's frozen generator."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    width = 0.3 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5
    return (centre + width * noise).astype(np.float32)


def their_config(name: str):
    from transformers import AutoConfig

    return AutoConfig.for_model(**(SIZES | VARIANTS[name]))


def their_model(config):
    """A transformers model whose every weight, norms and biases too, is random."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    fill(model)
    return model.to(torch.float32).eval()


def fill(model) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = float(parameter.mean().round()) if parameter.ndim == 1 else 0.0
            parameter.copy_(torch.tensor(weight(name, tuple(parameter.shape), centre)))


def their_logits(model, tokens_BT: np.ndarray, **kwargs) -> np.ndarray:
    import torch

    kwargs = {key: torch.tensor(value) for key, value in kwargs.items()}
    with torch.no_grad():
        return model(torch.tensor(tokens_BT), **kwargs).logits.float().numpy()


def our_logits(model, params, tokens_BT, **kwargs) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)({"params": params}, jnp.asarray(tokens_BT), **kwargs))


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert want.std() > 0.3  # a model that says nothing would agree with anything
    np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)


def write_folder(folder: Path, config: dict) -> None:
    """A model folder of random weights, made without torch and without our writer."""
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    ours = config_from_hf(config)
    tensors = {}
    for source in weight_sources(ours).values():
        for name in source.names:
            unit = "norm" in name and not ours.rms_norm_unit_offset
            tensors[name] = weight(name, source.shape, 1.0 if unit else 0.0)
    save_file(tensors, folder / "model.safetensors")


def golden() -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    with np.load(GOLDEN / "logits.npz") as logits:
        return json.loads((GOLDEN / "configs.json").read_text()), dict(logits)


@contextlib.contextmanager
def softcapped_attention():
    """Lets transformers' Gemma 3 pass on attn_logit_softcapping, which it reads and forgets."""
    from transformers.models.gemma3 import modeling_gemma3

    plain = modeling_gemma3.eager_attention_forward

    def capped(module, *args, **kwargs):
        return plain(module, *args, softcap=module.attn_logit_softcapping, **kwargs)

    modeling_gemma3.eager_attention_forward = capped
    try:
        yield
    finally:
        modeling_gemma3.eager_attention_forward = plain


@pytest.mark.parametrize("name", GOLDEN_VARIANTS)
def test_golden_logits(name, tmp_path):
    configs, logits = golden()
    write_folder(tmp_path / "model", configs[name])
    model, params = load_model(tmp_path / "model")
    assert_close(our_logits(model, params, tokens())[:, GOLDEN_AT], logits[name])


@pytest.mark.parametrize(("name", "change"), TAKEN_AWAY)
def test_golden_logits_notice_every_option(name, change, tmp_path):
    configs, logits = golden()
    write_folder(tmp_path / "model", configs[name])
    model, params = load_model(tmp_path / "model")
    other = Decoder(config=dataclasses.replace(model.config, **change))
    assert np.abs(our_logits(other, params, tokens())[:, GOLDEN_AT] - logits[name]).max() > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_round_trip(name, tmp_path):
    theirs = their_model(their_config(name))
    from transformers import AutoModelForCausalLM

    theirs.save_pretrained(tmp_path / "theirs")
    model, params = load_model(tmp_path / "theirs")
    with softcapped_attention():
        want = their_logits(theirs, tokens())
    got = our_logits(model, params, tokens())
    assert_close(got, want)
    print(f"{name}: at most {np.abs(got - want).max():.1e} apart")

    save_model(tmp_path / "ours", model, params, max_shard_bytes=40_000)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    for key, value in theirs.state_dict().items():
        assert bool((back.state_dict()[key] == value).all()), key
    assert back.dtype == theirs.dtype
    with softcapped_attention():
        np.testing.assert_array_equal(their_logits(back, tokens()), want)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_storage(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = their_model(their_config("qwen3")).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", dtype=torch.float32
    )
    _, stored = load_model(tmp_path / "model")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(stored)} == {dtype}
    model, params = load_model(tmp_path / "model", dtype="float32")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert_close(our_logits(model, params, tokens()), their_logits(theirs, tokens()))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["llama", "qwen2_upper_windows", "gemma3"])
def test_right_padding_and_positions(name, tmp_path):
    theirs = their_model(their_config(name))
    theirs.save_pretrained(tmp_path / "model")
    model, params = load_model(tmp_path / "model")
    lengths = np.array([LENGTH, 9])
    mask = np.arange(LENGTH) < lengths[:, None]
    padded = np.where(mask, tokens(), 0)
    want = their_logits(theirs, padded, attention_mask=mask.astype(np.int64))
    got = our_logits(model, params, padded)
    assert_close(got[mask], want[mask])

    shifted = np.broadcast_to(np.arange(LENGTH) + 11, (2, LENGTH)).copy()
    want = their_logits(
        theirs, tokens(), position_ids=shifted, attention_mask=np.ones_like(shifted)
    )
    assert_close(our_logits(model, params, tokens(), positions=jnp.asarray(shifted)), want)


@pytest.mark.parity
def test_uneven_positions(tmp_path):
    theirs = their_model(their_config("llama_yarn"))
    theirs.save_pretrained(tmp_path / "model")
    model, params = load_model(tmp_path / "model")
    uneven = np.cumsum(np.random.RandomState(1).randint(1, 4, (2, LENGTH)), axis=1)
    want = their_logits(theirs, tokens(), position_ids=uneven, attention_mask=np.ones_like(uneven))
    got = our_logits(model, params, tokens(), positions=jnp.asarray(uneven))
    assert_close(got, want)
    assert np.abs(got - our_logits(model, params, tokens())).max() > 1e-2


@pytest.mark.parity
def test_packed_sequences_do_not_see_each_other(tmp_path):
    theirs = their_model(their_config("mistral_short_window"))
    theirs.save_pretrained(tmp_path / "model")
    model, params = load_model(tmp_path / "model")
    row = tokens(1)
    want = np.concatenate([their_logits(theirs, row[:, :10]), their_logits(theirs, row[:, 10:])], 1)
    positions = np.concatenate([np.arange(10), np.arange(LENGTH - 10)])[None]
    segments = (np.arange(LENGTH) >= 10).astype(np.int32)[None]
    got = our_logits(
        model, params, row, positions=jnp.asarray(positions), segment_ids=jnp.asarray(segments)
    )
    assert_close(got, want)


@pytest.mark.parity
def test_text_part_of_a_multimodal_gemma(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    outside = {"boi_token_index": 90, "eoi_token_index": 91, "image_token_index": 92}
    config = Gemma3Config(
        text_config=SIZES | GEMMA, vision_config=vision, mm_tokens_per_image=4, **outside
    )
    theirs = Gemma3ForConditionalGeneration(config)
    fill(theirs)
    theirs.to(torch.float32).eval().save_pretrained(tmp_path / "model")
    model, params = load_model(tmp_path / "model")
    assert model.config.model_type == "gemma3_text"
    text = np.minimum(tokens(), 89)
    assert_close(our_logits(model, params, text), their_logits(theirs, text))


@pytest.mark.slow
@pytest.mark.parity
def test_real_model_saved_for_transformers(tmp_path):
    """A real GGUF model, named by IMM_JAX_TEST_GGUF, gives the same logits saved and reloaded."""
    path = os.environ.get("IMM_JAX_TEST_GGUF")
    if not path:
        pytest.skip("IMM_JAX_TEST_GGUF names no file")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, params = load_model(path)
    save_model(tmp_path / "model", model, params)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", dtype=torch.float32
    )
    ids = np.random.RandomState(0).randint(0, model.config.vocab_size, (2, LENGTH))
    # Real models reach activations in the thousands, so the bound grows with the logits.
    got, want = our_logits(model, params, ids), their_logits(theirs, ids)
    np.testing.assert_allclose(got, want, atol=TOLERANCE * max(1.0, np.abs(want).max()), rtol=0)


def write_golden() -> None:
    """Makes the golden files anew: ``python -m tests.models.test_logits_parity``, with torch."""
    configs, logits = {}, {}
    for name in GOLDEN_VARIANTS:
        config = their_config(name)
        model = their_model(config)
        with softcapped_attention():
            logits[name] = their_logits(model, tokens())[:, GOLDEN_AT]
        configs[name] = json.loads(config.to_json_string())
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "configs.json").write_text(json.dumps(configs, indent=1) + "\n")
    np.savez_compressed(GOLDEN / "logits.npz", **logits)


if __name__ == "__main__":
    write_golden()
