"""Model soups: the mean of the models that help."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from imm_jax.errors import InputError
from imm_jax.merging import methods
from imm_jax.merging.merge import merge_params

PyTree = Any


class Soup(NamedTuple):
    """What :func:`greedy_soup` made.

    Attributes:
      params: the mean of the chosen models.
      chosen: their indices, in the order in which they were added; the best model is the first.
      scores: the soup's score after each addition, so the first is that of the best model alone.
    """

    params: PyTree
    chosen: list[int]
    scores: list[float]


def greedy_soup(
    models: Sequence[PyTree],
    score: Callable[[PyTree], float],
    *,
    alone: Sequence[float] | None = None,
    stacked: Callable[[str], bool] | None = None,
) -> Soup:
    """Averages models one after another, the best first, as long as the score does not fall.

    Wortsman et al. 2022, "Model soups", arXiv 2203.05482, recipe 1. Every mean is taken anew over
    its models and rounded once, so nothing adds up over the additions and no float32 copy is kept:
    beside the models there are at most the soup and one candidate.

    Args:
      models: trees of the same structure.
      score: ``score(params) -> number`` on held-out data, larger is better.
      alone: the score of each model alone, where it is known already; None: ``score`` is called.
      stacked: as in :func:`imm_jax.merging.merge_params`.

    Raises:
      InputError: no models, a score that is not a number, or structures that differ.
    """
    models = list(models)
    if not models:
        raise InputError("greedy_soup got no models")
    if alone is None:
        alone = [score(model) for model in models]
    if len(alone) != len(models):
        raise InputError(f"alone has {len(alone)} scores for {len(models)} models")
    alone = [_number(value, f"models[{i}]") for i, value in enumerate(alone)]
    best, *others = sorted(range(len(models)), key=lambda i: -alone[i])
    soup, chosen, scores = models[best], [best], [alone[best]]
    for index in others:
        ingredients = [models[i] for i in (*chosen, index)]
        candidate = merge_params(
            models[best], ingredients, weight=1.0, transform=methods.linear(), stacked=stacked
        )
        found = _number(score(candidate), f"the soup of models {[*chosen, index]}")
        if found >= scores[-1]:
            soup, chosen, scores = candidate, [*chosen, index], [*scores, found]
        del candidate
    return Soup(soup, chosen, scores)


def _number(value: Any, what: str) -> float:
    number = float(value)
    if math.isnan(number):
        raise InputError(f"the score of {what} is not a number")
    return number
