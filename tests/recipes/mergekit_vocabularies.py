"""Small models whose vocabularies differ, and the embeddings that mergekit gives them.

``python mergekit_vocabularies.py`` writes the golden file where mergekit 0.1.5 is installed. Tokens
that only a union has come in no fixed order in mergekit, so rows are told apart by their tokens.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "mergekit_vocabularies.json"
WIDTH = 2

# The model: its kind of tokenizer, its tokens in the order of their ids, those that are special,
# those that are added without being special, and the rows of its embedding.
FOLDERS = {
    "a": ("BPE", ["<unk>", "<s>", "x", "y", "xy", "z"], ["<unk>", "<s>"], [], 8),
    "b": ("BPE", ["<unk>", "x", "z", "w", "zw", "y", "<tool>", "<add>"], ["<unk>", "<tool>"],
          ["<add>"], 8),
    "c": ("WordLevel", ["<unk>", "z", "<tool>", "v", "xy", "<s>"], ["<unk>", "<tool>"], [], 6),
    # Four tokens more than its embedding has rows.
    "long": ("BPE", ["<unk>", "x", "y", "q", "xy", "<s>", "<late>", "<later>", "late"],
             ["<unk>", "<s>", "<late>", "<later>"], ["late"], 5),
}  # fmt: skip

# The name: source, base, models of the recipe, models that are merged, padding, token rules.
CASES = {
    "base": ("base", "a", "a b c", "a b c", None, {}),
    "base without all models": ("base", "a", "a b c", "b c", None, {}),
    "one model alone": ("base", "a", "a b c", "b", None, {}),
    "no base": ("base", None, "a b c", "a b c", None, {}),
    "another base": ("base", "c", "a b c", "a b c", 4, {}),
    "union": ("union", "a", "a b c", "a b c", None, {}),
    "union, base last": ("union", "c", "a b c", "a b c", 8, {}),
    "union without a base": ("union", None, "a b", "a b", None, {}),
    "union of a part": ("union", "a", "a b c", "b c", None, {}),
    "a model's": ("b", "a", "a b c", "a b c", None, {}),
    "another model's, padded": ("b", None, "a c", "a c", 16, {}),
    "tokens past the embedding": ("base", "long", "long a b", "long a b", None, {}),
    "rules": ("union", "a", "a b c", "a b c", None, {
        "w": {"source": "b", "force": True},
        "v": {"source": {"kind": "zero"}},
        "zw": {"source": {"kind": "model_token", "model": "c", "token": "v"}},
        "<tool>": {"source": "c"},
        "x": {"source": {"kind": "model_token", "model": "b", "token_id": 2}, "force": True},
        "<unk>": {"source": {"kind": "zero"}},
        "<new>": {"source": {"kind": "model_token", "model": "a", "token": "xy"}},
    }),
}  # fmt: skip


def save_folders(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    for name, (kind, tokens, special, added, rows) in FOLDERS.items():
        plain = {token: i for i, token in enumerate(tokens) if token not in added}
        merges = [(t[0], t[1]) for t in plain if len(t) == 2]
        if kind == "BPE":
            core = Tokenizer(models.BPE(vocab=plain, merges=merges, unk_token="<unk>"))
        else:
            core = Tokenizer(models.WordLevel(vocab=plain, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        core.add_special_tokens(special)
        core.add_tokens([AddedToken(token, normalized=False) for token in added])
        assert core.get_vocab() == {token: i for i, token in enumerate(tokens)}
        roles = {"unk_token": "<unk>", "pad_token": special[-1]}
        roles["extra_special_tokens"] = special[1:-1]
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **roles)
        tokenizer.save_pretrained(folder / name)
        sizes = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows}
        config |= sizes | {"num_hidden_layers": 1, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
        (folder / name / "config.json").write_text(json.dumps(config))


def embedding(name: str) -> np.ndarray:
    """Values that float32 holds exactly, with most of their means."""
    rows = FOLDERS[name][-1]
    start = 100 * (1 + list(FOLDERS).index(name))
    return (start + np.arange(rows * WIDTH).reshape(rows, WIDTH) ** 2).astype(np.float32)


def aligned(case) -> dict:
    """mergekit's answer to a case, in a folder that holds the models."""
    import torch
    from mergekit.common import ModelReference
    from mergekit.tokenizer.build import build_tokenizer
    from mergekit.tokenizer.config import TokenEmbeddingConfig
    from mergekit.tokenizer.embed import PermutedVocabulary

    source, base, models, merged, padding, rules = case
    models, merged = models.split(), merged.split()
    parse = ModelReference.parse
    info = build_tokenizer(
        base_model=base and parse(base),
        referenced_models=[parse(model) for model in models],
        tokenizer_source=source if source in ("base", "union") else parse(source),
        trust_remote_code=False,
        add_tokens=list(rules),
    )
    task = PermutedVocabulary.model_construct(
        tokens={t: TokenEmbeddingConfig.model_validate(rule) for t, rule in rules.items()},
        pad_to_multiple_of=padding,
        base_model=base and parse(base),
        vocabulary_axis=0,
    )
    tensors = {parse(model): torch.from_numpy(embedding(model)) for model in merged}
    found = task.execute(info, tensors)
    vocabulary = info.tokenizer.get_vocab()
    ids = {t: i for t, i in sorted(vocabulary.items()) if i < FOLDERS[models[0]][-1]}
    rows = {
        model: {t: found[parse(model)][i].tolist() for t, i in sorted(vocabulary.items())}
        for model in merged
    }
    size = len(found[parse(merged[0])])
    padded = {m: found[parse(m)][-1].tolist() for m in merged} if size > len(vocabulary) else {}
    fixed = {} if source == "union" else ids
    return {"size": size, "ids": fixed, "rows": rows, "padding": padded}


def generate() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            save_folders(Path(folder))
            return {name: aligned(case) for name, case in CASES.items()}
        finally:
            os.chdir(before)


def write() -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in generate().items()]
    GOLDEN.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    sys.exit(write())
