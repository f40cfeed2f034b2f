"""Has a model learnt the questions it practised, or how to answer their like?"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from imm_jax.analysis.scores import Comparison, TaskScore, compare, score_answers, verdicts
from imm_jax.errors import InputError
from imm_jax.evaluation import Answer
from imm_jax.tasks import generators
from imm_jax.tasks.arithmetic import solve
from imm_jax.tasks.drafts import Draw
from imm_jax.tasks.stories import COMPARISON, ONE_STEP, TWO_STEP, Story
from imm_jax.tasks.types import Example

STORIES = {"one_step": ONE_STEP, "two_step": TWO_STEP, "comparison": COMPARISON}
TRIES = 500
VARIED = ("renumbered", "varied")  # the trained questions once more, by a generator or from a file
SETS = ("trained", *VARIED, "new")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memorisation:
    """One model on questions it was trained on and on others.

    Attributes:
      scores: for each of ``SETS`` that there is its score.
      renumbered: the questions that have a renumbered one, with it and without: which of the two
        are right (first the trained one), with McNemar's exact test. None without any.
      varied: the same of those that have a variation.
      new_p_value: of Fisher's exact test that trained and new ones are right as often.
    """

    scores: dict[str, TaskScore]
    renumbered: Comparison | None
    varied: Comparison | None
    new_p_value: float


def renumber(kind: str, question: Example, seed: int = 0) -> Example | None:
    """The same question with other numbers, whose facts are in no training split.

    Only for questions that the built-in arithmetic generators made: their templates say which
    numbers there are, what each may be, and how the answer follows. Wording, names and things stay.
    Other text is not touched, as nothing says what its answer would be.

    Args:
      kind: a name in ``tasks.generators.KINDS``.
      question: one that this kind made.
      seed: of the numbers.

    Returns:
      A question of the test split, or None: the kind has no such templates, the question is of none
      of them, or no numbers of the test split were found for it.
    """
    draw = Draw(f"renumber/{seed}/{question.id}")
    for story in STORIES.get(kind, ()):
        words = _pattern(story).fullmatch(question.question)
        if words is None:
            continue
        for _ in range(TRIES):
            made = _retell(kind, story, words.groupdict(), draw)
            if made is not None and made.question != question.question:
                return dataclasses.replace(made, id=f"{question.id}/renumbered", kind=question.kind)
    return None


def _retell(kind: str, story: Story, words: dict[str, str], draw: Draw) -> Example | None:
    """The story with new numbers; None where they do not work out or may have been trained on."""
    numbers = {name: draw.integer(*ends) for name, ends in story.numbers.items()}
    solved = [solve(numbers, equation) for equation in story.given]
    if None in solved:
        return None
    steps = []
    for equation in story.steps:
        steps.append(solve(numbers, equation))
        if steps[-1] is None:
            return None
    key = ";".join(fact for _, fact in steps)
    if generators.split_of(kind, key) != "test":
        return None
    answer = steps[-1][0].rpartition(" ")[2]
    working = " ".join(f"{shown}." for shown, _ in steps)
    return Example(
        id="",
        question=story.text.format(**(words | {name: str(n) for name, n in numbers.items()})),
        answer=answer,
        solution=f"{working} The answer is {answer}.",
    )


def _pattern(story: Story) -> re.Pattern:
    """What the story looks like with any words and numbers in its slots."""
    parts, seen = [], set()
    for text, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", story.text):
        parts.append(re.escape(text))
        if slot in seen:
            parts.append(f"(?P={slot})")
        elif slot:
            parts.append(f"(?P<{slot}>.+?)")
            seen.add(slot)
    return re.compile("".join(parts))


def matched(trained: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """Those of ``others`` that carry a trained question's id, as variations of it.

    A file's ids are compared without the ``train/`` that a task puts before those of its training
    split, so that a file of variations repeats the ids of the training file.

    Raises:
      InputError: there is none.
    """
    ids = {question.id: question.id for question in trained}
    ids |= {question.id.removeprefix("train/"): question.id for question in trained}
    found = [
        dataclasses.replace(other, id=f"{ids[other.id]}/varied")
        for other in others
        if other.id in ids
    ]
    if not found:
        raise InputError(
            f"variations: none of {len(others)} ids is that of a trained question, expected ids "
            f"such as {min(ids, default='')!r}"
        )
    return found


def memorisation(sets: Mapping[str, Sequence[Answer]], answer_type: str) -> Memorisation:
    """Scores and tests of one model's answers.

    Trained questions are those whose samples were kept, so the original model got them right more
    often than others before any training. Look at the original's figures beside the tuned model's:
    what grew by the training is what was learnt there.

    Args:
      sets: answers to the questions of each of ``SETS``, one to each question; ``renumbered`` and
        ``varied`` may be empty. The id of one of these is the trained one's with ``/renumbered`` or
        ``/varied`` behind it.
      answer_type: the task's.
    """
    from scipy.stats import fisher_exact

    scores = {name: score_answers(sets[name], answer_type) for name in SETS if sets[name]}
    right = {name: verdicts(sets[name], answer_type) if sets[name] else {} for name in SETS}
    pairs: dict[str, Comparison | None] = dict.fromkeys(VARIED)
    for name in VARIED:
        if again := {key.removesuffix(f"/{name}"): ok for key, ok in right[name].items()}:
            pairs[name] = compare({key: right["trained"][key] for key in again}, again)
    counts = [
        [sum(right[name].values()), len(right[name]) - sum(right[name].values())]
        for name in ("trained", "new")
    ]
    return Memorisation(
        scores=scores,
        **pairs,
        new_p_value=float(fisher_exact(counts).pvalue),
    )
