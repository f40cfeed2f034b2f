"""Reading an answer on token ids as ``tasks.answers`` reads it as text, and the text to train on.

Both work on one sample, ``tokens [R]`` of which the first ``count`` were drawn. What counts ends
before the first of ``ENDS``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from imm_jax.laboratory.vocabulary import (
    ANSWER,
    BLANK,
    END,
    ENDS,
    MARKER,
    NEWLINE,
    SIGNS,
    SPACE,
    WORD,
)
from imm_jax.rounds.compiled import Language


def said(tokens_R: Int[Array, "R"], count: Int[Array, ""]) -> Int[Array, ""]:
    """How many tokens come before the end of the answer."""
    over = jnp.isin(tokens_R, jnp.array(ENDS)) | (jnp.arange(tokens_R.size) >= count)
    return _first(over, tokens_R.size)


def correct(
    tokens_R: Int[Array, "R"], count: Int[Array, ""], answer_A: Int[Array, "A"]
) -> Bool[Array, ""]:
    """Whether the first statement of an answer is ``answer_A`` (-1 after its last token).

    The marker counts where a word ends after it; where none does, ``Answer:`` at the beginning of a
    line. What is compared is the first line that follows with anything on it, without the blanks
    around it, or a bullet: the rule ``first`` of the answer type ``exact``.
    """
    size, at = tokens_R.size, jnp.arange(tokens_R.size)
    length = said(tokens_R, count)
    inside = at < length
    word = jnp.asarray(WORD)[tokens_R] & inside
    solid = inside & ~jnp.asarray(BLANK)[tokens_R]
    marked = (tokens_R == MARKER) & inside & ~jnp.append(word[1:], False)
    solid_before = jnp.append(-1, jax.lax.cummax(jnp.where(solid, at, -1))[:-1])
    line = jax.lax.cummax(jnp.where(tokens_R == NEWLINE, at, -1))
    headed = (tokens_R == ANSWER) & inside & (solid_before <= line)
    marker = _first(jnp.where(jnp.any(marked), marked, headed), size)
    start = _behind_bullet(tokens_R, solid, marker, _first(solid & (at > marker), size))
    stop = jnp.minimum(_first((tokens_R == NEWLINE) & (at > start), size), length)
    last = jnp.max(jnp.where(solid & (at < stop), at, -1))
    places = start + jnp.arange(answer_A.size)
    found = jnp.where(places <= last, tokens_R[jnp.minimum(places, size - 1)], -1)
    short = last - start < answer_A.size
    return (marker < size) & (start < size) & short & jnp.all(found == answer_A)


def _behind_bullet(
    tokens_R: Int[Array, "R"],
    solid: Bool[Array, "R"],
    marker: Int[Array, ""],
    start: Int[Array, ""],
) -> Int[Array, ""]:
    """Where an answer begins, behind a sign at ``start`` that is a bullet on a line below."""
    size, at = tokens_R.size, jnp.arange(tokens_R.size)
    sign = jnp.isin(tokens_R[jnp.minimum(start, size - 1)], jnp.array(SIGNS)) & (start < size)
    below = jnp.any((tokens_R == NEWLINE) & (at > marker) & (at < start))
    after = _first((tokens_R != SPACE) & (at > start), size)
    item = (after > start + 1) & (after < size) & solid[jnp.minimum(after, size - 1)]
    return jnp.where(sign & below & item, after, start)


def response(
    tokens_R: Int[Array, "R"], count: Int[Array, ""]
) -> tuple[Int[Array, "R2"], Int[Array, ""]]:
    """What to train on: a space, the answer without the blanks around it, the end token."""
    size, at = tokens_R.size, jnp.arange(tokens_R.size)
    solid = (at < said(tokens_R, count)) & ~jnp.asarray(BLANK)[tokens_R]
    start = _first(solid, size)
    length = jnp.maximum(jnp.max(jnp.where(solid, at, -1)) + 1 - start, 0)
    body = tokens_R[jnp.minimum(start + at, size - 1)]
    out = jnp.concatenate([jnp.array([SPACE]), jnp.where(at < length, body, END), jnp.array([END])])
    return out, length + 2


def _first(here: Bool[Array, "R"], otherwise: int) -> Int[Array, ""]:
    return jnp.where(jnp.any(here), jnp.argmax(here), otherwise)


LANGUAGE = Language(eos=ENDS, correct=correct, response=response)
