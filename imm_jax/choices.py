"""Multiple choice by log-likelihood: which option's text the model finds likeliest."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from imm_jax.errors import InputError, Interrupted
from imm_jax.evaluation import Answer, ask, make_prompts
from imm_jax.models.cache import KVCache, Prefix, extend
from imm_jax.models.decoder import Decoder, unembedding
from imm_jax.progress import Progress
from imm_jax.sampling.batch import LENGTH_BUCKET, PREFILL_ROWS
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.decode import decode_weights, grow, prefill
from imm_jax.sampling.prefix import bucket, make_prefix, shared_length
from imm_jax.tasks.answers import option_letters
from imm_jax.tasks.prompts import get_style
from imm_jax.tasks.types import Example, Task
from imm_jax.training.loss import token_scores

TEXT_BUCKET = 8  # texts of up to two of these are padded to a multiple of it
Row = tuple[tuple[int, ...], int]  # token ids of a prompt and a text, and how many are the prompt's


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceAnswer:
    """How likely the model finds each option of one question.

    Attributes:
      id: the question's.
      logprobs: of each option's text after the prompt, in nats: the sum over its tokens.
      lengths: of each option's text, in characters.
      gold: the place of the right option.
    """

    id: str
    logprobs: tuple[float, ...]
    lengths: tuple[int, ...]
    gold: int

    @property
    def correct(self) -> bool:
        """The likeliest option is the right one: ``acc`` of lm-evaluation-harness."""
        return int(np.argmax(self.logprobs)) == self.gold

    @property
    def correct_normalised(self) -> bool:
        """So is the likeliest for each character of its text: ``acc_norm`` there."""
        return int(np.argmax(np.divide(self.logprobs, self.lengths))) == self.gold


def ask_choices(
    model: Decoder,
    params: PyTree,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Example],
    *,
    style: str,
    shots: int = 0,
    batch_size: int = 16,
    label: str = "score",
    should_stop: Callable[[], bool] | None = None,
) -> list[ChoiceAnswer]:
    """Scores every option of ``questions``, in their order.

    The prompt holds the question alone; each option's text follows it as an answer would, and so do
    the right options' texts in the worked examples.

    Args:
      model: the decoder; its ``dtype`` is the type it computes in.
      params: its parameters, stacked or with unstacked layers. Weights in another floating type
        are cast once.
      tokenizer: a Hugging Face tokenizer.
      task: of the questions; gives the worked examples.
      questions: with options.
      style: prompt style, a name in ``imm_jax.tasks.prompts.STYLES``.
      shots: worked examples in the prompt, at most as many as the task has.
      batch_size: rows, one an option, that go through the model together.
      label: what the progress bar says.
      should_stop: asked between batches; gives up where it returns true.

    Raises:
      InputError: a question without options, an unknown style, or a row longer than the model's
        context.
      Interrupted: ``should_stop`` said so.
    """
    rows = choice_rows(model, tokenizer, task, questions, style=style, shots=shots)
    if not rows:
        return []
    sums, _ = score_rows(model, params, rows, batch_size, label, should_stop)
    answers, at = [], 0
    for question in questions:
        count = len(question.choices)
        answers.append(
            ChoiceAnswer(
                id=question.id,
                logprobs=tuple(map(float, sums[at : at + count])),
                lengths=tuple(map(len, question.choices)),
                gold=option_letters(count).index(question.answer),
            )
        )
        at += count
    return answers


def choice_rows(
    model: Decoder,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Example],
    *,
    style: str,
    shots: int = 0,
) -> list[Row]:
    """A row for every option of every question, in their order.

    Arguments and errors as in :func:`ask_choices`.
    """
    check_choices(task, questions)
    if not questions:
        return []
    prompts, lead = choice_prompts(task, questions, style, shots, tokenizer), get_style(style).lead
    rows = [
        encode(tokenizer, prompt.whole, lead + text, prompt.add_special_tokens)
        for prompt, question in zip(prompts, questions)
        for text in question.choices
    ]
    room, longest = model.config.max_position_embeddings, max(len(tokens) for tokens, _ in rows)
    if longest > room:
        raise InputError(
            f"task {task.name}: a question with an option has {longest} tokens, expected at most "
            f"the model's context of {room}"
        )
    return rows


def examine(
    model: Decoder,
    params: PyTree,
    tokenizer: Any,
    task: Task,
    questions: Sequence[Example],
    *,
    scoring: str,
    sampling: SamplingConfig,
    seed: int,
    rule: str,
    **settings: Any,
) -> list[Answer]:
    """One graded answer to each question, as a run evaluates.

    Where :func:`is_ranked` says so, by the likeliest option, in no sampled tokens, and
    ``sampling.batch_size`` rows go through the model together; else in words. ``settings`` and
    other arguments are those of :func:`ask_choices` and :func:`imm_jax.evaluation.ask`, errors too.
    """
    asked = model, params, tokenizer, task, questions
    if not is_ranked(scoring, task, questions):
        return ask(*asked, sampling=sampling, samples=1, seed=seed, rule=rule, **settings)
    answers, ranked = [], ask_choices(*asked, batch_size=sampling.batch_size, **settings)
    for question, found in zip(questions, ranked):
        best = int(np.argmax(found.logprobs))
        answers.append(
            Answer(
                id=question.id,
                sample=0,
                text=question.choices[best],
                answer=option_letters(len(question.choices))[best],
                correct=found.correct,
                tokens=0,
                logprob=found.logprobs[best],
                finish_reason="stop",
            )
        )
    return answers


def is_ranked(scoring: str, task: Task, questions: Sequence[Example]) -> bool:
    """Whether a run whose ``scoring`` is this ranks the options of these questions."""
    return scoring == "loglikelihood" and has_choices(task, questions)


def has_choices(task: Task, questions: Sequence[Example]) -> bool:
    """Whether every question has options to score."""
    asked = task.answer_type == "choice"
    return asked and all(question.choices and all(question.choices) for question in questions)


def check_choices(task: Task, questions: Sequence[Example]) -> None:
    """Raises InputError unless every question has options."""
    if not has_choices(task, questions):
        raise InputError(
            f"task {task.name}: its questions have no options to score, "
            "expected a multiple-choice task (or --scoring generate)"
        )


def choice_prompts(
    task: Task, questions: Sequence[Example], style: str, shots: int, tokenizer: Any
) -> list:
    """The prompts that options are scored after: without a list of options, as lm-eval has them."""
    examples = tuple(map(_cloze, task.shots[:shots]))
    asked = dataclasses.replace(task, train=(), test=(), shots=examples)
    return make_prompts(asked, list(map(_cloze, questions)), style, shots, tokenizer)


def _cloze(example: Example) -> Example:
    """The question without its options, answered by the right option's text."""
    if not example.choices:
        return example
    text = example.choices[option_letters(len(example.choices)).index(example.answer)]
    return dataclasses.replace(example, choices=None, solution=text)


