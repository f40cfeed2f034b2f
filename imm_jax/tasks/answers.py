"""Reading the answer out of a response, and saying whether it is right.

A response is what the model wrote, already cut at the stop strings (``prompts.cut_at_stop``).
"""

import re
from collections.abc import Callable, Sequence

from imm_jax.errors import InputError, nearest
from imm_jax.tasks import verify
from imm_jax.tasks.equations import stated_number
from imm_jax.tasks.latex import (
    displayed,
    first_boxed,
    formulas,
    in_latex,
    last_boxed,
    untexted,
)
from imm_jax.tasks.normalize import (
    canonical_exact,
    canonical_number,
    canonical_text,
    find_numbers,
    in_full,
    number_text,
)
from imm_jax.tasks.number_words import amount, number_in_words
from imm_jax.tasks.options import last_option, named_option
from imm_jax.tasks.types import Example, Grade, Task, check_answer_type

# first: what follows the first marker ("The answer is"); small models go on talking after it. last:
# the paper's rule, the last number after the last marker. any: first, and where nothing marks an
# answer, the last candidate in the response.
RULES = ("first", "last", "any")

# Each counts only where those before it never occur: "the final answer is 3 * 5 = ..." may come
# in the middle of a solution.
MARKERS = (
    re.compile(r"\bthe answer is\b[ \t]*:?", re.IGNORECASE),
    re.compile(
        r"\b(?:final|correct|right|best) (?:answer|option|choice) is\b[ \t]*:?", re.IGNORECASE
    ),
    re.compile(r"^[ \t*_#>]*(?:final )?answer[ \t*_]*:|^####", re.IGNORECASE | re.MULTILINE),
)
CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K writes 2*3=<<2*3=6>>6
# A full stop that ends a sentence, not one after an initial or in "Dr. Li" and "Rs. 20".
SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!?](?=\s+[^\s0-9]|\s*$)"
)
WORDS_END = re.compile(r"[.!?;](?:\s|$)")  # of an answer in words: "twelve. 5 are red"
# "- 6 apples" on a line of its own, or "– 6 apples" behind the marker. A hyphen on the marker's
# line stays a sign, for models also write -6 as "- 6".
BULLET = re.compile(r"[\s:*_]*(?:\n[ \t]*[-+*•–—]|[–—])[ \t]+(?=\S)")
BULLETS = re.compile(r"\n[ \t]*[-–—][ \t]+(?=[^\s-])")
FIRST_ITEM = re.compile(r"[\s:*_]*\n[ \t]*1[.)][ \t]+(?=[$€£*-]{0,3}[0-9])")  # "1. 6 apples"
NOT_BUT = re.compile(
    r"[\s:*_]*not\b(?:[^.\n]|\.(?=[0-9])){1,60}?\bbut\b(?: rather)?", re.IGNORECASE
)
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)  # as reasoning-gym's own prompts ask


def extract(
    answer_type: str, response: str, *, rule: str = "first", choices: Sequence[str] | None = None
) -> str | None:
    """The answer a response gives, in canonical form; None where it gives none.

    Canonical: two responses that give the same answer return the same string (``"1,200.0"`` and
    ``"$1200"`` are ``"1200"``; an option named by its text is its letter). Numbers are exact,
    never floats. Mathematics comes as written, without its dollar signs or box,
    but an amount (``"6 dollars"``) is its number.

    Args:
      answer_type: one of ``types.ANSWER_TYPES``.
      response: the response, cut at the stop strings.
      rule: one of ``RULES``.
      choices: the options' texts, for the type ``choice``.

    Raises:
      InputError: an unknown answer type or rule.
    """
    check_answer_type(answer_type, "extract")
    if rule not in RULES:
        raise InputError(
            f"extract: unknown rule {rule!r}{nearest(rule, RULES)}; known: {', '.join(RULES)}"
        )
    response = CALCULATOR.sub("", response)
    markers = next(filter(None, (list(marker.finditer(response)) for marker in MARKERS)), [])
    if answer_type == "reasoning_gym":
        return _whole(response, markers[-1 if rule == "last" else 0] if markers else None)
    read, fallback = READERS[answer_type]
    if not markers and answer_type != "math" and (apart := _set_apart(response)):
        return read(apart, choices)
    if markers:
        tail = response[markers[-1 if rule == "last" else 0].end() :]
        if rule == "last":
            return LAST_READERS.get(answer_type, read)(tail, choices)
        answer = read(tail, choices)
        return answer or (_later_number(response, markers) if answer_type == "number" else None)
    if answer_type == "math":
        return last_boxed(response) or (fallback(response, choices) if rule == "any" else None)
    return fallback(response, choices) if rule == "any" else None


def _set_apart(response: str) -> str | None:
    """What the response puts into a box, or between the tags that some prompts ask for."""
    tagged = TAGGED.findall(response)
    return tagged[-1] if tagged else last_boxed(response)


def is_correct(task: Task | str, response: str, example: Example, *, rule: str = "first") -> bool:
    """Whether ``response`` gives ``example``'s answer. ``task`` is a Task or an answer type."""
    return grade(task, example, response, rule=rule).correct


def grade(task: Task | str, example: Example, response: str, *, rule: str = "first") -> Grade:
    """Reads and checks one response; see ``grade_all`` for many."""
    return grade_all(task, [(example, response)], rule=rule)[0]


