"""Values on a command line: text to numbers, or what argparse says of a text that is none."""

import argparse
import math
import re
from collections.abc import Callable


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Reads a whole number from ``low`` to ``high`` on the command line."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r}, expected a whole number from {low} to {high}"
            )
        return int(text)

    return read


def positive(text: str) -> float:
    """Reads a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0")
    return number


def size(text: str) -> float:
    """Reads a number of bytes, with K, M or B (KB, MB, GB) for thousands, millions or billions."""
    found = re.fullmatch(r"([0-9]+)(K|M|B|KB|MB|GB)?", text.upper())
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a size such as 500M or 5B")
    factors = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
    return int(found[1]) * factors[(found[2] or "")[:1]]


def memory(text: str) -> float:
    """Reads a device's memory: a number of MB, GB, MiB or GiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG])(i?)B", text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a size such as 80GB or 16GiB")
    return float(found[1]) * (1024 if found[3] else 1000) ** {"M": 2, "G": 3}[found[2]]
