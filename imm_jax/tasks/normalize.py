"""Canonical forms of answers: two answers of a type are equal when their canonical forms are."""

import re
import unicodedata
from fractions import Fraction

# Longer digit strings are babble, and Python refuses to convert them past 4300 digits.
MAX_DIGITS = 60

# A minus is a sign only where no number ends before it: "5-10" holds 5 and 10, "is -10" holds -10.
# A space parts thousands only in round ones: "3 150 ml bottles" are three bottles.
NUMBER = re.compile(
    r"""(?<![A-Za-z0-9_])(?<![0-9]\.)
    (?P<sign>(?<![0-9)%])(?<![0-9)%]\s)(?:[-+]\s?|(?i:minus|negative)\s))?
    [$€£]?\s?(?P<inner_sign>(?<=[$€£])-)?
    (?P<body>(?:[0-9]{1,3}(?:(?:[,\u00a0\u2009\u202f][0-9]{3})+|(?:[ ][0-9]{3}){0,4}[ ]000)(?![0-9])
      |[0-9]+)(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)
    (?:
        [eE](?P<exponent>[-+]?[0-9]{1,2})(?![0-9])
      | (?<![0-9.,]10)(?<=10)\^\{?(?P<power>[0-9]{1,2})(?![0-9])\}?
      | \s?(?:\\times|\\cdot|[x×*])\s?10\^\{?(?P<tens>-?[0-9]{1,2})(?![0-9])\}?
      | \s(?P<scale>(?i:thousand|million|billion|trillion))\b
      | /(?P<denominator>[0-9]+)(?![0-9]|\.[0-9])
      | \s(?P<top>[0-9]+)/(?P<bottom>[0-9]+)(?![0-9]|\.[0-9])
    )?""",
    re.VERBOSE,
)
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Only glued to the number, and no part of a formula: 5 m are metres. 300K may be kelvins.
SUFFIX = re.compile(r"[0-9][kKM](?![A-Za-z0-9])")
SUFFIXES = {
    re.compile(r"(?<![^\s$€£(*:=])([0-9][0-9.,]{0,19})k(?![A-Za-z0-9])"): "thousand",
    re.compile(r"([$€£] ?[0-9.,]{0,19}[0-9])K(?![A-Za-z0-9])"): "thousand",
    re.compile(
        r"(?<![^\s$€£(*:=])([0-9][0-9.,]{0,19})M(?![A-Za-z0-9]| ?[-+*/^] ?[A-Za-z])"
    ): "million",
}
VULGAR_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")  # ½ and the like
SPACED_FRACTION = re.compile(f" ?({VULGAR_FRACTION.pattern})")
# "3 and a half hours"; "3 and a half dozen" may answer how many dozens.
AND_A_PART = re.compile(
    r"(?<=[0-9]) and (?:a|one)[ -](half|third|quarter)\b(?!-| of\b| dozen)", re.IGNORECASE
)
PARTS = {"half": " 1/2", "third": " 1/3", "quarter": " 1/4"}

FLOAT = re.compile(r"-?[0-9]{1,6}\.[0-9]{10,20}")  # a float's 15 to 17 significant digits
LARGEST_DENOMINATOR = 1000

LATEX_FRACTION = re.compile(
    r"""(?<![ \t])[ \t]*\\[dt]?frac\s*
    (?:\{\s*(-?[0-9]+)\s*\}|([0-9]))\s*
    (?:\{\s*([0-9]+)\s*\}|([0-9]))(?![0-9])""",
    re.VERBOSE,
)
# What LaTeX and typography put where plain text has a plain character, or nothing.
PLAIN = {
    "\u2212": "-",  # minus sign
    "\u2013": "-",
    "{,}": ",",
    "\\!": "",
    "\\,": "",
    "\\$": "$",
    "\\%": "%",
}
GROUP_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
# 1.000,00 is a thousand and 1.000.000 a million; 1.000 and 1,5 may be either.
EUROPEAN = re.compile(
    r"(?<![0-9.,])[1-9][0-9]{0,2}(?:(?:\.[0-9]{3}){2,}(?:,[0-9]{1,2})?|\.[0-9]{3},[0-9]{2})"
    r"(?![0-9]|[.,][0-9])"
)
IN_ENGLISH = str.maketrans({".": None, ",": "."})
ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")
WRAPPERS = "\"'`*_“”‘’« »\t"


