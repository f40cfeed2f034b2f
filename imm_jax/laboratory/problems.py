"""Tasks drawn on the device: questions, worked steps and answers as token ids.

A kind of task is a function ``(key, n) -> (question [n, q], steps [n, s], answer [n, a])`` of ids,
all of one width, so nothing is padded inside a text.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from imm_jax.laboratory.vocabulary import END, TOKENS, ZERO, encode
from imm_jax.rounds.compiled import Questions
from imm_jax.sampling.engine import hash_ids
from imm_jax.tasks.types import Example, Task

PLACES = 3  # digits of a number
LENGTH = 4  # digits of a row to sort, turn round, copy or add up
BITS = 5


class Problems(NamedTuple):
    r"""Questions with their worked responses, rows padded on the right.

    Attributes:
      prompt: ``[n, PROMPT]``, ``Question: ...\nAnswer:``.
      prompt_length: ``[n]``.
      response: ``[n, RESPONSE]``, steps and answer, from the leading space to the end token.
      response_length: ``[n]``.
      answer: ``[n, GOLD]`` with -1 after its last token.
    """

    prompt: Int[Array, "n P"]
    prompt_length: Int[Array, "n"]
    response: Int[Array, "n R"]
    response_length: Int[Array, "n"]
    answer: Int[Array, "n A"]


def _digits(numbers: Array, places: int) -> Array:
    """Digits ``[n, places]``, the highest first."""
    return numbers[:, None] // 10 ** np.arange(places)[::-1] % 10


def _row(*parts: Array | str) -> Array:
    """Texts and digits side by side: digits become tokens, a text is the same in each row."""
    count = next(len(part) for part in parts if not isinstance(part, str))
    columns = [
        jnp.tile(jnp.array(encode(part), jnp.int32), (count, 1))
        if isinstance(part, str)
        else part.astype(jnp.int32) + ZERO
        for part in parts
    ]
    return jnp.concatenate(columns, axis=1)


def _numbers(key: Array, n: int) -> tuple[Array, Array]:
    return tuple(jax.random.randint(key, (2, n), 0, 10**PLACES))


def addition(key: Array, n: int) -> tuple[Array, Array, Array]:
    """``473+859``: from the units on, what each column comes to with the carry: ``12,13,13``."""
    a, b = _numbers(key, n)
    columns, carry = [], 0
    for x, y in zip(_digits(a, PLACES).T[::-1], _digits(b, PLACES).T[::-1]):
        columns.append(x + y + carry)
        carry = columns[-1] // 10
    steps = _row(*_listed([_digits(column, 2) for column in columns]))
    question = _row(_digits(a, PLACES), "+", _digits(b, PLACES))
    return question, steps, _row(_digits(a + b, PLACES + 1))


def subtraction(key: Array, n: int) -> tuple[Array, Array, Array]:
    """``859-473``: from the units on, whether each column borrows, and its digit: ``06,18,03``."""
    a, b = _numbers(key, n)
    a, b = jnp.maximum(a, b), jnp.minimum(a, b)
    columns, borrow = [], 0
    for x, y in zip(_digits(a, PLACES).T[::-1], _digits(b, PLACES).T[::-1]):
        left = x - y - borrow
        borrow = (left < 0).astype(jnp.int32)
        columns.append(jnp.stack([borrow, left % 10], axis=1))
    question = _row(_digits(a, PLACES), "-", _digits(b, PLACES))
    return question, _row(*_listed(columns)), _row(_digits(a - b, PLACES))


def comparison(key: Array, n: int) -> tuple[Array, Array, Array]:
    """``473v859``: the larger number."""
    a, b = _numbers(key, n)
    question = _row(_digits(a, PLACES), "v", _digits(b, PLACES))
    return question, question[:, :0], _row(_digits(jnp.maximum(a, b), PLACES))


def sorting(key: Array, n: int) -> tuple[Array, Array, Array]:
    """``s5291``: the digits seen so far, in order: ``5,25,259``; then all of them."""
    digits = jax.random.randint(key, (n, LENGTH), 0, 10)
    seen = [jnp.sort(digits[:, :count], axis=1) for count in range(1, LENGTH + 1)]
    return _row("s", digits), _row(*_listed(seen[:-1])), _row(seen[-1])


def reversal(key: Array, n: int) -> tuple[Array, Array, Array]:
    """``r5291``: from back to front."""
    digits = jax.random.randint(key, (n, LENGTH), 0, 10)
    question = _row("r", digits)
    return question, question[:, :0], _row(digits[:, ::-1])


def parity(key: Array, n: int) -> tuple[Array, Array, Array]:
    """``p01101``: the parity of the bits so far, after each bit; the last is the answer."""
    bits = jax.random.randint(key, (n, BITS), 0, 2)
    so_far = jnp.cumsum(bits, axis=1) % 2
    return _row("p", bits), _row(so_far), _row(so_far[:, -1:])


def copy(key: Array, n: int) -> tuple[Array, Array, Array]:
    """``c5291``: the same digits."""
    digits = jax.random.randint(key, (n, LENGTH), 0, 10)
    question = _row("c", digits)
    return question, question[:, :0], _row(digits)


def modular_sum(key: Array, n: int) -> tuple[Array, Array, Array]:
    """``m5291``: the sum of the digits so far, modulo 10, after each; the last is the answer."""
    digits = jax.random.randint(key, (n, LENGTH), 0, 10)
    so_far = jnp.cumsum(digits, axis=1) % 10
    return _row("m", digits), _row(so_far), _row(so_far[:, -1:])


def _listed(parts: list[Array]) -> list[Array | str]:
    return [piece for part in parts for piece in (",", part)][1:]


Kind = Callable[[Array, int], tuple[Array, Array, Array]]
KINDS: dict[str, Kind] = {
    "addition": addition,
    "subtraction": subtraction,
    "comparison": comparison,
    "sorting": sorting,
    "reversal": reversal,
    "parity": parity,
    "copy": copy,
    "modular_sum": modular_sum,
}
PROMPT, RESPONSE, GOLD = 4 + 2 * PLACES + 1, 4 + 3 * PLACES - 1 + PLACES + 1, PLACES + 1


@partial(jax.jit, static_argnames=("kind", "n"))
def draw(kind: str, key: Array, n: int) -> Problems:
    """``n`` problems of one kind."""
    question, steps, answer = KINDS[kind](key, n)
    prompt = _row("Question: ", question - ZERO, "\nAnswer:")
    response = _row(" ", steps - ZERO, ";The answer is ", answer - ZERO, TOKENS[END])
    full = lambda array: jnp.full(n, array.shape[1], jnp.int32)
    pad = lambda array, width, fill: jnp.pad(
        array, ((0, 0), (0, width - array.shape[1])), constant_values=fill
    )
    return Problems(
        pad(prompt, PROMPT, END),
        full(prompt),
        pad(response, RESPONSE, END),
        full(response),
        pad(answer, GOLD, -1),
    )


def mixture(key: Array, counts: dict[str, int]) -> Problems:
    """So many problems of each kind, one kind after another."""
    drawn = [
        draw(kind, jax.random.fold_in(key, i), n) for i, (kind, n) in enumerate(counts.items())
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)


def ids_of(kind: str, split: str, count: int) -> list[str]:
    """The ids of a task's questions, which seed their samples."""
    return [f"{kind}/{split}/{number}" for number in range(count)]


def questions(problems: Problems, ids: list[str]) -> Questions:
    """What compiled rounds ask: problems without their worked responses."""
    return Questions(
        problems.prompt, problems.prompt_length, problems.answer, jnp.asarray(hash_ids(ids))
    )


def to_task(kind: str, **splits: tuple[Problems, list[str]]) -> Task:
    """The same questions as text, for the host's loop: ``to_task(kind, train=..., test=...)``."""
    examples = {
        split: tuple(
            Example(id=name, question=question, answer=answer, kind=kind)
            for name, question, answer in zip(ids, *_texts(problems))
        )
        for split, (problems, ids) in splits.items()
    }
    return Task(
        name=kind,
        train=examples.get("train", ()),
        test=examples.get("test", ()),
        answer_type="exact",
        source="laboratory",
    )


def _texts(problems: Problems) -> tuple[list[str], list[str]]:
    spell = lambda ids: "".join(TOKENS[i] for i in ids if i >= 0)
    prompts = [row[:n] for row, n in zip(*map(np.asarray, problems[:2]))]
    # Between "Question: " and "\nAnswer:", two tokens each.
    return [spell(row[2:-2]) for row in prompts], [
        spell(row) for row in np.asarray(problems.answer)
    ]
