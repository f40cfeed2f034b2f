"""Byte-level tokenizers from GGUF metadata, against a plain implementation of their BPE."""

import itertools
import json
import subprocess
import sys
import unicodedata

import pytest
import regex

from imm_jax.models.tokenizer import load_tokenizer
from tests.models.gguf_tokenizers import (
    CONTROL,
    NORMAL,
    TEXTS,
    TRAINING,
    USER_DEFINED,
    refused,
    write,
)
from tests.processes import PATIENCE

CONTROLS = ["<|end|>", "<|begin|>"]
CHAT_TEMPLATE = "{% for m in messages %}<|begin|>{{ m['content'] }}<|end|>{% endfor %}"


# Byte-level BPE, done plainly: split by llama.cpp's expressions, then join pairs in order.

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CASELESS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
QWEN2 = (
    CASELESS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXPRESSIONS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "starcoder": [r"\p{N}", GPT2],
    "qwen2": [QWEN2],
    "llama-bpe": [QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")],
}


def byte_letters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


LETTERS = byte_letters()


def pieces(text, expressions):
    parts = [text]
    for expression in expressions:
        cut = []
        for part in parts:
            at = 0
            for match in regex.finditer(expression, part):
                cut += [part[at : match.start()], match.group()]
                at = match.end()
            cut.append(part[at:])
        parts = [part for part in cut if part]
    return parts


def plain_bpe(text, pre, ids, merges, whole_words):
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    out = []
    for piece in pieces(text, EXPRESSIONS[pre]):
        word = [LETTERS[byte] for byte in piece.encode()]
        if whole_words and "".join(word) in ids:
            out.append(ids["".join(word)])
            continue
        while len(word) > 1:
            rank, at = min(
                (ranks.get(pair, 1 << 30), i) for i, pair in enumerate(itertools.pairwise(word))
            )
            if rank == 1 << 30:
                break
            word[at : at + 2] = [word[at] + word[at + 1]]
        out += [ids[token] for token in word]
    return out


@pytest.fixture(scope="session")
def vocabulary():
    """Some 400 byte-level tokens, two control tokens first; and their merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROLS,
        initial_alphabet=sorted(LETTERS.values()),
        show_progress=False,
    )
    trained.train_from_iterator(TRAINING, trainer)
    tokens = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    merges = json.loads(trained.to_str())["model"]["merges"]
    return tokens, [tuple(merge) for merge in merges]


@pytest.fixture
def byte_level(tmp_path, vocabulary):
    """``byte_level(pre, **fields) -> path`` of a GGUF file with that vocabulary."""
    tokens, merges = vocabulary

    def build(pre="smollm", **fields):
        defaults = dict(
            model="gpt2",
            pre=pre,
            tokens=tokens,
            token_type=[CONTROL if token in CONTROLS else NORMAL for token in tokens],
            merges=[" ".join(merge) for merge in merges],
            eos_token_id=0,
            bos_token_id=1,
        )
        return write(tmp_path / "bpe.gguf", **(defaults | fields))

    return build


@pytest.mark.parametrize("pre", EXPRESSIONS)
def test_byte_level_ids(byte_level, vocabulary, pre):
    tokens, merges = vocabulary
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = load_tokenizer(byte_level(pre, add_bos_token=False))
    for text in [*TEXTS, *TRAINING]:
        normal = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        expected = plain_bpe(normal, pre, ids, merges, whole_words=pre == "llama-bpe")
        assert tokenizer(text).input_ids == expected, text
        assert tokenizer.decode(expected) == normal


def test_whole_words_are_taken_without_merging(byte_level, vocabulary):
    """Llama 3 has tokens that no sequence of its merges reaches."""
    tokens, _ = vocabulary
    unreachable = [*tokens, "zqj"]
    for pre, expected in (
        ("llama-bpe", [len(tokens)]),
        ("gpt-2", [tokens.index(c) for c in "zqj"]),
    ):
        path = byte_level(pre, tokens=unreachable, token_type=None, add_bos_token=False)
        assert load_tokenizer(path)("zqj").input_ids == expected


def test_control_tokens_bos_and_eos(byte_level, vocabulary):
    tokens, _ = vocabulary
    tokenizer = load_tokenizer(byte_level(add_bos_token=True, add_eos_token=True))
    inner = [tokens.index("a"), 0, tokens.index("b")]
    assert tokenizer("a<|end|>b").input_ids == [1, *inner, 0]
    assert tokenizer("a<|end|>b", add_special_tokens=False).input_ids == inner
    assert tokenizer.decode([1, *inner, 0], skip_special_tokens=True) == "ab"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")
    assert (tokenizer.pad_token, tokenizer.model_max_length) == (None, 128)
    assert load_tokenizer(byte_level("llama-bpe"))("a").input_ids == [1, tokens.index("a")]
    assert load_tokenizer(byte_level("smollm"))("a").input_ids == [tokens.index("a")]


def test_user_defined_tokens_are_not_cut(byte_level, vocabulary):
    tokens, _ = vocabulary
    more = [*tokens, "<think>"]
    kinds = [CONTROL if t in CONTROLS else NORMAL for t in tokens] + [USER_DEFINED]
    tokenizer = load_tokenizer(byte_level(tokens=more, token_type=kinds))
    ids = tokenizer("a<think>b").input_ids
    assert ids == [tokens.index("a"), len(tokens), tokens.index("b")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>b"


def test_saved_and_loaded_again(byte_level, tmp_path):
    path = byte_level(**{"tokenizer.chat_template": CHAT_TEMPLATE, "add_bos_token": True})
    tokenizer = load_tokenizer(path)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    for text in TEXTS:
        assert again(text).input_ids == tokenizer(text).input_ids, text
    messages = [{"role": "user", "content": "hi"}]
    for one in (tokenizer, again):
        assert one.apply_chat_template(messages, tokenize=False) == "<|begin|>hi<|end|>"
        assert one.eos_token_id == 0


def test_without_torch(byte_level, tmp_path):
    """Loads, encodes, saves and loads again in a process where torch cannot be imported."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from imm_jax.models.tokenizer import load_tokenizer\n"
        "tokenizer = load_tokenizer(sys.argv[1])\n"
        "tokenizer.save_pretrained(sys.argv[2])\n"
        "again = load_tokenizer(sys.argv[2])\n"
        "text = '12 apples\\n  34 <|end|>'\n"
        "assert again(text).input_ids == tokenizer(text).input_ids\n"
        "assert again.decode(again(text).input_ids) == text\n"
        "assert sys.modules['torch'] is None\n"
    )
    command = [sys.executable, "-c", script, str(byte_level()), str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


BAD = {
    "model": (dict(model="t5"), "tokenizer.ggml.model is 't5', which is not supported"),
    "pre": (dict(pre="deepseek-llm"), "tokenizer.ggml.pre is 'deepseek-llm', which is not"),
    "pre misspelt": (dict(pre="smolm"), "did you mean 'smollm'"),
    "no pre": (dict(pre=None), "'tokenizer.ggml.pre' is missing"),
    "no model": (dict(model=None), "'tokenizer.ggml.model' is missing"),
    "no tokens": (dict(tokens=None), "'tokenizer.ggml.tokens' is missing"),
    "no merges": (dict(merges=None), "'tokenizer.ggml.merges' is missing"),
    "a number": (dict(tokens=7), "tokenizer.ggml.tokens is 7, expected a list"),
    "types": (dict(token_type=[1, 1]), "tokenizer.ggml.token_type has 2 numbers for"),
    "merge of one piece": (dict(merges=["ab"]), "holds 'ab', which does not join two tokens"),
    "merge into nothing": (dict(merges=["a €"]), "holds 'a €', which does not join two tokens"),
    "eos": (dict(eos_token_id=600), "tokenizer.ggml.eos_token_id is 600, expected 0 to"),
    "bos wanted": (dict(add_bos_token=True, bos_token_id=None), "but there is no bos_token"),
    "flag": (dict(add_bos_token=1), "tokenizer.ggml.add_bos_token is 1, expected true or false"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_byte_level(byte_level, case):
    fields, message = BAD[case]
    path = byte_level(**fields)
    assert message in refused(path)


def test_repeated_token(byte_level, vocabulary):
    tokens, _ = vocabulary
    path = byte_level(tokens=[*tokens[:-1], "a"])
    assert f"lists 'a' twice, as {tokens.index('a')} and {len(tokens) - 1}" in refused(path)