def plain(text: str) -> str:
    """``text`` with LaTeX spacing, fractions and minus signs in plain characters, and numbers that
    can only be written as in Europe (``1.000,00``) as in English.
    """
    for old, new in PLAIN.items():
        text = text.replace(old, new)
    text = EUROPEAN.sub(lambda number: number.group().translate(IN_ENGLISH), text)
    if VULGAR_FRACTION.search(text):
        text = SPACED_FRACTION.sub(lambda one: " " + _in_ascii(one[1]), text)
    if " and " in text:
        text = AND_A_PART.sub(lambda found: PARTS[found[1].lower()], text)
    return LATEX_FRACTION.sub(r" \1\2/\3\4", text)  # the space: 1\frac{4}{5} is 1 4/5, not 14/5


def _in_ascii(fraction: str) -> str:
    return unicodedata.normalize("NFKC", fraction).replace("\u2044", "/")


def in_full(text: str) -> str:
    """``$70K`` as ``$70 thousand``, and ``2M`` as ``2 million``."""
    for suffix, scale in SUFFIXES.items() if SUFFIX.search(text) else ():
        text = suffix.sub(rf"\1 {scale}", text)
    return text


def parse_number(text: str) -> Fraction | None:
    """The exact value of one number: ``1,234``, ``-$5.50``, ``3/4``, ``1 1/2``, ``50%`` (as 50),
    ``2 million``, ``1.5 x 10^3``.

    None where ``text`` is anything but one number, divides by zero or is absurdly long.
    """
    text = plain(text).strip().rstrip(".%").strip()
    found = NUMBER.fullmatch(text)
    return None if found is None else _value(found)


def find_numbers(text: str) -> list[Fraction]:
    """Every number in ``text``, exact, in order; see ``parse_number`` for what counts as one."""
    values = (_value(found) for found in NUMBER.finditer(plain(text)))
    return [value for value in values if value is not None]


def _value(found: re.Match) -> Fraction | None:
    if sum(map(str.isdigit, found.group())) > MAX_DIGITS:
        return None
    part = found.groupdict()
    value = Fraction(re.sub(r"[,\s]", "", part["body"]))
    try:
        if exponent := part["exponent"] or part["tens"]:
            value *= Fraction(10) ** int(exponent)
        elif part["power"]:
            value **= int(part["power"])
        elif part["scale"]:
            value *= SCALES[part["scale"].lower()]
        elif part["denominator"]:
            value /= int(part["denominator"])
        elif part["bottom"]:
            value += Fraction(int(part["top"]), int(part["bottom"]))
    except ZeroDivisionError:
        return None
    negative = part["inner_sign"] or (part["sign"] or "+")[0] in "-mMnN"
    return -value if negative else value


def number_text(value: Fraction) -> str:
    """The shortest exact text: ``12``, ``-0.125``, or ``1/3`` where no decimal is exact."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:]}"


def canonical_number(text: str) -> str | None:
    """``"$1,234.50"`` to ``"1234.5"``; None where ``text`` is not one number."""
    value = parse_number(text)
    return None if value is None else number_text(value)


def repeating_decimal(text: str) -> str | None:
    """``"0.6666666666666666"``, a third's multiple that went through a float, as ``"2/3"``.

    None where ``text`` is anything else; a decimal that ends (``"0.1"``) is what it says.
    """
    if not FLOAT.fullmatch(text):
        return None
    value = Fraction(text)
    near = value.limit_denominator(LARGEST_DENOMINATOR)
    written = number_text(near)
    return written if "/" in written and abs(value - near) < 1e-14 * max(1, abs(value)) else None


def canonical_text(text: str) -> str:
    """Lower case, no quotes, commas, article or closing punctuation, single spaces.

    A number, between quotes or asterisks too, is its canonical form.
    """
    number = canonical_number(text.strip(WRAPPERS).rstrip(WRAPPERS + "."))
    return canonical_words(text) if number is None else number


def canonical_words(text: str) -> str:
    """``canonical_text`` of what is not looked at as a number: ``"$1,200.0."`` is ``"$1200.0"``."""
    text = GROUP_COMMA.sub("", text.lower())
    text = " ".join(re.sub(r"[,;]", " ", text).split())
    text = text.strip(WRAPPERS + ".!?:()[] ")
    return ARTICLE.sub("", text)


def canonical_exact(text: str) -> str:
    """Single spaces, no quotes around, no full stop at the end; case and the rest are kept."""
    text = " ".join(text.split()).strip(WRAPPERS)
    return text.removesuffix(".").strip(WRAPPERS)
