"""What is left of the samples that passed: no duplicates, no more of a question than is wanted."""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from imm_jax.evaluation import Answer
from imm_jax.tasks.normalize import canonical_number, plain

# What stands for an operator in worked steps.
OPERATORS = {"×": "*", "·": "*", "÷": "/", "\\times": "*", "\\cdot": "*", "\\div": "/"}
LETTER_X = re.compile(r"(?<=[0-9)])\s*[xX]\s*(?=[0-9(])")
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
CALCULATION = re.compile(r"<<([^<>\n]+)>>")  # GSM8K writes 2*3=<<2*3=6>>6
NUMERAL = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
TERM = rf"\(*-?{NUMERAL}\)*"
EXPRESSION = rf"{TERM}(?:[-+*/]{TERM})*"
EQUATION = re.compile(rf"{EXPRESSION}(?:={EXPRESSION})+")
OPERATION = re.compile(r"[0-9)][-+*/][-(.0-9]")
# Spaces around a sign or inside parentheses say nothing; others part one equation from the next.
LOOSE = re.compile(r"[ \t]*([-+*/=])[ \t]*|(?<=\()[ \t]+|[ \t]+(?=\))")


def equations(text: str) -> tuple[str, ...]:
    """The equations that a solution works through, in order: ``("3+5=8", "8*2=16")``.

    Numbers are canonical (``1,200.0`` is ``1200``), signs are those of a keyboard, units of money
    and white space are left out. GSM8K's calculator annotations count alone where there are some.
    An equation is numbers and operations only: ``5 apples + 3 apples = 8`` is none.
    """
    noted = CALCULATION.findall(text)
    text = plain("\n".join(noted) if noted else text)
    for sign, operator in OPERATORS.items():
        text = text.replace(sign, operator)
    text = re.sub(r"[$€£%]", "", THOUSANDS.sub("", text))
    text = LOOSE.sub(lambda found: found[1] or "", LETTER_X.sub("*", text))
    return tuple(
        re.sub(NUMERAL, lambda number: canonical_number(number[0]) or number[0], found[0])
        for found in EQUATION.finditer(text)
        if OPERATION.search(found[0])
    )


def text_key(answer: Answer) -> Hashable:
    """Two samples with the same text, white space apart, are the same."""
    return " ".join(answer.text.split())


def equation_key(answer: Answer) -> Hashable:
    """Two samples with the same list of equations are the same (RFT, Yuan et al., arXiv
    2308.01825, section 3.3); one without any equation goes by its text.
    """
    return equations(answer.text) or text_key(answer)


KEYS: dict[str, Callable[[Answer], Hashable]] = {"text": text_key, "equations": equation_key}


def deduplicate(answers: Sequence[Answer], key: Callable[[Answer], Hashable]) -> list[Answer]:
    """The first of each question's samples that are the same."""
    first: dict[tuple, Answer] = {}
    for answer in answers:
        first.setdefault((answer.id, key(answer)), answer)
    return list(first.values())


def cap(answers: Sequence[Answer], quotas: Mapping[str, int]) -> list[Answer]:
    """The first samples of each question, as many as its quota says; all where it has none."""
    counts: Counter[str] = Counter()
    kept = []
    for answer in answers:
        if answer.id not in quotas or counts[answer.id] < quotas[answer.id]:
            counts[answer.id] += 1
            kept.append(answer)
    return kept


def quotas(passed: Sequence[Answer], answers: Sequence[Answer], most: int) -> dict[str, int]:
    """How many samples to keep of each question, in proportion to its difficulty.

    A question's difficulty is the share of its samples that did not pass, under the rule
    ``correct`` its fail rate. The hardest question of which any passed keeps up to ``most``, the
    others in proportion, rounded half up, and none less than one: DART-Math's Prop2Diff (Tong et
    al., arXiv 2407.13690, section 3) on samples already drawn. Where all are as hard all keep
    ``most``.

    Args:
      passed: the samples that passed the rule.
      answers: all samples.
      most: what the hardest question keeps.
    """
    drawn, right = Counter(a.id for a in answers), Counter(a.id for a in passed)
    hardness = {name: 1 - count / drawn[name] for name, count in right.items()}
    hardest = max(hardness.values(), default=0.0)
    if hardest == 0:
        return dict.fromkeys(hardness, most)
    return {
        name: max(1, math.floor(most * hard / hardest + 0.5)) for name, hard in hardness.items()
    }
