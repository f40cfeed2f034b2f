"""Floating-point operations that a model needs, by arithmetic: what its speed is measured against.

Model FLOPs utilisation (MFU) is these over seconds over the peak of the device (Chowdhery et al.,
arXiv 2204.02311, appendix B). A multiplication and an addition count two. Counted are the matrix
products and attention that the mathematics asks for: neither padding, nor what is computed a second
time (remat), nor norms, activations, softmax, the embedding's look-up or the optimizer.

Letters: N_m weights in matrix products, head included, embedding not; L layers, H heads of E.
"""

from collections.abc import Iterable
from math import prod

from imm_jax.models.config import ModelConfig
from imm_jax.models.layout import param_shapes


def forward_flops(
    config: ModelConfig, tokens: int, context: float, scored: int | None = None
) -> int:
    """Of running ``tokens`` through the model, each over ``context`` keys::

        2 N_m tokens + 4 H E tokens sum_l min(context, window_l)

    A decode step of B rows is ``forward_flops(config, B, mean length)``; a sequence of T tokens
    taken at once is ``forward_flops(config, T, T / 2)`` where no window is shorter than T.

    Args:
      config: the architecture.
      tokens: how many are run.
      context: keys that a token attends to, at the mean.
      scored: tokens that meet the head; None: all.
    """
    widths = (context if window is None else min(context, window) for window in config.windows)
    return _flops(config, tokens, tokens * sum(widths), scored)


def train_flops(config: ModelConfig, lengths: Iterable[int], scored: int | None = None) -> int:
    """Of forward and backward over sequences of ``lengths``, causal attention counted half::

        6 N_m tokens + 12 H E sum_l sum_T pairs(T, window_l)

    where ``pairs`` is ``T^2 / 2``, or ``T w - w^2 / 2`` where the window w is shorter than T. The
    backward pass costs twice the forward pass. A fine-tune that trains adapters alone needs a third
    less than this in the layers, which is not taken off.

    Args:
      config: the architecture.
      lengths: tokens run of each sequence (one less than it has: the last predicts nothing).
      scored: tokens that meet the head; None: all, the usual convention.
    """
    lengths = list(lengths)
    pairs = sum(_pairs(length, window) for window in config.windows for length in lengths)
    return 3 * _flops(config, sum(lengths), pairs, scored)


def _pairs(length: int, window: int | None) -> float:
    reach = length if window is None else min(length, window)
    return length * reach - reach**2 / 2


def _flops(config: ModelConfig, tokens: int, pairs: float, scored: int | None) -> int:
    """``pairs`` are of a token and a key it attends to, over all layers."""
    shapes = param_shapes(config)
    layers = sum(prod(s) for p, s in shapes.items() if p.startswith("layers/") and "/kernel" in p)
    head = config.vocab_size * config.hidden_size
    products = layers * tokens + head * (tokens if scored is None else scored)
    return round(2 * products + 4 * config.num_attention_heads * config.head_dim * pairs)
