"""The built-in tasks: questions made from templates, seeded, with exact answers and solutions.

Training and test questions cannot meet: which split a question belongs to is a hash of what it
asks, whatever the seed. A model trained on one seed has seen no test question of any other.
"""

import logging
from collections.abc import Iterator

from imm_jax.errors import InputError, nearest
from imm_jax.tasks import arithmetic, commonsense, symbolic
from imm_jax.tasks.drafts import Draft, Draw, Kind, digest
from imm_jax.tasks.types import Example, Task

logger = logging.getLogger("imm_jax")

SHOTS = 8
SHOT_PERCENT = 10
TRAIN_SIZE, TEST_SIZE = 512, 200
GIVE_UP = 500  # draws in a row without a new question: the variant has no more

KINDS: dict[str, Kind] = {**arithmetic.KINDS, **symbolic.KINDS, **commonsense.KINDS}


def generate(
    kind: str, *, seed: int = 0, train_size: int | None = None, test_size: int | None = None
) -> Task:
    """Makes the task ``kind``.

    A larger size only appends: the first 100 questions are the same for 100 and for 1000. The
    worked examples do not depend on the seed, and the first four cover every variant.

    Args:
      kind: a name in ``KINDS``.
      seed: another seed gives other questions from the same splits.
      train_size: training questions, by default 512. A kind with fewer gives what it has.
      test_size: test questions, by default 200.

    Raises:
      InputError: an unknown kind.
    """
    if kind not in KINDS:
        raise InputError(
            f"unknown built-in task {kind!r}{nearest(kind, KINDS)}; known: {', '.join(KINDS)}"
        )
    sizes = {
        "train": TRAIN_SIZE if train_size is None else train_size,
        "test": TEST_SIZE if test_size is None else test_size,
    }
    splits = {
        split: tuple(_examples(kind, split, str(seed), size)) for split, size in sizes.items()
    }
    for split, asked in (("train", train_size), ("test", test_size)):
        if asked is not None and len(splits[split]) < asked:
            logger.warning(
                f"builtin:{kind} has only {len(splits[split])} {split} questions, not {asked}"
            )
    return Task(
        name=kind,
        train=splits["train"],
        test=splits["test"],
        shots=tuple(_examples(kind, "shots", "fixed", SHOTS)),
        answer_type=KINDS[kind].answer_type,
        source=f"builtin:{kind} version {KINDS[kind].version} seed {seed}",
    )


def split_of(kind: str, key: str) -> str:
    """``"shots"``, ``"test"`` or ``"train"``: where every question with this key belongs."""
    place = int(digest(f"{kind}/{key}")[:12], 16) % 100
    if place < SHOT_PERCENT:
        return "shots"
    return "test" if place < SHOT_PERCENT + KINDS[kind].test_percent else "train"


def _examples(kind: str, split: str, seed: str, size: int) -> Iterator[Example]:
    draw = Draw(f"imm_jax/{KINDS[kind].version}/{kind}/{split}/{seed}")
    variants = list(KINDS[kind].variants)
    seen: set[str] = set()
    turn = 0
    while variants and len(seen) < size:
        variant = variants[turn % len(variants)]
        for _ in range(GIVE_UP):
            draft = KINDS[kind].draft(draw, variant)
            if draft and draft.question not in seen and split_of(kind, draft.key) == split:
                seen.add(draft.question)
                turn += 1
                yield _example(kind, variant, draft)
                break
        else:
            variants.remove(variant)


def _example(kind: str, variant: str, draft: Draft) -> Example:
    return Example(
        id=f"{kind}/{digest(draft.question)[:12]}",
        question=draft.question,
        answer=draft.answer,
        choices=draft.choices,
        solution=f"{draft.working} The answer is {draft.answer}.".lstrip(),
        kind=variant,
    )
