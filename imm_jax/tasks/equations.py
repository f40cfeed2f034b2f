"""The number that a text states, alone or as the result of an equation."""

import re
from fractions import Fraction

from imm_jax.tasks.normalize import NUMBER, find_numbers, parse_number, plain
from imm_jax.tasks.number_words import ONES, PARTS

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
# "25% of 80, which is 20": what says that a result follows, and what makes it no result.
WHICH_IS = re.compile(
    r"(?:\b(?:which )?(?:is(?: equal to)?|equals|gives|makes)|[,(] ?(?:or|i\.e\.,?)|≈|\\approx)"
    r"(?: about| approximately)?(?=\s*[-$(]{0,2}[0-9])"
)
COMPARED = re.compile(
    r"%?(?:\s+[A-Za-z]+)?\s+(?:more|less|fewer|greater|larger|bigger|smaller|higher|lower|above|"
    r"below|over|under|times|percent|of|than)\b|%?\s*[*]\s*(?![\s$(0-9])"
)
# "half of 12", "two thirds of the 9 apples", "twice 6": the first figure is no result.
SHARE = rf"(?:half|(?:an?|{'|'.join(ONES)})[ -](?:{'|'.join(PARTS)}))"
OF = r"\s+(?:of|the|an?|all|his|her|its|our|their|these|those|total|sum)\b"
SHARE_OF = re.compile(
    rf"[^0-9]*?\b(?:{SHARE}(?:{OF}){{1,4}}|twice(?:{OF}){{0,4}})\s*(?=[0-9])", re.IGNORECASE
)
RESULT = re.compile(
    r"(?:\b(?:is|equals|gives|makes)\b(?:\s+equal to\b)?|[,(]\s*or\b|=|:(?=\s))(?=[\s(*-]*[0-9])"
)
# "16 - 7 = 9 eggs, so 9 * 2 = 18": what joins a step to the next, and how many are followed.
NEXT_STEP = re.compile(
    rf"(?:\s+{WORD}){{0,3}}+[\s,*)]*+(?:so|then|and(?: then)?|thus|hence|therefore)\b"
)
STEPS = 4
OPERATED = re.compile(r"[-+*/×÷]\s*[$(]?[0-9]")
SUM = re.compile(r"[^0-9=]*+[^A-Za-z<>=]*")  # no words behind its first number
LATEX = re.compile(r"\\boxed\b|\\[()\[\]]|[{}$]")
# "12 - 5" and nothing else: a sum whose result is not stated. Possessive, as above.
NUMERAL = r"(?:[0-9][0-9,]*+(?:\.[0-9]++)?|\.[0-9]++)%?"
SIGN = r"(?:[-+*/×÷xX]|\\(?:times|cdot|div)\b)"
UNFINISHED = re.compile(
    rf"[\s:*_(]*+[-+]?{NUMERAL}(?:[\s)]*+{SIGN}[\s(]*+{NUMERAL})++[\s*_)]*+\.?[\s*_]*+"
)


def stated_number(text: str) -> Fraction | None:
    """The first number in ``text``; of an equation around it, in the same sentence, the result.

    ``"12 + 5 = 17 apples"`` states 17, and so do ``"12 apples + 5 apples = 17 apples"`` and
    ``"12 + 5, which is 17"``; ``"12. 3 + 5 = 8"`` and ``"12 = 3 * 4"`` state 12; ``"12 + 5"``
    alone states none. Of ``"half of 12, which is 6"`` and ``"a third of the 9 apples, or 3"`` it is
    what they come to.
    """
    text = plain(text)
    line = next((line for line in text.split("\n") if NUMBER.search(line)), "")
    sentence = FULL_STOP.split(line, maxsplit=1)[0]
    sentence = OPERATOR.sub(lambda word: SPELT[word.group().lower()], sentence)
    bare = LATEX.sub(" ", sentence)
    if _is_unfinished(bare):
        return parse_number("".join(bare.split()).strip("*_:."))  # 1 / 3 is a number
    if share := SHARE_OF.match(bare):
        return _result(bare[share.end() :])
    sentence = UNIT.sub("", _with_equals_sign(TIMES.sub("*", sentence)))
    right = _right_side(sentence)
    return next(iter(find_numbers(text if right is None else _last_step(sentence, right))), None)


def _right_side(sentence: str) -> str | None:
    """What stands behind the last "=" of the equation that ``sentence`` begins with.

    None where there is none, or where no result stands there.
    """
    equation = EQUATION.match(sentence)
    right = sentence[equation.end() :] if equation else ""
    result = NUMBER.search(right)
    return None if result is None or OPERATION.match(right, result.end()) else right


def _last_step(sentence: str, right: str) -> str:
    """The right side of the last equation of a chain, each of which works with the result before.

    A result that the chain has named already ends it: "12 - 5 = 7 and 7 + 5 = 12" is a check.
    """
    for _ in range(STEPS):
        result = NUMBER.search(right)
        step = NEXT_STEP.match(right, result.end())
        following = _right_side(right[step.end() :]) if step else None
        if following is None:
            break
        left = right[step.end() : len(right) - len(following)]
        value, total = find_numbers(result.group()), find_numbers(NUMBER.search(following).group())
        known = find_numbers(sentence[: len(sentence) - len(following)])
        if not total or total[0] in known or not set(value) & set(find_numbers(left)):
            break
        right = following
    return right


def _result(text: str) -> Fraction | None:
    """The number behind the first word that says of a sum what it is; None where none does."""
    text = text.replace("**", "")
    for word in RESULT.finditer(text):
        right = text[word.end() :].lstrip(" *")
        if not COMPARED.match(right, NUMBER.search(right).end()):
            return stated_number(right)
    return None


def _is_unfinished(bare: str) -> bool:
    return UNFINISHED.fullmatch(bare) is not None and NUMBER.fullmatch(bare.strip(" *_.")) is None


def _with_equals_sign(sentence: str) -> str:
    """``sentence`` with " = " for a "which is" or its like between a sum and its result."""
    first = NUMBER.search(sentence)
    found = first and WHICH_IS.search(sentence, first.end())
    if not found:
        return sentence
    left, right = sentence[: found.start()].rstrip(" ,("), sentence[found.end() :]
    result = NUMBER.search(right)
    if not _is_sum(UNIT.sub("", left + " =")[:-1]) or COMPARED.match(right, result.end()):
        return sentence
    return f"{left} = {right}"


def _is_sum(text: str) -> bool:
    """Whether numbers are worked with, and no words stand among them; 3/4 is one number."""
    first = NUMBER.search(text)
    if first is None or not SUM.fullmatch(text) or NUMBER.fullmatch(text.strip(" *_$")):
        return False
    return OPERATED.search(text, first.end()) is not None
