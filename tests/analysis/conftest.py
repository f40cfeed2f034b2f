"""Tiny models and solutions to look at them with."""

import numpy as np
import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.training.batching import Sequence


@pytest.fixture(scope="session")
def solutions():
    """Five sequences of 12 tokens, two in a packed row, with responses of 4 to 9."""
    rng = np.random.default_rng(5)
    starts = [3, 8, 4, 6, 7]
    return [Sequence(tuple(rng.integers(2, 320, 12).tolist()), start) for start in starts]


@pytest.fixture(scope="session", params=["llama", "gemma3_text"])
def tiny(request, tiny_config, random_params):
    """A model without, and one with, local layers and norms behind the products."""
    config = tiny_config(request.param)
    return Decoder(config), random_params(config)


@pytest.fixture(scope="session")
def llama(tiny_config, random_params):
    config = tiny_config("llama")
    return Decoder(config), random_params(config)
