"""How the rows of public data sets are laid out, and how each layout becomes an example."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from imm_jax.tasks.answers import CALCULATOR
from imm_jax.tasks.drafts import digest
from imm_jax.tasks.latex import last_boxed
from imm_jax.tasks.normalize import canonical_number, canonical_text, repeating_decimal
from imm_jax.tasks.options import option_letters
from imm_jax.tasks.types import Example

OPTION_LETTER = re.compile(r"^\s*\(?[A-Za-z]\)\s*")
GSM8K_END = re.compile(r"\n?\s*####\s*(.*?)\s*$", re.DOTALL)


class RowError(ValueError):
    """A row that cannot be used; whoever reads the rows adds where it stands."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Columns that go together.

    Attributes:
      columns: the columns a row must have to be of this schema.
      accepts: a further condition on the row.
      read: makes an Example (its id still empty) of a row.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping], Example]
    accepts: Callable[[Mapping], bool] = lambda row: True


def _text(row: Mapping, key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise RowError(f"{key!r} should be text, found {type(value).__name__}")
    if not value.strip():
        raise RowError(f"{key!r} is empty")
    return value.strip()


def _optional(row: Mapping, key: str) -> str | None:
    return None if row.get(key) is None else _text(row, key)


def _answer(row: Mapping, key: str = "answer") -> str:
    value = row[key]
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    text = str(value) if number else _text(row, key)
    return repeating_decimal(text) or text


def _number(row: Mapping, key: str) -> str:
    """The answer of a set that writes 12 as 12.0."""
    text = _answer(row, key)
    number = canonical_number(text)
    if number is None:
        raise RowError(f"expected a number as {key!r}, found {text[:40]!r}")
    return number


def _gsm8k(row: Mapping) -> Example:
    text = _text(row, "answer")
    end = GSM8K_END.search(text)
    answer = canonical_number(end[1])
    if answer is None:
        raise RowError(f"expected a number after '####', found {end[1][:40]!r}")
    working = CALCULATOR.sub("", text[: end.start()]).strip()
    return Example(
        id="",
        question=_text(row, "question"),
        answer=answer,
        solution=f"{working}\nThe answer is {answer}.",
    )


def _math(row: Mapping) -> Example:
    working = _text(row, "solution")
    answer = _optional(row, "answer") or last_boxed(working)
    if answer is None:
        raise RowError(r"the solution has no \boxed{...} answer")
    return Example(
        id="",
        question=_text(row, "problem"),
        answer=answer,
        solution=f"{working}\nThe answer is ${answer}$.",
        kind=str(row.get("type") or row.get("subject") or ""),
    )


def _choice(question: str, texts: Any, right: int, **rest: Any) -> Example:
    """Options by their texts, and which is right. Of options with the same text the first is."""
    choices = _options(texts)
    if not 0 <= right < len(choices):
        raise RowError(f"the answer {right} is not among the {len(choices)} choices")
    letter = option_letters(26)[choices.index(choices[right])]
    return Example(id="", question=question, answer=letter, choices=choices, **rest)


def _labelled(row: Mapping) -> Example:
    """Choices with labels of their own, as CommonsenseQA, ARC and OpenBookQA have them."""
    choices = row["choices"]
    if isinstance(choices, Mapping):
        labels, texts = list(choices.get("label", ())), list(choices.get("text", ()))
    else:
        labels = [choice.get("label") for choice in choices]
        texts = [choice.get("text") for choice in choices]
    if row["answerKey"] not in labels or len(labels) != len(texts):
        raise RowError(f"the answer {row['answerKey']!r} is not among the labels {labels}")
    question = "question" if row.get("question") is not None else "question_stem"
    return _choice(_text(row, question), texts, labels.index(row["answerKey"]))


def _listed(row: Mapping) -> Example:
    """Choices as a list; the answer is a letter, an option's text, or its index from 0."""
    choices = _options(row["choices"])
    letters = option_letters(len(choices))
    answer = row["answer"]
    if isinstance(answer, int) and not isinstance(answer, bool):
        fitting = [letters[answer]] if 0 <= answer < len(choices) else []
    else:
        answer = _text(row, "answer")
        same = [letter for letter, text in zip(letters, choices) if _same(text, answer)]
        fitting = [answer.upper()] if answer.upper() in tuple(letters) else same
    if len(fitting) != 1:
        raise RowError(
            f"the answer {answer!r} is {'several of' if fitting else 'not among'} the choices: "
            f"expected a letter from A to {letters[-1]}, the text of one, or its index from 0"
        )
    return _choice(
        _text(row, "question"),
        row["choices"],
        letters.index(fitting[0]),
        solution=_optional(row, "solution"),
        kind=_optional(row, "kind") or "",
    )


def _same(text: str, answer: str) -> bool:
    return text == answer or canonical_text(text) == canonical_text(answer)


def _options(values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise RowError(f"'choices' should be a list of texts, found {type(values).__name__}")
    if not 2 <= len(values) <= 26:
        raise RowError(f"'choices' should have 2 to 26 options, found {len(values)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
            raise RowError(f"'choices' should be a list of texts, found {value!r} in it")
    return tuple(str(value).strip() for value in values)


def _plain(row: Mapping) -> Example:
    return Example(
        id="",
        question=_text(row, "question"),
        answer=_answer(row),
        solution=_optional(row, "solution"),
        kind=_optional(row, "kind") or "",
    )


def _svamp(row: Mapping) -> Example:
    question = f"{_text(row, 'Body')} {_text(row, 'Question')}"
    return Example(id="", question=question, answer=_number(row, "Answer"))


def _multiarith(row: Mapping) -> Example:
    return Example(id="", question=_text(row, "question"), answer=_number(row, "final_ans"))


def _mawps(row: Mapping) -> Example:
    """The MAWPS family: AddSub, SingleEq, MultiArith."""
    solutions = row["lSolutions"]
    if not isinstance(solutions, (list, tuple)) or len(solutions) != 1:
        raise RowError(f"'lSolutions' should be a list of one number, found {solutions!r}")
    answer = _number({"lSolutions": solutions[0]}, "lSolutions")
    return Example(id="", question=_text(row, "sQuestion"), answer=answer)


def _aqua(row: Mapping) -> Example:
    """AQuA-RAT: options as "A)21", the answer as a letter."""
    options, letter = row["options"], _text(row, "correct").upper()
    if not isinstance(options, (list, tuple)) or letter not in tuple(option_letters(len(options))):
        raise RowError(f"the answer {letter!r} is not among the options {options!r}")
    texts = [OPTION_LETTER.sub("", str(option)) for option in options]
    example = _choice(_text(row, "question"), texts, ord(letter) - ord("A"))
    rationale = _optional(row, "rationale")
    solution = rationale and f"{rationale}\nThe answer is {example.answer}."
    return replace(example, solution=solution)


def _logiqa(row: Mapping) -> Example:
    right = row["correct_option"]
    if isinstance(right, bool) or not isinstance(right, int):
        raise RowError(f"'correct_option' should be a whole number, found {right!r}")
    question = f"{_text(row, 'context')}\n{_text(row, 'query')}"
    return _choice(question, row["options"], right)


def _yes_or_no(row: Mapping) -> Example:
    return _choice(_text(row, "question"), ("Yes", "No"), 0 if row["answer"] else 1)


def _scored(row: Mapping) -> Example:
    """BIG-bench's options with scores: 1 for the right one, which often comes first."""
    scores, question = row["target_scores"], _text(row, "input")
    if not isinstance(scores, Mapping) or list(scores.values()).count(1) != 1:
        raise RowError(f"'target_scores' should give one option the score 1, found {scores!r}")
    texts = sorted(scores, key=lambda text: digest(f"{question}/{text}"))
    return _choice(question, texts, [scores[text] for text in texts].index(1))


# The first that fits is used.
SCHEMAS = {
    "labelled choices": Schema(columns=("choices", "answerKey"), read=_labelled),
    "choices": Schema(columns=("question", "choices", "answer"), read=_listed),
    "aqua": Schema(columns=("question", "options", "correct"), read=_aqua),
    "logiqa": Schema(columns=("context", "query", "options", "correct_option"), read=_logiqa),
    "scored options": Schema(columns=("input", "target_scores"), read=_scored),
    "math": Schema(columns=("problem", "solution"), read=_math),
    "svamp": Schema(columns=("Body", "Question", "Answer"), read=_svamp),
    "multiarith": Schema(columns=("question", "final_ans"), read=_multiarith),
    "mawps": Schema(columns=("sQuestion", "lSolutions"), read=_mawps),
    "gsm8k": Schema(
        columns=("question", "answer"),
        read=_gsm8k,
        accepts=lambda row: isinstance(row["answer"], str) and "####" in row["answer"],
    ),
    "yes or no": Schema(
        columns=("question", "answer"),
        read=_yes_or_no,
        accepts=lambda row: isinstance(row["answer"], bool),
    ),
    "question and answer": Schema(columns=("question", "answer"), read=_plain),
}