def grade_all(
    task: Task | str,
    pairs: Sequence[tuple[Example, str]],
    *,
    rule: str = "first",
    verifier: verify.Verifier | None = None,
) -> list[Grade]:
    """Reads and checks many (example, response) pairs; mathematics goes through worker processes.

    Args:
      task: a Task, or an answer type.
      pairs: examples with the responses to them, cut at the stop strings.
      rule: which answer counts, one of ``RULES``.
      verifier: the worker processes for ``math`` and ``reasoning_gym``; by default the shared ones.
    """
    answer_type = task if isinstance(task, str) else task.answer_type
    answers = [
        extract(answer_type, response, rule=rule, choices=example.choices)
        for example, response in pairs
    ]
    right = [
        answer is not None and matches(answer_type, answer, example.answer)
        for answer, (example, _) in zip(answers, pairs)
    ]
    if answer_type in ("math", "reasoning_gym"):
        open_cases = [index for index, answer in enumerate(answers) if answer and not right[index]]
        if open_cases:
            verifier = verifier or verify.shared_verifier(answer_type)
            gold = [example.answer if answer_type == "math" else example.check
                    for example, _ in pairs]  # fmt: skip
            write = in_latex if answer_type == "math" else str
            verdicts = verifier.equivalent(
                [(write(gold[index]), write(answers[index])) for index in open_cases]
            )
            for index, verdict in zip(open_cases, verdicts):
                right[index] = verdict
    return [Grade(answer=answer, correct=correct) for answer, correct in zip(answers, right)]


def matches(answer_type: str, answer: str, gold: str) -> bool:
    """Whether an extracted answer equals the gold one by rules alone (no math-verify)."""
    if answer_type == "exact":
        return answer == _canonical_exact(gold)
    if answer_type == "choice":
        return answer == gold
    if answer_type == "reasoning_gym":
        return False  # only its scorer knows
    if answer_type == "text":
        gold = _canonical_text(gold)
        # "yes, it is still heads up" answers a yes-or-no question.
        return (answer.split(" ")[0] if gold in ("yes", "no") else answer) == gold
    number = canonical_number(gold) or (amount(untexted(gold)) if answer_type == "math" else None)
    if number is not None and number == canonical_number(answer):
        return True
    return answer_type == "math" and "".join(answer.split()) == "".join(gold.split())


def _first_number(tail: str, _choices) -> str | None:
    """The number after the marker, in words or figures; of "12 + 5 = 17", the 17."""
    tail = in_full(_behind(tail, BULLET, FIRST_ITEM, NOT_BUT))
    number = number_in_words(WORDS_END.split(untexted(_line(tail)), maxsplit=1)[0])
    if number is None:
        number = stated_number(tail)
    return None if number is None else number_text(number)


def _later_number(response: str, markers: Sequence[re.Match]) -> str | None:
    """The number behind the first marker that has one before the next marker."""
    ends = [*(marker.start() for marker in markers[1:]), len(response)]
    parts = (response[marker.end() : end] for marker, end in zip(markers, ends))
    return next(filter(None, (_first_number(part, None) for part in parts)), None)


def _last_number(text: str, _choices) -> str | None:
    numbers = find_numbers(in_full(BULLETS.sub("\n", _behind(text, BULLET))))
    return number_text(numbers[-1]) if numbers else None


def _behind(tail: str, *beginnings: re.Pattern) -> str:
    """``tail`` without these beginnings, in order, where it has them."""
    for beginning in beginnings:
        if found := beginning.match(tail):
            tail = tail[found.end() :]
    return tail


def _line(tail: str) -> str:
    """The first sentence of the first line that is not empty, without a bullet."""
    tail = _behind(tail, BULLET)
    line = next((line for line in tail.split("\n") if line.strip(" *_:")), "").strip(" :")
    end = SENTENCE_END.search(line)
    return line[: end.start()] if end else line


def _choice(tail: str, choices: Sequence[str] | None) -> str | None:
    line = _line(displayed(tail) or tail)
    return named_option(untexted(first_boxed(line) or line), choices)


def _canonical_text(text: str) -> str:
    return canonical_text(untexted(text))


def _canonical_exact(text: str) -> str:
    return canonical_exact(untexted(text))


def _in_words(canonical: Callable[[str], str]):
    """Of a line, or of the first box in it."""

    def read(tail: str, _choices) -> str | None:
        boxed = "box" in tail and first_boxed(_line(displayed(tail) or tail))
        return canonical(boxed or _line(tail)) or None

    return read


def _last_line(canonical: Callable[[str], str]):
    def read(text: str, _choices) -> str | None:
        lines = [line for line in text.split("\n") if line.strip()]
        return canonical(lines[-1]) or None if lines else None

    return read


def _math(tail: str, _choices) -> str | None:
    if said := first_boxed(tail) or displayed(tail):
        return said.strip(" $*") or None
    line = _line(tail)
    said = next(iter(formulas(line)), None) or amount(line) or line
    return said.strip(" $*") or None


def _last_math(tail: str, _choices) -> str | None:
    return last_boxed(tail) or _math(tail, None)


def _last_formula(text: str, _choices) -> str | None:
    return next(reversed(formulas(text)), None)


def _whole(response: str, marker: re.Match | None) -> str | None:
    """All lines after the marker. Without one the whole: the questions ask for the answer alone."""
    tagged = TAGGED.findall(response)
    text = tagged[-1] if tagged else response[marker.end() :] if marker else response
    return text.strip() or None


# For each type: how to read what follows "The answer is", and the last resort of the rule "any".
READERS = {
    "number": (_first_number, _last_number),
    "choice": (_choice, last_option),
    "math": (_math, _last_formula),
    "text": (_in_words(_canonical_text), _last_line(_canonical_text)),
    "exact": (_in_words(_canonical_exact), _last_line(_canonical_exact)),
}
LAST_READERS = {"number": _last_number, "math": _last_math}  # of the rule "last"
