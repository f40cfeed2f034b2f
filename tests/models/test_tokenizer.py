"""Tokenizers of folders, of real models, and whether one fits its model."""

import json
from pathlib import Path

import gguf
import pytest

from imm_jax.errors import InputError
from imm_jax.models.config import ModelConfig
from imm_jax.models.sources import resolve
from imm_jax.models.tokenizer import check_tokenizer, load_tokenizer
from tests.models.gguf_files import SMOLLM2, real_models
from tests.models.gguf_tokenizers import refused

GOLDEN = json.loads((Path(__file__).parent / "golden" / "smollm2_ids.json").read_text())
TEXTS = list(GOLDEN)


def test_folder(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert found(text).input_ids == tiny_tokenizer(text).input_ids, text


def test_bad_folders(tmp_path, tiny_tokenizer):
    assert "has no tokenizer files" in refused(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    assert "its tokenizer cannot be read" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none.gguf")


def test_folder_runs_no_code(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    try:
        load_tokenizer(tmp_path)
    except InputError as error:
        assert str(tmp_path) in str(error)
    assert not (tmp_path / "ran").exists()


def model_config(vocab_size: int) -> ModelConfig:
    sizes = dict.fromkeys(
        ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"], 1
    )
    return ModelConfig(
        model_type="llama", vocab_size=vocab_size, num_key_value_heads=1, head_dim=1, **sizes
    )


def test_check_tokenizer(tiny_tokenizer):
    check_tokenizer(tiny_tokenizer, model_config(320))
    check_tokenizer(tiny_tokenizer, model_config(384))  # padded embeddings are usual
    with pytest.raises(InputError, match=r"does not match: .* has id 319, .* has 319 ids"):
        check_tokenizer(tiny_tokenizer, model_config(319))


# Real models.


@pytest.mark.slow
def test_smollm2_golden_ids():
    """The ids that transformers gives; test_ids_equal_transformers checks the golden file."""
    tokenizer = load_tokenizer(resolve(SMOLLM2))
    assert len(tokenizer) == 49152
    for text, ids in GOLDEN.items():
        assert tokenizer(text).input_ids == ids, text
        assert tokenizer.decode(ids) == text
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(prompt).input_ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert ids.count(tokenizer.eos_token_id) == 2 and tokenizer.eos_token_id == 2


def transformers_ids(path):
    """Transformers' own tokenizer for a GGUF file, with two omissions of its conversion made good.

    As of 5.23 it leaves out the single digits of SmolLM2's published tokenizer.json, and the NFC
    normalisation of its own Qwen2Tokenizer.
    """
    from tokenizers import normalizers, pre_tokenizers
    from transformers import AutoTokenizer

    reader = gguf.GGUFReader(path)
    pre = reader.get_field("tokenizer.ggml.pre").contents()
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if pre == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if pre == "qwen2":
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return lambda text: tokenizer(text).input_ids


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("source", real_models(), ids=lambda s: Path(s).stem)
def test_ids_equal_transformers(source):
    pytest.importorskip("torch")  # transformers' conversion needs it
    model = resolve(source)
    theirs, ours = transformers_ids(model.path), load_tokenizer(model)
    for text in TEXTS:
        expected = theirs(text)
        assert ours(text).input_ids == expected, text
        if source == SMOLLM2:
            assert GOLDEN[text] == expected, text
