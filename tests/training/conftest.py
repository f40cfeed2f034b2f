import numpy as np
import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.training.batching import Sequence
from imm_jax.training.config import TrainingConfig


@pytest.fixture(scope="session")
def tiny(tiny_config, random_params):
    """A three-layer decoder with tied embeddings, and its parameters."""
    config = tiny_config("llama", tie_word_embeddings=True)
    return Decoder(config), random_params(config)


@pytest.fixture(scope="session")
def make_sequences():
    """Sequences that can be learned (each token follows from the one before), of mixed lengths."""

    def make(count, *, seed=0, low=4, high=20):
        rng = np.random.default_rng(seed)
        made = []
        for _ in range(count):
            start, length = rng.integers(0, 61), int(rng.integers(low, high))
            tokens = tuple(int(start + 7 * i) % 61 for i in range(length))
            made.append(Sequence(tokens, int(rng.integers(1, length))))
        return made

    return make


@pytest.fixture(scope="session")
def small_config():
    return TrainingConfig(
        learning_rate=1e-2, epochs=2, batch_size=8, micro_batch_size=3, max_length=32, bucket=8
    )
