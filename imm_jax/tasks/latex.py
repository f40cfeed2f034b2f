r"""Formulas in what a model or a data set writes: ``$..$``, ``\(..\)``, ``\[..\]`` and boxes."""

import re

FORMULA = re.compile(
    r"(?<!\\)(?:\$((?:[^$\n\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\])"  # \$ is a dollar sign
)
DISPLAYED = re.compile(
    r"[\s:*]*(?:\$\$([^$]+)\$\$|\\\((.+?)\\\)|\\\[(.+?)\\\])", re.DOTALL
)  # may take lines of its own
BOXED = re.compile(r"\\boxed(?:\s*\{|\s+(?=[^\s.,]))")
FBOX = re.compile(r"\\fbox\s*\{")
FORMULA_END = re.compile(r"\$|\\[)\]]|\n")
ROOT = re.compile(r"√[ ]?(?:[({]([^(){}]{1,99})[)}]|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))")
TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


def formulas(text: str) -> list[str]:
    """What stands between dollar signs or brackets, each on one line, in order."""
    return [found[found.lastindex].strip() for found in FORMULA.finditer(text)]


def displayed(text: str) -> str | None:
    """The formula that ``text`` begins with, after white space and colons; None for another start.

    It may reach over several lines.
    """
    found = DISPLAYED.match(text)
    return found and found[found.lastindex].strip()


def untexted(text: str) -> str:
    r"""``\text{(B)}`` and its like as ``(B)``."""
    return text if "\\" not in text else TEXT.sub(r"\1", text)


def in_latex(text: str) -> str:
    r"""``2√3`` as ``2\sqrt{3}``."""
    return ROOT.sub(lambda found: rf"\sqrt{{{found[found.lastindex]}}}", text)


def first_boxed(text: str) -> str | None:
    """The content of the first box, as ``last_boxed`` reads the last."""
    return _boxed(text, 0)


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, or where there is none of the last ``\fbox{...}``.

    Without braces it reaches to the end of the formula, as in ``$\boxed 2$``. So reads the parser
    of MATH (Hendrycks et al., arXiv 2103.03874), whose solutions have a few of these.
    """
    return _boxed(text, -1)


def _boxed(text: str, place: int) -> str | None:
    if "box" not in text:
        return None
    found = list(BOXED.finditer(text)) or list(FBOX.finditer(text))
    if not found:
        return None
    start = found[place].end()
    if text[start - 1] != "{":
        return FORMULA_END.split(text[start:], maxsplit=1)[0].strip(" .") or None
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start:index].strip() or None
    return None
