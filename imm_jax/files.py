"""Files that are either whole or absent: write beside, then rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from imm_jax.errors import InputError

# What is being written and what is being deleted: names that begin with a dot and end like this.
PART, GONE = ".part", ".gone"


def atomic_write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes ``content`` to ``path`` so that a reader sees the old file or the new, never a part.

    Raises:
      OSError: the folder cannot be written, or the disk is full; it names ``path``, which is then
        as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    beside = None
    try:
        descriptor, beside = tempfile.mkstemp(PART, f".{path.name}.", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException as error:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)
        if isinstance(error, OSError):
            # A full disk names no file, the others the one beside.
            error.filename, error.filename2 = os.fspath(path), None
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that takes its place if the block ends without error.

    A folder already at ``path`` is replaced only then, in two renames: a kill between them leaves
    it beside, under a name that begins with a dot. On any error the new one is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(PART, f".{path.name}.", path.parent))
    try:
        yield beside
        os.chmod(beside, 0o755)
        if path.exists():
            _swap(path, beside)
        else:
            os.rename(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _swap(path: Path, beside: Path) -> None:
    """Puts ``beside`` in the place of ``path``; if that fails, ``path`` is as it was."""
    gone = Path(tempfile.mkdtemp(GONE, f".{path.name}.", path.parent))
    try:
        os.rename(path, gone / path.name)
        try:
            os.rename(beside, path)
        except BaseException:
            os.rename(gone / path.name, path)
            raise
    finally:
        shutil.rmtree(gone, ignore_errors=True)


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    """Writes one JSON object a line, atomically."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_object(path: str | os.PathLike) -> dict:
    """A JSON object; empty where there is no file.

    Raises:
      InputError: it is something else.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """Reads one JSON object a line; blank lines are skipped.

    Raises:
      InputError: the file is missing, or a line is not a JSON object; names the file and the line.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows
