"""Which option of a multiple choice a text names: by its letter, or by its own text."""

import functools
import re
from collections.abc import Callable, Sequence

from imm_jax.tasks.latex import untexted
from imm_jax.tasks.normalize import canonical_text, canonical_words

PARENTHESISED = re.compile(r"\(([A-Za-z])\)|^\W*(?:(?:option|choice|letter)\s+)?([A-Z])\)")
BARE_LETTER = re.compile(
    r"^\W*(?:(?:option|choice|letter)\s+)?([A-Z])(?![A-Za-z0-9'’])", re.IGNORECASE
)
ALONE = re.compile(r"\W*(?:(?:option|choice|letter)\s+)?([A-Za-z])\W*", re.IGNORECASE)
# What names an option where nothing marks an answer; the second only without the first.
NAMED = (
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"\b([A-Z])\)? is (?:the )?(?:correct|right|best)\b"),
)
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
        return letter
    # As words first: as numbers $5 and 5% are the same.
    for canonical in (canonical_words, canonical_text):
        said = canonical(line)
        options = _letters_by_text(canonical, choices)
        for text in sorted(options, key=len, reverse=True):
            if text and said.startswith(text) and OPTION_END.match(said, len(text)):
                return options[text]
    found = BARE_LETTER.match(line)
    # A small letter counts only alone: "a" is an article.
    if found and (found[1].isupper() or len(said) <= 1) and found[1].upper() in letters:
        return found[1].upper()
    return None


@first_alike
def last_option(text: str, choices: Sequence[str] | None) -> str | None:
    """The last letter in parentheses, or called correct; else what a line of its own names."""
    letters = option_letters(len(choices or ()) or 26)
    for named in NAMED:
        found = [letter for letter in named.findall(text) if letter in letters]
        if found:
            return found[-1]
    options = _letters_by_text(canonical_text, choices)
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
