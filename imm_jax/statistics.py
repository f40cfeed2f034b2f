"""Numbers that say how sure a score is: intervals, pass@k, a test between two models."""

import math
import statistics
from collections.abc import Sequence

import numpy as np


def wilson_interval(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share of ``count`` trials (E. B. Wilson, 1927, eq. 4)."""
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)  # scipy's takes a second to import
    middle = share + z * z / (2 * count)
    half = z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    scale = 1 + z * z / count
    low, high = (middle - half) / scale, (middle + half) / scale
    # Rounding may put an end past a share of 0 or 1.
    return max(0.0, min(share, low)), min(1.0, max(share, high))


def mean_interval(
    shares: Sequence[tuple[float, float, float]],
) -> tuple[float, float, float]:
    """The mean of independent shares, each ``(share, low, high)``, with its interval.

    Every share weighs the same. The half-widths of independent means add in squares.
    """
    count = len(shares)
    mean = sum(share for share, _, _ in shares) / count
    below = sum((share - low) ** 2 for share, low, _ in shares) ** 0.5 / count
    above = sum((high - share) ** 2 for share, _, high in shares) ** 0.5 / count
    return mean, max(0.0, mean - below), min(1.0, mean + above)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that at least one of ``k`` samples of a question is right, without bias.

    ``1 - C(n - c, k) / C(n, k)`` for ``c`` right ones of ``n`` samples (Chen et al., arXiv
    2107.03374, eq. 1). The mean over questions is a benchmark's pass@k.

    Args:
      samples: n, how many were drawn.
      correct: c, how many of them are right, 0 to n.
      k: 1 to n.
    """
    if samples - correct < k:
        return 1.0
    # Factor by factor: the binomials of thousands of samples are no floats.
    wrong = 1.0
    for i in range(k):
        wrong *= (samples - correct - i) / (samples - i)
    return 1.0 - wrong


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's exact test (McNemar, 1947), two-sided.

    The questions that both models get right, or both wrong, say nothing of their difference. Of the
    ``n`` others each model should be the right one in half: the p-value is the chance, under
    ``Binomial(n, 1/2)``, of a split at least as uneven as the one seen. 1 where there are none.

    Args:
      only_first: questions that the first model alone answers right.
      only_second: those that the second alone answers right.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    ways, term = 0, 1  # whole numbers, so that the tail is exact
    for i in range(fewer + 1):
        ways += term
        term = term * (count - i) // (i + 1)
    return min(1.0, 2 * ways / 2**count)


def ladder(samples: int) -> list[int]:
    """The ``k`` to show pass@k for: 1, 2, 4, ... and the number of samples itself."""
    powers = [2**i for i in range(int(math.log2(samples)) + 1)]
    return powers if powers[-1] == samples else [*powers, samples]


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of several runs and its t interval (Student, 1908); it says how far seeds differ.

    Raises:
      ValueError: fewer than two values, which say nothing of their spread.
    """
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError(f"seed_interval: {len(values)} values, expected at least 2")
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / len(values) ** 0.5
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of scores from 0 to 1, one a question.

    Questions are drawn again as in :func:`paired_bootstrap`. Where all score alike that would see
    no spread, however few they are, so there it is Wilson's.
    """
    if len(set(values)) == 1:
        return wilson_interval(values[0], len(values))
    _, low, high = paired_bootstrap([np.array([values])])
    return low, high


def paired_bootstrap(
    differences: Sequence[np.ndarray], draws: int = 10_000, confidence: float = 0.95
) -> tuple[float, float, float]:
    """A mean difference between two models on the same questions, with its percentile interval.

    Questions are drawn again with replacement inside each task, and seeds, the same for all tasks,
    beside them (Efron, 1979); every task weighs the same. The random numbers are always the same.

    Args:
      differences: for each task ``[seeds, questions]``: the first model's score of each question
        less the second's.
      draws: how often to draw.
      confidence: of the interval.
    """
    rng = np.random.default_rng(0)
    seeds = len(differences[0])
    weights_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    means_R = np.zeros(draws)
    for task_SQ in differences:
        count = task_SQ.shape[1]
        # Questions that are alike are drawn together: there are few kinds of them.
        kinds_KS, times = np.unique(task_SQ.T, axis=0, return_counts=True)
        weights_RK = rng.multinomial(count, times / count, draws) / count
        means_R += (weights_RK @ kinds_KS * weights_RS).sum(axis=1)
    low, high = np.quantile(
        means_R / len(differences), [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    mean = float(np.mean([task.mean() for task in differences]))
    # Scores are shares: what sums of floats leave of a 0 would count as above it.
    return mean, round(float(low), 12), round(float(high), 12)


def ratio_bootstrap(
    tops: np.ndarray, bottoms: np.ndarray, draws: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of ``mean(tops) / mean(bottoms)``, 0 where the latter is 0.

    Questions are drawn again with replacement, both figures of one together (Efron, 1979). The
    random numbers are always the same.

    Args:
      tops: ``[questions]``.
      bottoms: ``[questions]``, from 0.
      draws: how often to draw.
      confidence: of the interval.
    """
    rng = np.random.default_rng(0)
    kinds_K2, times = np.unique(np.stack([tops, bottoms], axis=1), axis=0, return_counts=True)
    top_R, bottom_R = (rng.multinomial(len(tops), times / len(tops), draws) @ kinds_K2).T
    ratios_R = np.divide(top_R, bottom_R, out=np.zeros(draws), where=bottom_R > 0)
    low, high = np.quantile(ratios_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return round(float(low), 12), round(float(high), 12)
