"""The promise of ``drafts.Draft.key``: no fact is both trained on and tested."""

import re

import pytest

from imm_jax.tasks.generators import KINDS, generate


def computations(example):
    found = re.findall(r"(\d+) ([-+*/]) (\d+) =", example.solution)
    return tuple(
        (operator, *(sorted((int(a), int(b))) if operator in "+*" else (int(a), int(b))))
        for a, operator, b in found
    )


def runs(example):
    """A sequence with its answer, and all that are part of it, in both directions."""
    items = [*re.search(r": (.*), \.\.\.", example.question)[1].split(", "), example.answer]
    pieces = [items[i:j] for i in range(len(items)) for j in range(i + 1, len(items) + 1)]
    return [tuple(items), *map(tuple, pieces), *(tuple(piece[::-1]) for piece in pieces)]


def quoted(example):
    return re.findall(r'"([^"]+)"', example.question)


# By kind: what a question asks, without its wording, from what it says.
FACTS = {
    "one_step": computations,
    "two_step": computations,
    "comparison": computations,
    "last_letter": quoted,
    "coin_flip": lambda e: sorted(re.findall(r"\w+ (?:flips|does not flip)\b", e.question)),
    "reverse_words": lambda e: e.question.split(": ")[1],
    "sort_words": lambda e: sorted(e.question.split(": ")[1].split()),
    "sequence": lambda e: runs(e)[0],
    "calendar": lambda e: re.findall(r"is ([A-Z]\w+)|(\d+ \w+?)s?\b|(ago)", e.question),
    "letter_count": lambda e: sorted(" ".join(quoted(e)).split()),
    "swaps": lambda e: e.question,
    "instruction": lambda e: e.question,
    "commonsense": lambda e: e.question,
}
# Where a question gives more away than it asks.
SHOWN = {
    "sequence": runs,
    "last_letter": lambda e: [quoted(e), *([word] for word in quoted(e)[0].split())],
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_fact_is_both_trained_on_and_tested(kind):
    task = generate(kind, seed=6, train_size=3000, test_size=1000)
    ask = FACTS[kind]
    show = SHOWN.get(kind, lambda example: [ask(example)])
    known = {str(fact) for example in (*task.train, *task.shots) for fact in show(example)}
    asked = {str(ask(example)) for example in task.test}
    assert len(asked) > 20 and not asked & known
