"""Floating-point operations that a round asks for, from the lengths of its prompts and answers."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from imm_jax.models.config import ModelConfig
from imm_jax.training.batching import Sequence as TokenSequence
from imm_jax.training.batching import prepare
from imm_jax.training.config import TrainingConfig
from imm_jax.training.flops import forward_flops, train_flops


class PromptTokens(NamedTuple):
    """How long the prompts of some questions are.

    Attributes:
      shared: tokens that all have in common at their start.
      lengths: tokens of each prompt, by its question's id.
    """

    shared: int
    lengths: Mapping[str, int]


def prompt_tokens(ids: Sequence[str], encoded: Sequence[Sequence[int]]) -> PromptTokens:
    """Counts encoded prompts."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(encoded), max(encoded)))
    return PromptTokens(sum(1 for _ in alike), dict(zip(ids, map(len, encoded))))


def sampling_flops(config: ModelConfig, prompts: PromptTokens, rows: Sequence[dict]) -> int:
    """FLOPs of sampling ``rows`` (graded answers as JSON): each prompt and each token once.

    The tokens that all prompts share count once; a prompt's tokens do not meet the head.
    """
    asked, shared = dict.fromkeys(row["id"] for row in rows), prompts.shared
    total = forward_flops(config, shared, shared / 2, scored=0)
    for name in asked:
        own = prompts.lengths[name] - shared
        total += forward_flops(config, own, shared + own / 2, scored=0)
    for row in rows:
        new = row["tokens"]
        total += forward_flops(config, new, prompts.lengths[row["id"]] + new / 2)
    return total


def fit_flops(
    config: ModelConfig, sequences: Sequence[TokenSequence], training: TrainingConfig, scored: int
) -> int:
    """FLOPs of a fine-tune of which ``scored`` response tokens met the head.

    With adapters, whose weights' gradients cost next to nothing, two thirds: forward, and backward
    through activations.
    """
    kept = prepare(sequences, training.max_length).sequences
    lengths = [len(sequence.tokens) - 1 for sequence in kept] * training.epochs
    flops = train_flops(config, lengths, scored)
    return flops if training.lora is None else 2 * flops // 3
