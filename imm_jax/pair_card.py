"""The model card of a merge of two models on the command line, without a recipe."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

import imm_jax


def pair_card(
    base: str, tuned: str, *, checkpoint: bool, weight: float, rate: float, seed: int, name: str
) -> str:
    """A card in the hub's format, with the two models, the method and the command.

    Args:
      base: what the command calls the base model.
      tuned: what it calls the other.
      checkpoint: whether that is an Orbax checkpoint.
      weight: alpha.
      rate: DARE's p; 0: nothing is dropped.
      seed: of what is dropped.
      name: the merged model's.
    """
    method = "dare_linear" if rate else "wise_ft"
    head = {"library_name": "transformers", "tags": ["merge", "imm_jax", method]}
    models = [base] if checkpoint else [base, tuned]
    if hub := [model for model in models if _is_hub_id(model)]:
        head["base_model"] = hub
    change = f"drop_and_rescale({rate:g})(tuned - base)" if rate else "(tuned - base)"
    command = shlex.join(_command(base, tuned, checkpoint, weight, rate, seed))
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {name}

A merge of language models by imm_jax {imm_jax.__version__}: {method},

    base + {weight:g} * {change}

computed in float32, rounded once. Configuration and tokenizer are the base's.

## Models

- base: {base}
- tuned: {tuned}{" (an Orbax checkpoint)" if checkpoint else ""}

It is run by

    {command}
"""


def _is_hub_id(model: str) -> bool:
    return not model.startswith("pypi:") and not Path(model).exists()


def _command(
    base: str, tuned: str, checkpoint: bool, weight: float, rate: float, seed: int
) -> Sequence[str]:
    words = ["imm-jax", "merge", base, *(["--from"] if checkpoint else []), tuned]
    words += ["--output", "FOLDER", "--weight", repr(weight)]
    return [*words, "--drop-rate", repr(rate), "--seed", str(seed)] if rate else words
