"""Problems drawn on the device, worked out again in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.laboratory.check import correct, response
from imm_jax.laboratory.problems import KINDS, draw, ids_of, mixture, questions, to_task
from imm_jax.laboratory.vocabulary import TOKENS, encode
from imm_jax.sampling.engine import _keys, sample_keys
from imm_jax.tasks.prompts import render


def work(kind: str, question: str) -> tuple[str, str]:
    """Steps and answer of a question, in plain Python."""
    if kind in ("addition", "subtraction", "comparison"):
        a, b = question[:3], question[4:]
        if kind == "comparison":
            return "", max(a, b)
        steps, carry = [], 0
        for x, y in zip(map(int, a[::-1]), map(int, b[::-1])):
            if kind == "addition":
                steps.append(f"{x + y + carry:02}")
                carry = (x + y + carry) // 10
            else:
                left = x - y - carry
                carry = int(left < 0)
                steps.append(f"{carry}{left % 10}")
        whole = f"{int(a) + int(b):04}" if kind == "addition" else f"{int(a) - int(b):03}"
        return ",".join(steps), whole
    digits = question[1:]
    so_far = [sum(map(int, digits[: n + 1])) for n in range(len(digits))]
    return {
        "sorting": lambda: (
            ",".join("".join(sorted(digits[:n])) for n in (1, 2, 3)),
            "".join(sorted(digits)),
        ),
        "reversal": lambda: ("", digits[::-1]),
        "copy": lambda: ("", digits),
        "parity": lambda: ("".join(str(n % 2) for n in so_far), str(so_far[-1] % 2)),
        "modular_sum": lambda: ("".join(str(n % 10) for n in so_far), str(so_far[-1] % 10)),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_answers_are_right(kind):
    problems = draw(kind, jax.random.key(3), 32)
    ids = ids_of(kind, "test", 32)
    task = to_task(kind, test=(problems, ids))
    assert len({question.question for question in task.test}) > 20 or kind == "parity"
    for i, question in enumerate(task.test):
        steps, answer = work(kind, question.question)
        assert question.answer == answer
        prompt = problems.prompt[i, : problems.prompt_length[i]].tolist()
        assert prompt == encode(render("plain", question).whole)
        worked = problems.response[i, : problems.response_length[i]].tolist()
        assert "".join(TOKENS[t] for t in worked) == f" {steps};The answer is {answer}<|end|>"
    graded = jax.vmap(correct)(problems.response, problems.response_length, problems.answer)
    assert graded.all()
    # A worked response is already as it would be trained on; with another's answer it is wrong.
    again, length = jax.vmap(response)(problems.response, problems.response_length)
    assert (again[:, : problems.response.shape[1]] == problems.response).all()
    assert (length == problems.response_length).all()
    other = jnp.roll(problems.answer, 1, axis=0)
    differs = (other != problems.answer).any(axis=1)
    graded = jax.vmap(correct)(problems.response, problems.response_length, other)
    assert (graded == ~differs).all() and differs.any()


def test_a_mixture_holds_each_kind():
    both = mixture(jax.random.key(0), {"copy": 3, "addition": 2})
    signs = [TOKENS[t] for t in np.asarray(both.prompt[:, 2])]
    assert signs[:3] == ["c"] * 3 and all(sign.isdigit() for sign in signs[3:])


def test_the_keys_are_the_samplers():
    ids = ids_of("copy", "train", 5)
    names = questions(draw("copy", jax.random.key(0), 5), ids).name
    assert (np.asarray(sample_keys(jax.random.key(7), names, 3)) == _keys(7, ids, 3)).all()
