"""SentencePiece tokenizers from GGUF metadata, against a plain implementation of their BPE."""

import itertools

import pytest
import regex

from imm_jax.models.tokenizer import load_tokenizer
from tests.models.gguf_tokenizers import (
    BYTE,
    CONTROL,
    NORMAL,
    TEXTS,
    TRAINING,
    UNKNOWN,
    USER_DEFINED,
    refused,
    write,
)

# SentencePiece BPE, done plainly: join the neighbours with the best score, as llama.cpp does.


def plain_spm(text, ids, scores, prefix):
    symbols = list((" " + text if prefix and text else text).replace(" ", "▁"))
    while True:
        joined = [
            (-scores[ids[a + b]], i)
            for i, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in ids
        ]
        if not joined:
            break
        _, at = min(joined)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    out = []
    for symbol in symbols:
        known = [ids[symbol]] if symbol in ids else [ids[f"<0x{b:02X}>"] for b in symbol.encode()]
        out += known
    return out


@pytest.fixture(scope="session")
def pieces_and_scores():
    """Control, byte and 300 trained tokens; the score is minus the rank."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    letters = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    merged = [t for t in letters if len(t) > 1] + [t for t in letters if len(t) == 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *merged]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(merged)]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(merged))]
    return tokens, types, scores


@pytest.fixture
def sentencepiece(tmp_path, pieces_and_scores):
    tokens, types, scores = pieces_and_scores

    def build(**fields):
        defaults = dict(
            model="llama",
            pre="default",
            tokens=tokens,
            token_type=types,
            scores=scores,
            unknown_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return write(tmp_path / "spm.gguf", **(defaults | fields))

    return build


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids(sentencepiece, pieces_and_scores, prefix):
    tokens, types, scores = pieces_and_scores
    ids = {token: index for index, token in enumerate(tokens) if types[index] == NORMAL}
    ids |= {token: index for index, token in enumerate(tokens) if types[index] == BYTE}
    tokenizer = load_tokenizer(sentencepiece(add_space_prefix=prefix))
    for text in [*TEXTS, *TRAINING]:
        if regex.search(r"<s>|</s>|<unk>|<0x0A>|^[ ▁]", text):
            continue  # control tokens, and spaces where the prefix goes, have their own tests
        found = tokenizer(text).input_ids
        assert found == [1, *plain_spm(text, ids, scores, prefix)], text
        if "▁" not in text:
            assert tokenizer.decode(found[1:]) == text


def test_sentencepiece_control_tokens(sentencepiece, pieces_and_scores):
    tokens, *_ = pieces_and_scores
    tokenizer = load_tokenizer(sentencepiece(add_space_prefix=False, add_eos_token=True))
    assert tokenizer("a</s>b").input_ids == [1, tokens.index("a"), 2, tokens.index("b"), 2]
    assert load_tokenizer(sentencepiece(add_bos_token=False))("").input_ids == []


def test_gemma_runs_of_spaces(tmp_path):
    """Stored as spaces, seen by BPE as U+2581; merges go in the order of ids, not of scores."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", "  ", "   ", *"ab\n▁", "▁a", "ab"]
    types = [CONTROL] * 4 + [USER_DEFINED] * 3 + [NORMAL] * 6
    scores = [-1000.0] * 7 + [-50.0] * 4 + [-3.0, -1.0]  # scores alone would join a, b first
    path = write(
        tmp_path / "g.gguf",
        arch="gemma3",
        model="llama",
        tokens=tokens,
        token_type=types,
        scores=scores,
        bos_token_id=2,
        eos_token_id=1,
        unknown_token_id=3,
        padding_token_id=0,
    )
    tokenizer = load_tokenizer(path)
    ids = {token: index for index, token in enumerate(tokens)}
    cases = {
        " ab": ["▁a", "b"],
        "  a": ["  ", "a"],
        "   b": ["   ", "b"],
        "a\n\nb": ["a", "\n\n", "b"],
        "\n": ["\n"],
        "": [],
    }
    for text, expected in cases.items():
        assert tokenizer(text).input_ids == [2, *(ids[token] for token in expected)], text
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


BAD_SENTENCEPIECE = {
    "scores": (dict(scores=None), "tokenizer.ggml.scores has 0 numbers"),
    "charsmap": (
        {"precompiled_charsmap": [1, 2]},
        "tokenizer.ggml.precompiled_charsmap is not supported",
    ),
    "whitespace": (
        dict(remove_extra_whitespaces=True),
        "tokenizer.ggml.remove_extra_whitespaces is not supported",
    ),
}


@pytest.mark.parametrize("case", BAD_SENTENCEPIECE)
def test_bad_sentencepiece(sentencepiece, case):
    fields, message = BAD_SENTENCEPIECE[case]
    path = sentencepiece(**fields)
    assert message in refused(path)
