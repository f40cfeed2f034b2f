"""A search on disk: a line of JSON for its settings, then one for each candidate scored."""

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imm_jax.errors import InputError
from imm_jax.files import read_jsonl


class Row(NamedTuple):
    """A candidate ``[D]``, float64, as it was drawn, and its score, -inf for one not finite.

    A candidate out of bounds was scored at the nearest point within.
    """

    candidate: np.ndarray
    score: float


@contextmanager
def keep(
    path: str | os.PathLike | None, settings: dict, size: int
) -> Iterator[tuple[list[Row], Callable[[Sequence[Row]], None]]]:
    """Yields the rows that ``path`` holds, and a function that adds more, on disk when it returns.

    A line that a kill cut off is dropped. Without a path nothing is kept.

    Args:
      path: the file; it is made with its folders if it is not there.
      settings: plain data that must be the same when the search is taken up again.
      size: how many numbers a candidate has.

    Raises:
      InputError: the file holds something else, or a search with other settings (they are named),
        or a line that is damaged, or another process is at work on it.
      OSError: it cannot be written.
    """
    if path is None:
        yield [], lambda rows: None
        return
    path, header = Path(path), {"search": settings}
    try:
        first = json.dumps(header).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"about: {error}, expected plain data") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{path}: another process is searching there") from error

        def write(lines: Sequence[dict]) -> None:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

        data = path.read_bytes()
        if first.startswith(data):  # new, or cut off in its first line
            file.truncate(0)
            write([header])
        else:
            _check_settings(path, header)
            file.truncate(data.rfind(b"\n") + 1)
        rows = [
            _read_row(f"{path}:{number}", row, size)
            for number, row in enumerate(read_jsonl(path)[1:], 2)
        ]
        yield rows, lambda rows: write([_to_line(row) for row in rows])


def _check_settings(path: Path, header: dict) -> None:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.readline())["search"]
        names = found.keys() | header["search"].keys()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: holds no search, expected a new file or a search's") from error
    wanted = json.loads(json.dumps(header))["search"]
    differing = [
        f"{name} ({found.get(name)!r:.80} there, {wanted.get(name)!r:.80} here)"
        for name in sorted(names)
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise InputError(
            f"{path}: holds a search with other settings: {'; '.join(differing)}; "
            "expected the same settings or another file"
        )


def _to_line(row: Row) -> dict:
    # JSON has no infinity.
    score = row.score if math.isfinite(row.score) else None
    return {"candidate": row.candidate.tolist(), "score": score}


def _read_row(where: str, row: dict, size: int) -> Row:
    candidate, score = row.get("candidate"), row.get("score", math.nan)
    numbers = [*candidate, *([] if score is None else [score])] if _is_list(candidate, size) else []
    if not numbers or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise InputError(f"{where}: expected a candidate of {size} numbers and its score")
    return Row(np.array(candidate, np.float64), -math.inf if score is None else float(score))


def _is_list(x: Any, size: int) -> bool:
    return isinstance(x, list) and len(x) == size
