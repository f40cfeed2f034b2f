"""A tiny model that answers every question with ``The answer is 7.``, and what to ask it.

No training: it looks at the last token alone, whose embedding is one axis of its own, and the head
maps that axis to the token that follows in the sentence.
"""

import itertools
import json
from pathlib import Path

import numpy as np

from imm_jax.models.config import ModelConfig
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from tests.models import gguf_files

SECONDS, SECONDS_WITH_WORK = 10.0, 60.0  # until a mistake is reported
ANSWER = " The answer is 7."
# 32 wide after the norm: one axis at sqrt(32), so this logit of the next token over all others.
LOGIT = 11.0


def params_of(config: ModelConfig, random_params, tokenizer) -> dict:
    """The canonical tree; blocks are random but add nothing to the residual stream."""
    params = random_params(config)
    start = tokenizer.encode("Answer:")[-1]
    chain = [start, *tokenizer.encode(ANSWER), config.eos_token_id]
    assert len(set(chain)) == len(chain) <= config.hidden_size
    size = config.hidden_size
    embedding = np.random.default_rng(0).standard_normal((config.vocab_size, size))
    head = np.zeros((size, config.vocab_size))
    for axis, (token, following) in enumerate(itertools.pairwise(chain)):
        embedding[token] = np.eye(size)[axis]
        head[axis, following] = LOGIT / size**0.5
    params["embed"]["embedding"] = embedding.astype(np.float32)
    params["lm_head"] = {"kernel": head.astype(np.float32)}
    params["final_norm"]["scale"] = np.ones(size, np.float32)
    for block, leaf in (("attn", "o"), ("mlp", "down")):
        params["layers"][block][leaf]["kernel"] *= 0
    return params


def save_answering(folder: Path, tiny_config, random_params, tokenizer) -> Path:
    """Writes the model's folder."""
    config = tiny_config("llama", tie_word_embeddings=False, max_position_embeddings=128)
    params = params_of(config, random_params, tokenizer)
    save_model(folder, Decoder(config), params, tokenizer=tokenizer)
    return folder


def write_questions(path: Path, count: int, first: int = 0) -> Path:
    """Questions of which the first is 0 + 7, so that 7 is right, and every fourth 8 - 0."""
    rows = [
        {"id": f"{path.stem}-{i}", "question": f"What is {i} plus {7 - i}?", "answer": 7}
        if i % 4 != 3
        else {"id": f"{path.stem}-{i}", "question": f"What is 8 minus {i}?", "answer": 8 - i}
        for i in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_settings(model: Path, tasks: Path) -> dict:
    """A run of one round in a second or two; 3 of 4 questions are answered right."""
    train = write_questions(tasks / "train.jsonl", 8)
    test, other = (write_questions(tasks / f"{name}.jsonl", 4, 20) for name in ("test", "other"))
    return {
        "model": str(model),
        "data": {
            "in_domain": f"jsonl:train={train},test={test}",
            "out_of_domain": [str(other)],
            "sample_style": "plain",
            "evaluate_style": "plain",
        },
        "samples": 2,
        "sampling": {"temperature": 1.0, "max_new_tokens": 16, "batch_size": 16},
        "evaluation": {"temperature": 0.0, "max_new_tokens": 16, "batch_size": 16},
        "training": {
            "learning_rate": 1e-3,
            "epochs": 2,
            "batch_size": 4,
            "micro_batch_size": 4,
            "save_every_steps": 2,
            "remat": False,
        },
        "rounds": 1,
    }


def save_gguf(path: Path, config: ModelConfig, params: dict, tokenizer) -> Path:
    """The model and its byte-level tokenizer in one GGUF file, float32."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"]]
    changes = {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": "gpt-2",
        "tokenizer__ggml__tokens": sorted(state["vocab"], key=state["vocab"].get),
        "tokenizer__ggml__merges": pairs,
        "tokenizer__ggml__token_type": [3, 3] + [1] * (config.vocab_size - 2),
    }
    return gguf_files.write(path, config, gguf_files.converted(config, params), **changes)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: files with their content, folders as None."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def results_of(rows: list[dict]) -> list[dict]:
    """A run's rows without what differs from one time to the next: what the stages cost."""
    return [{key: row[key] for key in row if key != "stages"} for row in rows]
