"""The number that a text says and nothing else: ``twelve apples``, ``half``, ``6 dollars``."""

import re
from fractions import Fraction

from imm_jax.tasks.normalize import SCALES, canonical_number, number_text

# fmt: off
SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
         "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
         "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
# fmt: on
ONES = {word: value for value, word in enumerate(SMALL)}
ONES |= {word: 10 * value for value, word in enumerate(TENS, 2)}
PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8}
PARTS |= {"tenth": 10, "halves": 2} | {f"{part}s": count for part, count in PARTS.items()}
WHOLE = {"a dozen": 12, "half a dozen": 6, "half dozen": 6, "half": Fraction(1, 2)}

WORDS = re.compile(r"[a-z]+(?:[ -][a-z]+){0,23}")  # a longer text says more than a number
EMPHASIS = str.maketrans(dict.fromkeys("*_"))
WRAPPERS = " \t\"'`“”‘’.,!:$()[]{}"
UNITS = 3  # words of "miles per hour"
# What makes more of a number than an amount of something: "two of them", "two or three".
OTHER_WORDS = re.compile(
    r"(?:and|or|nor|of|to|than|as|the|an?|i|it|we|you|they|that|this|these|those|which|who|when|if|"
    r"is|are|was|were|be|been|has|have|had|can|do|does|will|not|but|so|because|since|from|for|in|"
    r"on|at|by|with|about|times|plus|minus|divided|multiplied|over|point|dozens?|hundreds?|pairs?|"
    r"couples?|scores?|thousands?|millions?|half|halves|less|fewer)"
)
# "No apples" are 0. "No idea" and "no solutions" are no answer, and "none" may be of the options.
NONE = re.compile(r"none (?:(?:are |is )?(?:left|remain(?:ing|s)?)|at all)")
NO_THINGS = re.compile(r"no (?:[a-z]+ )?([a-z]+s)(?: (?:are )?(?:left|remain(?:ing)?|at all))?")
NO_ANSWERS = re.compile(
    r"(?:.*ss|answers?|solutions?|ideas?|clues?|conclusions?|numbers?|values?|results?|options?|"
    r"choices?|responses?|problems?|questions?|reasons?|thanks|doubts|ways|yes|this|is|was|as|has|does|us)"
)

FIGURES = re.compile(r"([-−$]*[0-9][0-9.,/]*)((?: [A-Za-z]{3,}){1,3})")  # "cm" may be c times m
# How an amount begins: a look at it costs less than to read it.
AMOUNT = re.compile(
    rf"[*_]*(?:[-−$]*[0-9][0-9.,/]* [A-Za-z]{{3}}"
    rf"|(?:minus|negative|half|an? [a-z]+|{'|'.join(ONES)})\b)",
    re.IGNORECASE,
)
LONGEST_AMOUNT = 60  # characters
MATHEMATICS = re.compile(r" (?:sqrt|roots?|log|exp|sin|cos|tan|mod|squared|cubed|factorial)\b")


def amount(text: str) -> str | None:
    """The number in figures of ``six dollars`` and ``6 dollars``; None for all else.

    ``no roots`` may answer whether there are any, and ``6 sqrt`` is no unit.
    """
    if len(text) > LONGEST_AMOUNT or not AMOUNT.match(text):
        return None
    said = text.translate(EMPHASIS).strip(WRAPPERS.replace("$", ""))
    if found := FIGURES.fullmatch(said):
        is_unit = number_in_words("two" + found[2]) == 2 and not MATHEMATICS.search(found[2])
        return canonical_number(found[1]) if is_unit else None
    value = None if said.lower().startswith("no") else number_in_words(said)
    return None if value is None else number_text(value)


def number_in_words(text: str) -> Fraction | None:
    """The value of ``text`` where it is a number in words, alone or of up to three words of a unit.

    ``"twelve"``, ``"One hundred and five apples"``, ``"two thirds"``, ``"two and a half hours"``,
    ``"a dozen"``, ``"minus three"``; ``"none left"`` and ``"no apples"`` are 0. None for all
    else, and where it is not sure what is counted: ``"two dozen"`` may answer how many dozens.
    """
    said = text.translate(EMPHASIS).strip(WRAPPERS).lower()
    if not WORDS.fullmatch(said):
        return None
    if said in WHOLE:
        return Fraction(WHOLE[said])
    things = NO_THINGS.fullmatch(said)
    if NONE.fullmatch(said) or (things and not NO_ANSWERS.fullmatch(things[1])):
        return Fraction(0)
    words = re.split("[ -]", said)
    negative = words[0] in ("minus", "negative")
    value = _value(words[negative:])
    return value if value is None or not negative else -value


def _value(words: list[str]) -> Fraction | None:
    """Of a whole number, a fraction, or a whole number and a fraction, and a unit behind it."""
    if words[:1] == ["a"] and words[1:2] and (words[1] in SCALES or words[1] == "hundred"):
        words = ["one", *words[1:]]
    value, count = _whole(words)
    rest = words[count:]
    if value is None:
        one_part = words[:1] == ["a"] and _is_part(words[1:])
        return Fraction(1, PARTS[words[1]]) if one_part else None
    if _is_part(rest):
        return Fraction(value, PARTS[rest[0]])
    if rest[:2] in (["and", "a"], ["and", "one"]) and rest[2:3] and rest[2] in PARTS:
        return value + Fraction(1, PARTS[rest[2]]) if _is_unit(rest[3:]) else None
    return Fraction(value) if _is_unit(rest) else None


def _is_part(words: list[str]) -> bool:
    """Whether nothing but the name of a part is left; a third may also be a place in a row."""
    return len(words) == 1 and words[0] in PARTS


def _is_unit(words: list[str]) -> bool:
    known = ONES.keys() | SCALES.keys() | PARTS.keys()
    return len(words) <= UNITS and not any(w in known or OTHER_WORDS.fullmatch(w) for w in words)


def _whole(words: list[str]) -> tuple[int | None, int]:
    """The whole number that ``words`` begin with, and how many of them say it; None for none."""
    total = group = count = 0
    last = 0  # the value of the word before: "twenty five" is one number, "five twenty" is not
    least = None  # the scale before: scales fall
    while count < len(words):
        word = words[count]
        joined = word == "and" and count > 0 and words[count - 1] in ("hundred", *SCALES)
        if joined and words[count + 1 : count + 2] and words[count + 1] in ONES:
            word, count = words[count + 1], count + 1
        if word in ONES:
            if last in range(1, 20) or (last in range(20, 100) and not 0 < ONES[word] < 10):
                return None, 0
            group, last = group + ONES[word], ONES[word]
            if ONES[word] == 0 and (total or group or count):
                return None, 0
        elif word == "hundred" and 0 < group < 100:
            group, last = 100 * group, 100
        elif word in SCALES and group and (least is None or SCALES[word] < least):
            least = SCALES[word]
            total, group, last = total + group * least, 0, 100
        else:
            break
        count += 1
    return (total + group, count) if count else (None, 0)
