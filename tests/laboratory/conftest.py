"""A tiny model that knows the form of an answer and guesses at its content."""

import jax
import pytest

from imm_jax.laboratory.pretraining import begin, init_params, make_pretrain
from imm_jax.laboratory.vocabulary import TOKENS
from imm_jax.models.decoder import Decoder
from imm_jax.training.config import TrainingConfig


@pytest.fixture(scope="session")
def guesser(tiny_config):
    """``(model, params)``: after some practice on parities it gets about half of them right."""
    config = tiny_config(
        "llama", vocab_size=len(TOKENS), num_hidden_layers=2, tie_word_embeddings=True,
        pad_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    model, training = Decoder(config), TrainingConfig(learning_rate=1e-2, remat=False)
    advance = make_pretrain(model, {"parity": 16, "modular_sum": 8}, training, jax.random.key(0))
    state, _ = advance(begin(init_params(config, 0), training, 120), 120)
    return model, state.params
