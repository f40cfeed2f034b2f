"""The questions that a recipe's methods ask: from parameters to prompts and their tokens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from imm_jax.errors import InputError
from imm_jax.evaluation import make_prompts
from imm_jax.models.decoder import Decoder
from imm_jax.sampling.checks import check_lengths
from imm_jax.sampling.engine import end_tokens
from imm_jax.tasks.prompts import get_style, response_text
from imm_jax.tasks.sources import make_task
from imm_jax.tasks.types import Example, Task

Tokens = tuple[int, ...]


class Questions(NamedTuple):
    """Questions of a task, with the prompt of each and its token ids."""

    task: Task
    examples: tuple[Example, ...]
    prompts: tuple[str, ...]
    tokens: tuple[Tokens, ...]


def make_questions(
    spec: str, settings: Mapping[str, Any], model: Decoder, tokenizer: Any, where: str, new: int = 0
) -> Questions:
    """Reads a task and writes its prompts.

    Args:
      spec: the task; see ``imm_jax.tasks.make_task``.
      settings: ``questions``, ``split``, ``style``, ``shots`` and ``seed``, as a recipe has them.
      model: whose context the prompts must fit; no weights are needed.
      tokenizer: of the models.
      where: begins the message of an error.
      new: tokens that are to follow each prompt.

    Raises:
      InputError: the task cannot be made or has no such questions, or a prompt cannot be written or
        does not fit; names the parameter.
    """
    split, style = settings["split"], settings["style"]
    with _naming(f"{where}.style"):
        get_style(style)
    sizes = {"train_size": 0, "test_size": 0, f"{split}_size": settings["questions"]}
    with _naming(f"{where}.task"):
        task = make_task(spec, seed=settings["seed"], **sizes)
        examples = task.train if split == "train" else task.test
        if not examples:
            other = "test" if split == "train" else "train"
            raise InputError(
                f"{spec} has no {split} questions, expected some (split: {other} takes the others)"
            )
    with _naming(f"{where}.style"):
        prompts = make_prompts(task, examples, style, settings["shots"], tokenizer)
    texts = tuple(prompt.whole for prompt in prompts)
    special = all(prompt.add_special_tokens for prompt in prompts)
    tokens = tuple(map(tuple, tokenizer(list(texts), add_special_tokens=special)["input_ids"]))
    with _naming(f"{where}.task"):
        check_lengths(model, tokens, new)
    return Questions(task, examples, texts, tokens)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def solutions(
    questions: Questions, style: str, model: Decoder, tokenizer: Any, where: str
) -> tuple[Tokens, ...]:
    """The token ids of each question's worked solution after its prompt, with the end token.

    Tokenized apart from the prompt, as where a model answers.

    Raises:
      InputError: prompt and solution do not fit the model; ``where`` begins the message.
    """
    ends = [tokenizer.eos_token_id]
    ends = sorted(end_tokens(model, tokenizer)) if ends == [None] else ends
    texts = [response_text(example, style) for example in questions.examples]
    found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    responses = tuple((*row, *ends[:1]) for row in found)
    both = [prompt + row for prompt, row in zip(questions.tokens, responses, strict=True)]
    with _naming(f"{where}.task"):
        check_lengths(model, both, 0)
    return responses


def pad_prompts(
    tokens: Sequence[Tokens], batch_size: int
) -> tuple[Int[np.ndarray, "N B T"], Bool[np.ndarray, "N B T"]]:
    """Batches of prompts, padded on the right and with whole rows, and where there are tokens."""
    size = min(batch_size, len(tokens))
    count = -(-len(tokens) // size)
    ids = np.zeros((count * size, max(map(len, tokens))), np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(tokens):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = True
    return ids.reshape(count, size, -1), mask.reshape(count, size, -1)


def pad_answers(
    prompts: Sequence[Tokens], responses: Sequence[Tokens]
) -> tuple[
    Int[np.ndarray, "N T"], Int[np.ndarray, "N T"], Float[np.ndarray, "N T"]
]:  # fmt: skip
    """Inputs, the tokens that follow them, and 1 where those belong to the response."""
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True)) - 1
    inputs, targets = (np.zeros((len(prompts), width), np.int32) for _ in range(2))
    mask = np.zeros(inputs.shape, np.float32)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        whole = prompt + response
        inputs[row, : len(whole) - 1], targets[row, : len(whole) - 1] = whole[:-1], whole[1:]
        mask[row, len(prompt) - 1 : len(whole) - 1] = 1
    return inputs, targets, mask


def interleave(rows: Sequence[Sequence[Tokens]]) -> list[Tokens]:
    """One of each task after another, until all have had their turn."""
    longest = max(map(len, rows))
    return [row[i] for i in range(longest) for row in rows if i < len(row)]
