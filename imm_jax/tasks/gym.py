"""Tasks of reasoning-gym (the extra ``reasoning-gym``): its questions, scored by its own scorers.

Stojanovski et al., "Reasoning Gym", arXiv 2505.24760. Everything of it runs in other processes: its
questions depend on Python's hash seed, which is theirs to fix, and some of its scorers evaluate
what a model said (``_worker.harmless``).
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from imm_jax.errors import InputError, nearest
from imm_jax.tasks.types import Example, Task
from imm_jax.tasks.verify import WORKER, worker_environment

TRAIN_SIZE, TEST_SIZE, SHOTS = 512, 200, 8
INSTALL = ": pip install 'imm-jax[reasoning-gym]'"
# Question i of seed s is made of the number s + i: so far apart, no split meets another's.
OFFSETS = {"test": 0, "train": 1_000_000, "shots": 2_000_000}


def generate_gym(
    name: str,
    config: dict[str, Any],
    *,
    seed: int = 0,
    train_size: int | None = None,
    test_size: int | None = None,
) -> Task:
    """Makes the task ``name``; its worked examples are questions with their answers.

    A question that occurs twice is asked once. For nearly all tasks a larger size only appends.

    Args:
      name: a data set of reasoning-gym.
      config: its own settings, such as ``{"min_digits": 2}``.
      seed: another seed gives other questions.
      train_size: training questions, by default 512.
      test_size: test questions, by default 200.

    Raises:
      InputError: reasoning-gym is not installed, or does not know the name, a setting or its value.
    """
    sizes = {
        "test": TEST_SIZE if test_size is None else test_size,
        "train": TRAIN_SIZE if train_size is None else train_size,
        "shots": SHOTS,
    }
    orders = {
        split: {
            "name": name,
            "config": config,
            "seed": OFFSETS[split] + (0 if split == "shots" else seed),
            "size": size,
        }
        for split, size in sizes.items()
        if size
    }
    splits: dict[str, tuple[Example, ...]] = {"train": (), "test": (), "shots": ()}
    seen: set[str] = set()
    for (split, order), rows in zip(orders.items(), _make(list(orders.values()))):
        splits[split] = tuple(_examples(split, order, rows, seen))
    return Task(
        name=name,
        train=splits["train"],
        test=splits["test"],
        shots=tuple(shot for shot in splits["shots"] if shot.answer),
        answer_type="reasoning_gym",
        source=f"reasoning_gym:{name} {json.dumps(config)} seed {seed}",
    )


def _examples(split: str, order: dict, rows: Sequence, seen: set[str]) -> Iterator[Example]:
    for index, (question, answer) in enumerate(rows):
        if question not in seen:
            seen.add(question)
            yield Example(
                id=f"{order['name']}/{split}-{order['seed']}-{index:05d}",
                question=question,
                answer=answer or "",
                solution=f"The answer is {answer}" if answer else None,
                check=json.dumps(order | {"index": index}, sort_keys=True),
            )


def _make(orders: Sequence[dict]) -> list[list[tuple[str, str | None]]]:
    """Questions with their answers, for each order."""
    where = f"reasoning_gym:{orders[0]['name']}"
    done = subprocess.run(
        [sys.executable, "-P", str(WORKER), "make"],
        input="".join(json.dumps(order) + "\n" for order in orders).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=worker_environment(),
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    for reply in replies:
        if "unknown" in reply:
            known, wrong = reply["known"], reply["unknown"]
            raise InputError(f"{where}: unknown name {wrong!r}{nearest(wrong, known)}")
        if "error" in reply:
            hint = INSTALL if "No module named" in reply["error"] else ""
            raise InputError(f"{where}: {reply['error'].splitlines()[0][:300]}{hint}")
    if len(replies) < len(orders):
        raise InputError(f"{where}: the process that makes the questions died")
    return [reply["rows"] for reply in replies]
