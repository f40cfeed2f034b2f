"""Which option of a multiple choice a text names: by its letter, or by its own text."""

import functools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from imm_jax.tasks.equations import stated_number
from imm_jax.tasks.latex import untexted
from imm_jax.tasks.normalize import (
    canonical_number,
    canonical_text,
    canonical_words,
    find_numbers,
    number_text,
)

PARENTHESISED = re.compile(
    # In "neither (A) nor (C); it is (B)" only the last.
    r"(?<!(?i:\bnot) )(?<!(?i:\bnor) )(?<!(?i:neither) )\(([A-Za-z])\)"
    r"|^\W*(?:(?:option|choice|letter)\s+)?([A-Z])\)"
)
BARE_LETTER = re.compile(
    r"^\W*(?:(?:option|choice|letter)\s+)?([A-Z])(?![A-Za-z0-9]|['’][A-Za-z])",
    re.IGNORECASE,
)
# "A or B", "(A), (B) and (C)"; "A, B is wrong" and "A and I am sure" are of one answer.
LETTER = r"(?:option\s+)?(?:\(([A-Za-z])\)|([A-Z])(?![A-Za-z0-9'’]))"
OR_LETTER = re.compile(
    rf"[\s)*]*+(?:,?\s*+or\s++{LETTER}"
    rf"|(?:,\s*+and\b|and\b|[,/&])\s*+{LETTER}(?=[\s*)]*+(?:[.,;!?/&]|$|or\b|and\b|are\b)))"
)
OR_TEXT = re.compile(r"(?:(or)|and|/|&) (?:(?:an?|the) )?")
ALONE = re.compile(r"\W*(?:(?:option|choice|letter)\s+)?([A-Za-z])\W*", re.IGNORECASE)
# What names an option where nothing marks an answer; each only without those before it.
NAMED = (
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"\b([A-Z])\)? is (?:the )?(?:correct|right|best)\b"),
    # "I would choose B.", "it's option A", "Answer is A"; in "I would choose A pear" none.
    re.compile(
        r"(?:(?<!not )(?<!n['’]t )\b(?:choose|chose|pick(?:ed)?|select(?:ed)?|go with)"
        r"(?: option)?"
        r"|\b(?:it is|[Ii]t['’]s|[Ii]s|be) (?:option|choice|letter)|\b[Aa]nswer is:?)"
        r" \**([A-Z])(?=[.,;:!)*\n]|\s*$| (?:because|since|as)\b)"
    ),
)
# "B. blue ball": a letter with its option's own text.
LETTERED = re.compile(r"[ \t*_]*(?:[Oo]ption )?([A-Za-z])[ *]?[.):][ *]*(\S.*)")
FIGURE = re.compile("[0-9]")
IS_EQUAL = re.compile(" ?=")  # "9 = (3/4) * x" says 9
OPTION_END = re.compile(r"[.!?:)\]]*(?:\s|$)")  # canonical text ends without these


def option_letters(count: int) -> str:
    """``"ABCD"`` for four options."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]


def first_alike(read: Callable) -> Callable:
    """Options may repeat: the letter of the first with the same text stands for all of them."""

    @functools.wraps(read)
    def first(text: str, choices: Sequence[str] | None) -> str | None:
        letter = read(text, choices)
        if letter is None or not choices:
            return letter
        letters = option_letters(len(choices))
        return letters[choices.index(choices[letters.index(letter)])]

    return first


@first_alike
def named_option(line: str, choices: Sequence[str] | None) -> str | None:
    """The letter that a line names: in parentheses, else by an option's own text, else bare.

    Args:
      line: without LaTeX around words.
      choices: the options' texts; without them any letter is taken.
    """
    letters = option_letters(len(choices or ()) or 26)
    found = PARENTHESISED.search(line)
    if found and (letter := (found[1] or found[2]).upper()) in letters:
        return None if _or_another(line, found.end(), letter, letters) else letter
    # As words first: as numbers $5 and 5% are the same.
    for canonical in (canonical_words, canonical_text):
        said = canonical(line)
        options = _letters_by_text(canonical, choices)
        for text in sorted(options, key=len, reverse=True):
            if text and said.startswith(text) and OPTION_END.match(said, len(text)):
                return _confirmed(line, said, text, options)
    found = BARE_LETTER.match(line)
    # A small letter counts only alone: "a" is an article.
    if found and (found[1].isupper() or len(said) <= 1) and found[1].upper() in letters:
        letter = found[1].upper()
        return None if _or_another(line, found.end(), letter, letters) else letter
    if "=" in line and (stated := stated_number(line)) not in find_numbers(line)[:1]:
        return _letter_of_number(stated, options)  # an equation's result
    return None


def _or_another(line: str, end: int, letter: str, letters: str) -> bool:
    """Whether another letter stands beside the one that ends at ``end``."""
    found = OR_LETTER.match(line, end)
    other = found and next(filter(None, found.groups())).upper()
    return bool(other) and other != letter and other in letters


def _confirmed(line: str, said: str, text: str, options: dict[str, str]) -> str | None:
    """The letter of the option whose text a line begins with, unless more of the line counts.

    Of ``"5 + 10 = 15"`` it is the 15's, and ``"a pear or a plum"`` is of none.
    """
    if FIGURE.search(said, len(text)) and canonical_number(text) is not None:
        stated = stated_number(line)
        if stated is None or number_text(stated) != canonical_number(text):
            result = _letter_of_number(stated, options)
            return result or (options[text] if IS_EQUAL.match(said, len(text)) else None)
    rest = said[OPTION_END.match(said, len(text)).end() :]
    joint = OR_TEXT.match(rest)
    for other in options if joint else ():
        if rest.startswith(other, joint.end()) and options[other] != options[text]:
            behind = OPTION_END.match(rest, joint.end() + len(other))
            if other and behind and (joint[1] or behind.end() == len(rest)):
                return None
    return options[text]


def _letter_of_number(number: Fraction | None, options: dict[str, str]) -> str | None:
    """The option that is this number and nothing else."""
    numbers = {canonical_number(text): letter for text, letter in reversed(options.items())}
    return None if number is None else numbers.get(number_text(number))


@first_alike
def last_option(text: str, choices: Sequence[str] | None) -> str | None:
    """The last letter in parentheses, or called correct; else what a line of its own names."""
    letters = option_letters(len(choices or ()) or 26)
    for named in NAMED:
        found = [letter for letter in named.findall(text) if letter in letters]
        if found:
            return found[-1]
    options = _letters_by_text(canonical_text, choices)
    lettered = {
        found[1].upper(): found[2] for found in map(LETTERED.match, text.split("\n")) if found
    }
    if len(lettered) == 1:
        [(letter, said)] = lettered.items()
        if letter in letters[: len(choices or ())] and (
            canonical_text(said) == canonical_text(choices[letters.index(letter)])
        ):
            return letter
    for line in reversed([line for line in text.split("\n") if line.strip()]):
        if (letter := options.get(canonical_text(line))) is not None:
            return letter
        if (found := ALONE.fullmatch(line)) and found[1].upper() in letters:
            return found[1].upper()
    first = re.match(r"\W*(yes|no|true|false)\b", text, re.IGNORECASE)  # "Yes, it is."
    return options.get(first[1].lower()) if first else None


def _letters_by_text(
    canonical: Callable[[str], str], choices: Sequence[str] | None
) -> dict[str, str]:
    """The letter of each option by its text; of texts that repeat the first's."""
    choices = choices or ()
    pairs = list(zip(option_letters(len(choices)), choices))
    return {canonical(untexted(text)): letter for letter, text in reversed(pairs)}
