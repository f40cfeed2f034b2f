"""From a list of specs, suites among them, to tasks.

suite:out_of_domain                   each data set of the suite, from the hub
suite:out_of_domain,folder=data       those that the folder has, as ``data/NAME.jsonl`` or
                                      ``data/NAME_test.jsonl`` (and ``NAME_train.jsonl``)
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from imm_jax.errors import InputError, nearest
from imm_jax.tasks.hub_sets import SUITES
from imm_jax.tasks.sources import make_task, parse_spec
from imm_jax.tasks.types import Task

logger = logging.getLogger("imm_jax")


def make_tasks(
    specs: Sequence[str],
    *,
    seed: int = 0,
    train_size: int | None = None,
    test_size: int | None = None,
) -> list[Task]:
    """The tasks of all ``specs``; arguments and errors as in ``make_task``, and of ``expand``."""
    return [
        make_task(spec, seed=seed, train_size=train_size, test_size=test_size)
        for spec in expand(specs)
    ]


def expand(specs: Sequence[str]) -> list[str]:
    """Specs with each suite replaced by those of its tasks, without any that came before.

    Raises:
      InputError: an unknown suite (with the nearest known one), or a folder with none of its files.
    """
    found: list[str] = []
    for spec in specs:
        if isinstance(spec, str) and spec.strip().startswith("suite:"):
            found += [member for member in _members(spec) if member not in found]
        else:
            found.append(spec)
    return found


def _members(spec: str) -> list[str]:
    _, name, options = parse_spec(spec)
    if name not in SUITES:
        raise InputError(
            f"unknown suite {name!r}{nearest(name, SUITES)}; known: {', '.join(SUITES)}"
        )
    if "folder" not in options:
        return [f"hub:{task}" for task in SUITES[name]]
    folder = Path(options["folder"])
    found = {task: files for task in SUITES[name] if (files := _files(folder, task))}
    missing = [task for task in SUITES[name] if task not in found]
    if not found:
        raise InputError(f"{spec}: {folder} has no file {missing[0]}.jsonl, nor of the other tasks")
    if missing:
        logger.warning(f"{spec}: left out, for {folder} has no file of it: {', '.join(missing)}")
    return [f"jsonl:{files},name={task}" for task, files in found.items()]


def _files(folder: Path, task: str) -> str:
    """``"test=...,train=..."``; empty where the folder has no test questions of the task."""
    names = {"test": (f"{task}.jsonl", f"{task}_test.jsonl"), "train": (f"{task}_train.jsonl",)}
    paths = {
        split: next((folder / name for name in choices if (folder / name).is_file()), None)
        for split, choices in names.items()
    }
    if paths["test"] is None:
        return ""
    return ",".join(f"{split}={path}" for split, path in paths.items() if path)
