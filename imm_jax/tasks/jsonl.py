"""Questions from JSONL files."""

import json
import os
from decimal import Decimal
from pathlib import Path

from imm_jax.errors import InputError
from imm_jax.tasks.rows import examples_from_rows
from imm_jax.tasks.types import Example


def read_examples(
    path: str | os.PathLike, prefix: str | None = None, answer_type: str | None = None
) -> tuple[tuple[Example, ...], str]:
    """Reads a file of one question a line; blank lines are skipped.

    A line is ``{"question", "answer"[, "choices"][, "id"][, "solution"][, "kind"]}``, GSM8K's
    ``{"question", "answer": "... #### 18"}``, or another form that ``schemas.SCHEMAS`` knows.
    Numbers keep the digits they are written with.

    Returns:
      The examples, and how their answers are checked.

    Raises:
      InputError: the file cannot be read, is empty, or has a line that cannot be used; names the
        file and the line.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    rows, places = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        rows.append(_row(line, place))
        places.append(place)
    if not rows:
        raise InputError(f"{path}: the file is empty, expected one JSON object a line")
    return examples_from_rows(rows, places, prefix or path.stem, answer_type)


def _row(line: bytes, place: str) -> dict:
    try:
        row = json.loads(line.decode(), parse_float=Decimal, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 text (byte {error.start + 1} of the line)") from error
    except RecursionError as error:
        raise InputError(f"{place}: not valid JSON (nested too deeply)") from error
    except ValueError as error:
        raise InputError(f"{place}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected a JSON object, found {type(row).__name__}")
    return row


def _no_constant(name: str):
    raise ValueError(f"{name} is not a number")
