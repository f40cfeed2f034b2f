"""What a model says of one sequence, by the plain forward pass, in float64."""

from functools import partial

import jax
import numpy as np


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@partial(jax.jit, static_argnums=0)
def _forward(model, params, tokens):
    return model.apply({"params": params}, tokens[None])[0]


def logits_in(model, params):
    """A function from token ids to plain logits."""

    def logits_of(tokens):
        padded = np.pad(tokens, (0, 160 - len(tokens)))  # one shape; causality hides the rest
        return np.asarray(_forward(model, params, padded), np.float64)[: len(tokens)]

    return logits_of
