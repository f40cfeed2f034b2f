"""Answers read on token ids are those read as text."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imm_jax.laboratory.check import correct, response
from imm_jax.laboratory.vocabulary import END, IDS, TOKENS, encode, make_tokenizer
from imm_jax.sampling.text import finish
from imm_jax.tasks.answers import grade
from imm_jax.tasks.prompts import get_style
from imm_jax.tasks.types import Example

SIZE, GOLD = 14, "46"
TOKENIZER = make_tokenizer()
CORRECT, RESPONSE = jax.jit(correct), jax.jit(response)
# Mostly what an answer is made of, so that right ones come up.
PIECES = st.one_of(
    st.sampled_from(
        [";The answer is", " ", "\n", "4", "6", "46", " 46", "<|end|>", "Answer:", "- "]
    ),
    st.sampled_from(TOKENS),
    st.sampled_from([";The answer is 46", "\nAnswer:46", "Answer:\n 46", ";The answer is\n"]),
)


def as_text(tokens: list[int]) -> str:
    """What the host's sampler makes of sampled tokens."""
    for stop in range(1, len(tokens) + 1):
        sample = finish(
            TOKENIZER, tokens[:stop], [0.0] * stop,
            stop=get_style("plain").stops, eos=(END,), limit=len(tokens),
        )  # fmt: skip
        if sample is not None:
            return sample.text


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=SIZE))
@example([" ", "5", ";The answer is", " ", "4", "6", "<|end|>", "7"])
@example([";The answer is", "5", ";The answer is 46"])
@example([";The answer is", "Question:", "4", "6"])
@example([";The answer is", "\n", " ", "4", "6", " ", "\n", "5"])
@example([";The answer is", "Answer:", ";The answer is 46"])
@example(["Answer:", "46"])
@example(["5", "\n", " ", "Answer:", "\n", "46", "\n", "5"])
@example(["5", "Answer:", "46"])
@example([" ", "Answer:", "Answer:", "46"])
@example(["Answer:", "46", "\n", ";The answer is", "5"])
@example(["Answer:", "46", ";The answer is", "4"])
@example(["Question:", "Answer:", "46"])
@example([";The answer is\n", " ", "-", " ", " ", "46"])
@example([";The answer is", " ", "-", " ", "46"])
@example([";The answer is\n", "+", "46"])
@example([";The answer is\n", "-", " ", "\n", "46"])
@example([";The answer is\n", "-", " ", "<|end|>", "46"])
@example([" ", " ", "46", "\n"])
@example([" "])
def test_the_grade_and_the_training_text_are_those_of_the_host(pieces):
    tokens = encode("".join(pieces))[:SIZE]
    padded = jnp.array(tokens + [IDS["6"]] * (SIZE - len(tokens)))
    text = as_text(tokens)
    question = Example(id="0", question="", answer=GOLD)
    right = CORRECT(padded, len(tokens), jnp.array([*encode(GOLD), -1]))
    assert bool(right) == grade("exact", question, text).correct
    written, length = RESPONSE(padded, len(tokens))
    assert written[: int(length)].tolist() == [*encode(" " + text.strip()), END]


def test_the_tokenizer_reads_and_writes_the_vocabulary():
    rng = np.random.default_rng(0)
    for row in rng.integers(1, len(TOKENS), (50, 12)).tolist():
        text = "".join(TOKENS[i] for i in row)
        assert TOKENIZER(text)["input_ids"] == encode(text) == row
        assert TOKENIZER.decode(row) == text
