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
      ranking: FLOPs of ranking all these questions' options; None where they are answered in words.
    """

    shared: int
    lengths: Mapping[str, int]
    ranking: int | None = None


def prompt_tokens(ids: Sequence[str], encoded: Sequence[Sequence[int]]) -> PromptTokens:
    """Counts encoded prompts."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(encoded), max(encoded)))
    return PromptTokens(sum(1 for _ in alike), dict(zip(ids, map(len, encoded))))


def asking_flops(config: ModelConfig, prompts: PromptTokens, rows: Sequence[dict]) -> int:
    """FLOPs of the answers ``rows`` (graded, as JSON) to all questions of ``prompts``."""
    if prompts.ranking is not None:
        return prompts.ranking
    return sampling_flops(config, prompts, rows)


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


def ranking_flops(config: ModelConfig, rows: Sequence[tuple[Sequence[int], int]]) -> int:
    """FLOPs of scoring options: each prompt once, and after it the text of each option.

    Args:
      config: the architecture.
      rows: token ids of a prompt and an option's text, and how many are the prompt's, as
        ``choices.choice_rows`` has them. A text begins with its prompt's last token, whose logits
        score its first; the head meets as many tokens as the text has.
    """
    prompts = dict.fromkeys(tuple(tokens[: max(seam, 1) - 1]) for tokens, seam in rows)
    shared = prompt_tokens(range(len(prompts)), list(prompts)).shared
    total = forward_flops(config, shared, shared / 2, scored=0)
    for prompt in prompts:
        own = len(prompt) - shared
        total += forward_flops(config, own, shared + own / 2, scored=0)
    for tokens, seam in rows:
        before = max(seam, 1) - 1
        new = len(tokens) - 1 - before
        total += forward_flops(config, new, before + new / 2)
    return total


def fit_flops(
    config: ModelConfig, sequences: Sequence[TokenSequence], training: TrainingConfig, scored: int
) -> int:
    """FLOPs of a fine-tune of which ``scored`` response tokens met the head.

    With adapters, whose weights' gradients cost next to nothing, two thirds: forward, and backward
    through activations.
    """
    longest = min(training.max_length, config.max_position_embeddings)
    kept = prepare(sequences, longest).sequences
    lengths = [len(sequence.tokens) - 1 for sequence in kept] * training.epochs
    flops = train_flops(config, lengths, scored)
    return flops if training.lora is None else 2 * flops // 3
