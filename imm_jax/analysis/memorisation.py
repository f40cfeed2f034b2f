"""Has a model learnt the questions it practised, or how to answer their like?"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from imm_jax.analysis.scores import Comparison, TaskScore, compare, score_answers, verdicts
from imm_jax.evaluation import Answer
from imm_jax.tasks import generators
from imm_jax.tasks.arithmetic import solve
from imm_jax.tasks.drafts import Draw
from imm_jax.tasks.stories import COMPARISON, ONE_STEP, TWO_STEP, Story
from imm_jax.tasks.types import Example

STORIES = {"one_step": ONE_STEP, "two_step": TWO_STEP, "comparison": COMPARISON}
TRIES = 500
SETS = ("trained", "renumbered", "new")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memorisation:
    """One model on questions it was trained on and on others.

    Attributes:
      scores: for each set that there is its score: ``trained``, ``renumbered`` and ``new``.
      renumbered: the questions that have a renumbered one, with it and without: which of the two
        are right (first the trained one), with McNemar's exact test. None without any.
      new_p_value: of Fisher's exact test that trained and new ones are right as often.
    """

    scores: dict[str, TaskScore]
    renumbered: Comparison | None
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


def memorisation(sets: Mapping[str, Sequence[Answer]], answer_type: str) -> Memorisation:
    """Scores and tests of one model's answers.

    Trained questions are those whose samples were kept, so the original model got them right more
    often than others before any training. Look at the original's figures beside the tuned model's:
    what grew by the training is what was learnt there.

    Args:
      sets: answers to the ``trained``, ``renumbered`` (may be empty) and ``new`` questions, one to
        each; the id of a renumbered one is the trained one's with ``/renumbered`` behind it.
      answer_type: the task's.
    """
    from scipy.stats import fisher_exact

    scores = {name: score_answers(sets[name], answer_type) for name in SETS if sets[name]}
    right = {name: verdicts(sets[name], answer_type) if sets[name] else {} for name in SETS}
    again = {name.removesuffix("/renumbered"): ok for name, ok in right["renumbered"].items()}
    paired = {name: right["trained"][name] for name in again}
    counts = [
        [sum(right[name].values()), len(right[name]) - sum(right[name].values())]
        for name in ("trained", "new")
    ]
    return Memorisation(
        scores=scores,
        renumbered=compare(paired, again) if again else None,
        new_p_value=float(fisher_exact(counts).pvalue),
    )
