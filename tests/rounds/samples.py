"""Samples made by hand."""

from imm_jax.evaluation import Answer


def sample(
    question: str,
    number: int,
    answer: str | None = None,
    *,
    text: str | None = None,
    correct: bool = False,
    logprob: float = -1.0,
    tokens: int = 1,
    reason: str = "stop",
) -> Answer:
    """One sample; its text says its answer where none is given."""
    return Answer(
        id=question,
        sample=number,
        text=f"The answer is {answer}." if text is None else text,
        answer=answer,
        correct=correct,
        tokens=tokens,
        logprob=logprob,
        finish_reason=reason,
    )


def samples(**questions: str) -> list[Answer]:
    """A letter a sample; upper case is right, ``.`` is no answer."""
    return [
        sample(
            name, i, None if x == "." else x.lower(), text=f"{name} {x} {i}", correct=x.isupper()
        )
        for name, letters in questions.items()
        for i, x in enumerate(letters)
    ]


def names(answers) -> list[str]:
    """``["a0", "b2"]``"""
    return [f"{answer.id}{answer.sample}" for answer in answers]
