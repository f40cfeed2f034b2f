"""Tiny models and solutions to look at them with."""

import numpy as np
import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.training.batching import Sequence


@pytest.fixture(scope="session")
def solutions():
    """Five sequences of 9 or 16 tokens with responses of 3 to 9; some share a packed row."""
    rng = np.random.default_rng(5)
    lengths = [(9, 3), (16, 9), (9, 4), (9, 6), (16, 7)]
    return [Sequence(tuple(rng.integers(2, 320, n).tolist()), start) for n, start in lengths]


@pytest.fixture(scope="session", params=["llama", "gemma3_text"])
def tiny(request, tiny_config, random_params):
    """A model without, and one with, local layers and norms behind the products."""
    config = tiny_config(request.param)
    return Decoder(config), random_params(config)


@pytest.fixture(scope="session")
def llama(tiny_config, random_params):
    config = tiny_config("llama")
    return Decoder(config), random_params(config)
