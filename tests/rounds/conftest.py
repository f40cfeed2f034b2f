"""A tiny model that answers some questions, and a run of it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from imm_jax.config import RunConfig
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from imm_jax.rounds.run import run
from imm_jax.settings import build
from imm_jax.training.batching import Sequence
from imm_jax.training.config import TrainingConfig
from imm_jax.training.fit import fit
from tests.answering import results_of


def question(a: int, b: int) -> str:
    return f"Tom has {a} apples and buys {b}. How many apples?"


def rows(pairs) -> list[dict]:
    return [{"id": f"{a}+{b}", "question": question(a, b), "answer": str(a + b)} for a, b in pairs]


@pytest.fixture(scope="session")
def result_files():
    """``result_files(folder)``: the bytes of every result file, times left out."""

    def read(folder: Path) -> dict[str, bytes]:
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in (".jsonl", ".json", ".safetensors")
            and path.name not in ("training.json", "manifest.json", "costs.json")
            and "data-" not in str(path.relative_to(folder))
        }
        rows = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
        return files | {"metrics.jsonl": json.dumps(results_of(rows)).encode()}

    return read


@pytest.fixture(scope="session")
def taught(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A model folder; some practice has taught the model the form of an answer and a few sums."""
    folder = tmp_path_factory.mktemp("taught") / "model"
    config = tiny_config("llama", max_position_embeddings=512)
    model = Decoder(config)
    params = jax.tree.map(np.asarray, random_params(config))
    encode = tiny_tokenizer.encode
    sequences = []
    for a in range(1, 5):
        for b in range(1, 5):
            prompt = encode(f"Question: {question(a, b)}\nAnswer:")
            answer = encode(f" {a} + {b} = {a + b}. The answer is {a + b}.")
            sequences.append(Sequence((*prompt, *answer, 0), len(prompt)))
    training = TrainingConfig(learning_rate=1e-2, epochs=60, batch_size=16, remat=False)
    params, _ = fit(model, params, sequences, training, seed=0)
    save_model(folder, model, params, tokenizer=tiny_tokenizer)
    return folder


@pytest.fixture(scope="session")
def settings(taught, tmp_path_factory):
    """``settings(**changes)``: a run of two rounds over the taught model, in seconds."""
    folder = tmp_path_factory.mktemp("tasks")
    splits = {
        "train": [(a, b) for a in range(1, 5) for b in (1, 3, 4)],
        "test": [(a, 2) for a in range(1, 5)],
        "other": [(a, 5) for a in range(1, 5)],
    }
    for name, pairs in splits.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows(pairs))
        )
    plain = {
        "model": str(taught),
        "data": {
            "in_domain": f"jsonl:train={folder}/train.jsonl,test={folder}/test.jsonl",
            "out_of_domain": [f"{folder}/other.jsonl"],
            "sample_style": "plain",
            "evaluate_style": "plain",
        },
        "samples": 2,
        "sampling": {"temperature": 1.0, "max_new_tokens": 24, "batch_size": 16},
        "evaluation": {"temperature": 0.0, "max_new_tokens": 24, "batch_size": 16},
        "training": {
            "learning_rate": 1e-3,
            "epochs": 2,
            "batch_size": 4,
            "micro_batch_size": 4,
            "save_every_steps": 2,
            "remat": False,
        },
        "rounds": 2,
        "block": 5,
    }

    def make(**changes) -> RunConfig:
        return build(RunConfig, plain | changes, "test")

    make.plain = plain
    return make


@pytest.fixture(scope="session")
def whole(settings, tmp_path_factory):
    """A run that was never interrupted, with everything kept: its folder and its rows."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(settings(keep="all"), folder)
