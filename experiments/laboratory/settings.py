"""What the laboratory's scripts share: the model, its pretraining, the questions, the rounds."""

import platform
import shlex
import sys
from pathlib import Path

import jax

from imm_jax.laboratory.check import LANGUAGE
from imm_jax.laboratory.problems import KINDS, RESPONSE, draw, ids_of, questions
from imm_jax.laboratory.vocabulary import END, TOKENS
from imm_jax.models.config import ModelConfig
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.compiled import Program
from imm_jax.sampling.config import SamplingConfig
from imm_jax.training.config import TrainingConfig

RESULTS = Path(__file__).parents[1] / "results" / "laboratory"
MODEL = Path("runs/laboratory/model")
CONFIG = ModelConfig(
    model_type="llama", vocab_size=len(TOKENS), hidden_size=128, intermediate_size=544,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=END, initializer_range=0.05,
)  # fmt: skip

# The practised task is rare in pretraining, so that there is room for it to improve.
PRACTISED = "addition"
OTHERS = tuple(kind for kind in KINDS if kind != PRACTISED)
NAMES = (PRACTISED, *OTHERS)  # of the test questions, in their order
PRETRAINING = TrainingConfig(learning_rate=3e-3, b2=0.98, remat=False, loss_chunk=4096)
STEPS, BATCH = 1600, {PRACTISED: 2} | dict.fromkeys(OTHERS, 8)
LEARNED, MOST_STEPS = 0.4, 4 * STEPS  # accuracy in the practised task, or steps, that end it

QUESTIONS, TESTS, OTHER_TESTS = 64, 64, 16
ROUNDS = 8
SIDE_BY_SIDE = 16  # runs; all 64 at once would take over 5 GB
SAMPLING = SamplingConfig(max_new_tokens=RESPONSE, temperature=0.7)
EVALUATION = SamplingConfig(max_new_tokens=RESPONSE, temperature=0.0)
FINE_TUNING = TrainingConfig(
    learning_rate=1e-4, epochs=4, batch_size=16, micro_batch_size=16, packing=False, remat=False,
    loss_chunk=2048,
)  # fmt: skip


def program(**changes) -> Program:
    """What all runs have in common."""
    same = {
        "model": Decoder(CONFIG),
        "language": LANGUAGE,
        "rounds": ROUNDS,
        "samples": 4,
        "sampling": SAMPLING,
        "evaluation": EVALUATION,
        "training": FINE_TUNING,
    }
    return Program(**(same | changes))


def drawn(kind: str, split: str, count: int):
    """Problems of one kind and the ids of their questions; other splits are drawn apart."""
    numbers = list(KINDS).index(kind), {"train": 0, "test": 1}[split]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(2025), numbers[0]), numbers[1])
    return draw(kind, key, count), ids_of(kind, split, count)


def train_questions(count: int = QUESTIONS):
    return questions(*drawn(PRACTISED, "train", count))


def test_questions():
    """The practised task's first, then the others'."""
    return (
        questions(*drawn(PRACTISED, "test", TESTS)),
        *(questions(*drawn(kind, "test", OTHER_TESTS)) for kind in OTHERS),
    )


def record() -> dict:
    """The command and the machine, for a result's file."""
    device = jax.devices()[0]
    return {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": f"{len(jax.devices())} x {device.device_kind}, {platform.machine()}",
        "jax": jax.__version__,
    }
