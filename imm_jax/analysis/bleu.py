"""BLEU of short texts, and of texts against one another."""

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
EPSILON = 0.1


def sentence_bleu(references: Sequence[Sequence[str]], words: Sequence[str]) -> float:
    """BLEU-4 of one text (Papineni et al., 2002), 0 to 1.

    The geometric mean of the clipped n-gram precisions for n = 1 to 4 times the brevity penalty
    against the reference nearest in length. As texts are short, a precision with no match counts
    0.1 matches (Chen and Cherry, 2014, method 1); without a common word the score is 0. The figures
    are those of NLTK's ``sentence_bleu`` with ``SmoothingFunction().method1``.

    Args:
      references: at least one text, as words.
      words: the text that is scored.
    """
    total = 0.0
    for n in range(1, ORDERS + 1):
        grams = Counter(_grams(words, n))
        most: Counter = Counter()
        for reference in references:
            most |= Counter(_grams(reference, n))
        matches = sum((grams & most).values())
        if n == 1 and matches == 0:
            return 0.0
        total += math.log((matches or EPSILON) / max(1, sum(grams.values())))
    nearest = min((abs(len(r) - len(words)), len(r)) for r in references)[1]
    brevity = 1.0 if len(words) > nearest else math.exp(1 - nearest / len(words))
    return brevity * math.exp(total / ORDERS)


def self_bleu(texts: Sequence[str]) -> float | None:
    """How alike texts are: the mean BLEU of each against all others (Zhu et al., 1802.01886).

    Words are what white space separates. A text that is also another's scores 1 whatever its
    length, where BLEU's smoothing would leave one of fewer than four words below: samples that
    collapse to bare answers are alike, not diverse. None with fewer than two texts.
    """
    if len(texts) < 2:
        return None
    words = [tuple(text.split()) for text in texts]
    count = Counter(words)
    scores = [
        1.0 if count[own] > 1 else sentence_bleu([*words[:i], *words[i + 1 :]], own)
        for i, own in enumerate(words)
    ]
    return sum(scores) / len(scores)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
