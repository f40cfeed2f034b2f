"""The number that a text states, alone or as the result of an equation."""

import re
from fractions import Fraction

from imm_jax.tasks.normalize import NUMBER, find_numbers, plain

FULL_STOP = re.compile(r"(?<![A-Za-z])[.;?](?:\s|$)")  # in "Rs. 20" none
TIMES = re.compile(r"\\(?:times|cdot|div)\b|(?<=[\s0-9])(?:[xX](?=[\s0-9$])|of(?=\s))")
# "apples" or "miles per hour" between a number and an operator; conjunctions begin something else.
WORD = r"(?!(?:and|as|because|but|if|or|since|so|when|where)\b)[A-Za-z]++"
OPERATION = re.compile(r"\s*[-+*/×÷]\s*[$(]?[0-9]")
SPELT = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
OPERATOR = re.compile(rf"(?<!\\)\b(?:{'|'.join(SPELT)})\b", re.IGNORECASE)
UNIT = re.compile(
    rf"(?<=[0-9)%])(?:\s*+/?(?:{WORD}|\\text\{{[^{{}}]*+\}})){{1,3}}+(?=\)?(?:\s*=|{OPERATION.pattern}))"
)
# All up to the result: "total = 3 * 5 = 15" from its last "=". Possessive, so that it stays linear.
EQUATION = re.compile(r"[^0-9=]*+(?:[^A-Za-z<>=]*=)+")


def stated_number(text: str) -> Fraction | None:
    """The first number in ``text``; of an equation around it, in the same sentence, the result.

    ``"12 + 5 = 17 apples"`` states 17, and so does ``"12 apples + 5 apples = 17 apples"``;
    ``"12. 3 + 5 = 8"`` and ``"12 = 3 * 4"`` state 12.
    """
    text = plain(text)
    line = next((line for line in text.split("\n") if NUMBER.search(line)), "")
    sentence = FULL_STOP.split(line, maxsplit=1)[0]
    sentence = OPERATOR.sub(lambda word: SPELT[word.group().lower()], sentence)
    sentence = UNIT.sub("", TIMES.sub("*", sentence))
    equation = EQUATION.match(sentence)
    right = sentence[equation.end() :] if equation else ""
    result = NUMBER.search(right)
    computed = result is not None and not OPERATION.match(right, result.end())
    return next(iter(find_numbers(right if computed else text)), None)
