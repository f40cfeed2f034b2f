"""A run's folder: claimed by one process, tied to one configuration."""

import dataclasses
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imm_jax.config import RunConfig, save_config
from imm_jax.errors import InputError
from imm_jax.files import GONE, PART, atomic_write, read_object
from imm_jax.models.sources import IDENTITY
from imm_jax.settings import build, differences, to_dict
from imm_jax.tasks.types import Task, digest

logger = logging.getLogger("imm_jax")

QUESTIONS = "questions"  # in the record
CONFIG, METRICS, RECORD, LOCK = "config.yaml", "metrics.jsonl", "run.json", ".lock"


def locate(config: str | Path, smoke: bool = False) -> tuple[Path, Path]:
    """Where a run's settings are, and the folder for what it makes if none is named.

    A run's folder, or the ``config.yaml`` in it, means to go on with that run; any other YAML file
    a run in ``runs/<name of the file>``.

    Raises:
      InputError: a folder that is no run's.
    """
    path = Path(config)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise InputError(f"{path}: holds no {CONFIG}, expected a run's folder or a YAML file")
        return path / CONFIG, path
    if path.name == CONFIG and (path.parent / LOCK).exists():
        return path, path.parent
    return path, Path("runs") / (f"{path.stem}-smoke" if smoke else path.stem)


@contextmanager
def claim(folder: Path, config: RunConfig) -> Iterator[None]:
    """Makes the folder, or takes up a run begun there with the same configuration.

    A new folder in which nothing was made by the end of the block is removed again, so that a
    mistake in the configuration can be mended and the same command given.

    A run may be given more rounds or seeds than it was begun with: what is done stays.

    Raises:
      InputError: it holds something else, or a run with another configuration (the keys that differ
        are named), or another process is at work in it.
      OSError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder or nothing")
    stored = folder / CONFIG
    if not stored.exists() and folder.exists() and not _is_new(folder):
        raise InputError(
            f"{folder}: holds files but no {CONFIG}, expected a run's folder or nothing"
        )
    if stored.exists():
        _check_same(stored, config)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process is running there") from error
        _sweep(folder)
        fresh = not stored.exists()
        try:
            if fresh:
                save_config(config, stored)
            results = len(config.seeds) * (1 + config.rounds * len(config.arms))
            found = f"goes on, {_lines(folder / METRICS)} of {results} results are there"
            logger.info(f"{folder}: {'a new run' if fresh else found}")
            yield
        finally:
            if fresh and _is_new(folder):
                _unmake(folder, made)


def _is_new(folder: Path) -> bool:
    """Whether nothing but what :func:`claim` makes, or a kill left of it, is there."""
    ours = lambda name: name in (LOCK, CONFIG) or name.startswith(f".{CONFIG}.")
    return all(ours(name) for name in os.listdir(folder))


def _unmake(folder: Path, made: list[Path]) -> None:
    (folder / CONFIG).unlink(missing_ok=True)
    (folder / LOCK).unlink(missing_ok=True)
    for path in made:  # innermost first
        with suppress(OSError):  # somebody else's file is there by now
            path.rmdir()


def _check_same(stored: Path, config: RunConfig) -> RunConfig:
    """The stored settings, which are those of ``config`` but for more rounds or seeds."""
    import yaml

    try:
        old = yaml.safe_load(stored.read_text())
        begun = build(RunConfig, old, str(stored))
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"{stored}: cannot be read as a run's configuration") from error
    same = {"mesh": begun.mesh}  # another mesh gives the same results
    if config.rounds > begun.rounds:
        same["rounds"] = begun.rounds
    if config.seeds[: len(begun.seeds)] == begun.seeds:
        same["seeds"] = begun.seeds
    differing = differences(to_dict(begun), to_dict(dataclasses.replace(config, **same)))
    if differing:
        raise InputError(
            f"{stored.parent}: holds a run with other settings: {'; '.join(differing)}; "
            "expected the same settings (more rounds or seeds aside) or another --output"
        )
    return begun


def questions_hash(task: Task) -> str:
    """Of a task's training and test questions, with their answers, and its worked examples."""
    return digest((*task.train, *task.test, *task.shots))


def check_record(folder: Path, record: dict) -> None:
    """Refuses to go on where the models or the questions are no longer those of the run's record.

    Raises:
      InputError: they are not, or the record is damaged.
    """
    old = read_object(folder / RECORD)
    expected = "expected those that the run began with, or another --output"
    for what in ("model", "teacher"):
        before, now = old.get(what) or {}, record.get(what, {})
        for key in (*IDENTITY, "fingerprint"):
            if before.get(key, now.get(key)) != now.get(key):
                raise InputError(
                    f"{folder}: {now['source']}, the {what}, has another {key} now, {now.get(key)} "
                    f"for {before[key]}; {expected}"
                )
    before = old.get(QUESTIONS) or {}
    changed = [name for name, now in record[QUESTIONS].items() if before.get(name, now) != now]
    if changed:
        raise InputError(f"{folder}: task {changed[0]} has other questions now; {expected}")


def write_record(folder: Path, config: RunConfig, record: dict) -> None:
    """Keeps the record, and settings that ask for more rounds or seeds than those stored."""
    stored = folder / CONFIG
    begun = _check_same(stored, config)
    if begun.rounds != config.rounds:
        shutil.rmtree(folder / "model", ignore_errors=True)  # it is not the last one any more
    if (begun.rounds, begun.seeds) != (config.rounds, config.seeds):
        save_config(dataclasses.replace(config, mesh=begun.mesh), stored)
    atomic_write(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _sweep(folder: Path) -> None:
    """Removes what a killed process left half-written or half-deleted."""
    for path in [*folder.rglob(f".*{PART}"), *folder.rglob(f".*{GONE}")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_metrics(folder: Path, rows: list[dict]) -> None:
    """Replaces ``metrics.jsonl``, unless it holds more.

    A run that is taken up again goes through the rounds that were finished before.
    """
    path = folder / METRICS
    if _lines(path) > len(rows):
        return
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