def encode(tokenizer: Any, prompt: str, text: str, add_special_tokens: bool = True) -> Row:
    """Tokens of ``prompt + text`` and how many of them belong to the prompt.

    The whole is tokenized at once, as in lm-evaluation-harness. Where a token spans the seam it
    counts to the text.
    """
    whole, alone = (
        tokenizer(part, add_special_tokens=add_special_tokens)["input_ids"]
        for part in (prompt + text, prompt)
    )
    shared = 0
    while shared < min(len(whole) - 1, len(alone)) and whole[shared] == alone[shared]:
        shared += 1
    return tuple(whole), shared


def score_rows(
    model: Decoder,
    params: PyTree,
    rows: Sequence[Row],
    batch_size: int = 16,
    label: str = "score",
    should_stop: Callable[[], bool] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The log-probability of each row's text, and whether greedy decoding would write it.

    A prompt that several rows of a batch have runs through the model once. Arguments and errors as
    in :func:`ask_choices`.
    """
    weights = decode_weights(params, model.dtype)
    shared = shared_length([tokens[:prompt] for tokens, prompt in rows])
    prefix = make_prefix(model, weights, rows[0][0][:shared])
    # A text is scored from its prompt's last token on, or where that is empty from its own first.
    seams = [max(prompt, 1) - 1 for _, prompt in rows]
    heads = [tokens[shared:seam] for (tokens, _), seam in zip(rows, seams)]
    tails = [tokens[seam:] for (tokens, _), seam in zip(rows, seams)]
    # Rows of one prompt together, and like lengths.
    order = sorted(range(len(rows)), key=lambda i: (-len(heads[i]), heads[i], -len(tails[i])))
    most = max(Counter(heads).values())  # options that share a prompt
    size = min(batch_size, len(rows), PREFILL_ROWS * most)
    sums, greedy = np.zeros(len(rows)), np.zeros(len(rows), bool)
    with Progress(label, len(rows), "option") as progress:
        for start in range(0, len(rows), size):
            if should_stop is not None and should_stop():
                raise Interrupted(f"{label}: stopped")
            places = order[start : start + size]
            batch = _arrays([heads[i] for i in places], [tails[i] for i in places], size)
            found = row_scores(model, weights, prefix, batch)
            sums[places], greedy[places] = (np.asarray(part)[: len(places)] for part in found)
            progress.update(len(places))
    return sums, greedy


class Rows(NamedTuple):
    """A batch of texts and the prompts they follow, both padded on the right.

    Attributes:
      prompts: ``[Q, P]`` token ids, each prompt once, without its last token.
      source: ``[B]`` which prompt a row has.
      start: ``[B]`` how many tokens that one has.
      tokens: ``[B, T]`` token ids: the prompt's last, then the text.
      mask: ``[B, T]`` float32, 1 where the token is scored; 0 for a row's first.
    """

    prompts: Int[Array, "Q P"]
    source: Int[Array, "B"]
    start: Int[Array, "B"]
    tokens: Int[Array, "B T"]
    mask: Float[Array, "B T"]


@functools.partial(jax.jit, static_argnames="model")
def row_scores(
    model: Decoder, weights: PyTree, prefix: Prefix | None, rows: Rows
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Over each row's tokens where the mask is 1: the sum of their log-probabilities, float32, and
    whether each is the likeliest.

    Logits exist for a chunk of the masked tokens at a time (``training.loss.token_scores``).

    Args:
      model: the decoder.
      weights: its parameters with unstacked layers, in the type it computes in.
      prefix: what comes before every prompt; None for nothing.
      rows: what is scored.
    """
    layers = prefill(model, weights, prefix, rows.prompts)
    layers = grow(
        jax.tree.map(lambda x: x[rows.source], layers), rows.prompts.shape[1] + rows.tokens.shape[1]
    )
    cache = KVCache(layers, prefix)
    hidden_BTD, _ = extend(model, weights, cache, rows.tokens, rows.start)
    scored_BT = jnp.roll(rows.mask, -1, axis=1)
    logprobs_BT, likeliest_BT = token_scores(
        hidden_BTD,
        unembedding(weights),
        jnp.roll(rows.tokens, -1, axis=1),
        scored_BT,
        softcap=model.config.final_logit_softcapping,
    )
    return logprobs_BT.sum(axis=1), (likeliest_BT | (scored_BT == 0)).all(axis=1)


def _arrays(heads: Sequence[tuple], tails: Sequence[tuple], size: int) -> Rows:
    """A batch of ``size`` rows in one of few shapes; rows that are not there score nothing."""
    places = {head: place for place, head in enumerate(dict.fromkeys(heads))}
    length = bucket(max(map(len, heads)), LENGTH_BUCKET)
    prompts = np.zeros((1 << (len(places) - 1).bit_length(), length), np.int32)
    for head, place in places.items():
        prompts[place, : len(head)] = head
    source, start = np.zeros((2, size), np.int32)
    longest = max(map(len, tails))
    width = bucket(longest, TEXT_BUCKET if longest <= 2 * TEXT_BUCKET else LENGTH_BUCKET)
    tokens, mask = np.zeros((size, width), np.int32), np.zeros((size, width), np.float32)
    for i, (head, tail) in enumerate(zip(heads, tails)):
        source[i], start[i] = places[head], len(head)
        tokens[i, : len(tail)] = tail
        mask[i, 1 : len(tail)] = 1
    return Rows(prompts, source, start, tokens, mask)
