"""Finds merge weights that score best, with CMA-ES: what mergekit calls evolving a merge.

    space = LayerWeights(Interval(0, 1, shape=(24,)), default=Interval(0, 1))
    objective = merge_objective(score, base, tuned)          # score(params) -> a number
    found = search(objective, space, budget=400, batched=True)
    merged = merge_params(base, tuned, weight=found.weights)

Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; for model merging
Akiba et al. 2024, arXiv 2403.13187.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, PyTree

from imm_jax.errors import InputError, Interrupted
from imm_jax.merging.merge import merge_params
from imm_jax.merging.protocol import Chain, Transform
from imm_jax.merging.search_record import Row, keep
from imm_jax.merging.search_space import Space, read_space
from imm_jax.progress import Progress

MIN_POPULATION = 4  # CMA-ES recombines half of a generation, which needs two
MAX_SEED = 2**32 - 1  # of NumPy's RandomState


@dataclass(frozen=True)
class SearchResult:
    """What a search found. N is how many candidates were scored, D how many numbers each has.

    Attributes:
      weights: the best candidate, a tree like the space, its searched leaves float32.
      score: its score, the highest; the first where several have it.
      candidates: ``[N, D]`` float64, in the order they were scored; an objective is given them as
        float32.
      scores: ``[N]`` float64, -inf where a score was not finite.
    """

    weights: PyTree
    score: float
    candidates: np.ndarray
    scores: np.ndarray


def merge_objective(
    score: Callable[[PyTree], Any],
    base: PyTree,
    tuned: PyTree | Sequence[PyTree],
    *,
    transform: Transform | Chain | None = None,
    key: Array | None = None,
    stacked: Callable[[str], bool] | None = None,
) -> Callable[[PyTree], Any]:
    """The objective ``weight -> score(merge_params(base, tuned, weight=weight, ...))``.

    Args:
      score: parameters to a number, higher is better. For a batched search it must be traceable;
        a ``jax.tree_util.Partial`` passes its arrays as arguments instead of compiling them in.
      base, tuned, transform, key, stacked: as in :func:`imm_jax.merging.merge_params`. The key is
        the same for all candidates.
    """

    def merged_score(score, base, tuned, key, weight):
        return score(
            merge_params(base, tuned, weight=weight, transform=transform, key=key, stacked=stacked)
        )

    return jax.tree_util.Partial(merged_score, score, base, tuned, key)


def search(
    objective: Callable[[PyTree], Any],
    space: PyTree,
    *,
    budget: int,
    population: int | None = None,
    seed: int = 0,
    batched: bool = False,
    initial: PyTree | None = None,
    path: str | os.PathLike | None = None,
    about: Any = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SearchResult:
    """Maximises a scored objective over a tree of numbers by CMA-ES (Hansen 2016).

    Needs the extra ``search``. Deterministic: the same arguments give the same result, and so does
    a search that was killed and taken up again from ``path``.

    Args:
      objective: from a tree like ``space`` (float32 arrays for its intervals) to its score, a
        number, higher is better. A score that is not finite counts as the worst.
      space: a tree with an :class:`Interval` for every number or array to search; numbers and
        arrays in it stay as they are.
      budget: evaluations at most; only whole generations are run, and the search ends before where
        candidates no longer differ enough to be told apart.
      population: candidates in a generation, at least 4; by default ``4 + floor(3 ln D)`` for D
        numbers, more where scores are noisy.
      seed: of the candidates.
      batched: score each generation in one jitted call, ``vmap``ped over the candidates: for models
        of which ``population`` merged copies fit in memory. Otherwise the objective is called with
        one candidate after another, and may do anything, such as sampling on the host.
      initial: where to begin, a tree like ``space``; the middle of each interval by default.
      path: a file that keeps every scored candidate as a line of JSON. The same call goes on from
        it, also with a larger budget.
      about: plain data that says what the objective is (models, questions); kept in ``path``, and a
        search is taken up only with the same.
      should_stop: asked before each evaluation or batch; on True the search ends with Interrupted.

    Raises:
      InputError: an argument cannot be used (said before anything is scored), ``path`` holds
        another search, a score is no number, or no score of the first generation is finite.
      Interrupted: ``should_stop`` said so; what was scored is in ``path``.
    """
    if not callable(objective):
        raise InputError(f"objective is {objective!r:.60}, expected a function of merge weights")
    known = read_space(space, initial)
    size = known.start.size
    population = 4 + int(3 * math.log(size)) if population is None else population
    _check_whole("population", population, MIN_POPULATION)
    _check_whole("budget", budget, population, " (a generation)")
    _check_whole("seed", seed, 0, high=MAX_SEED)
    optimizer = _optimizer(known, population, seed)
    evaluate = _batched(objective, known) if batched else _one_by_one(objective, known)
    settings = {
        "space": known.describe(),
        "start": known.start.tolist(),
        "population": population,
        "seed": seed,
        "about": about,
    }
    total = budget // population * population
    with keep(path, settings, size) as (kept, save), Progress("search", total, "score") as progress:
        rows: list[Row] = []
        while len(rows) < total and not optimizer.should_stop():
            points = np.stack([optimizer.ask() for _ in range(population)])
            drawn = known.start + known.spread * points
            generation = kept[len(rows) : len(rows) + population]
            progress.skip(len(generation))
            values = known.to_float32(drawn)
            while len(generation) < population:
                if should_stop():
                    done = len(rows) + len(generation)
                    raise Interrupted(f"search: stopped after {done} of {total} scores")
                first = len(generation)
                new = [Row(*pair) for pair in zip(drawn[first:], evaluate(values, first))]
                save(new)
                generation += new
                progress.update(len(new), f"best {max(row.score for row in rows + generation):.4g}")
            rows += generation
            _tell(optimizer, known, generation, rows)
    scores = np.array([row.score for row in rows])
    candidates = known.clip(np.stack([row.candidate for row in rows]))
    best = int(np.argmax(scores))
    weights = known.unravel(known.to_float32(candidates[best]))
    return SearchResult(weights, float(scores[best]), candidates, scores)


def _check_whole(name: str, value: Any, low: int, why: str = "", high: float = math.inf) -> None:
    if type(value) is not int or not low <= value <= high:
        end = "" if math.isinf(high) else f" to {high}"
        raise InputError(f"{name} is {value!r:.60}, expected a whole number from {low}{why}{end}")


def _optimizer(known: Space, population: int, seed: int) -> Any:
    """CMA-ES in units of each number's spread, from the start."""
    try:
        from cmaes import CMA
    except ImportError as error:
        raise InputError("search needs cmaes: pip install 'imm-jax[search]'") from error
    return CMA(mean=np.zeros(known.start.size), sigma=1.0, population_size=population, seed=seed)


def _tell(optimizer: Any, known: Space, generation: Sequence[Row], rows: Sequence[Row]) -> None:
    """Tells the optimizer, which minimises, what a generation scored.

    A candidate out of bounds has the score of the nearest point within, less the squared distance
    to it, in spreads, times the interquartile range of the generation's scores (simplified from
    Hansen et al. 2009, IEEE TEC 13(1), section IV.B): bounds are reached as fast as other places,
    where drawing again until a candidate is inside only comes near them.
    """
    finite = [row.score for row in rows if math.isfinite(row.score)]
    if not finite:
        raise InputError(
            f"objective: none of the first {len(rows)} scores is finite, expected a number"
        )
    drawn = np.stack([row.candidate for row in generation])
    scores = np.maximum([row.score for row in generation], min(finite))
    outside = np.square((drawn - known.clip(drawn)) / known.spread).sum(1)
    losses = outside * np.subtract(*np.percentile(scores, [75, 25])) - scores
    # From what the record holds, so that a search that is taken up again is told the same bits.
    points = (drawn - known.start) / known.spread
    optimizer.tell(list(zip(points, losses.tolist())))


# Both give the scores of candidates [P, D], float32, from number ``first`` on: as many as they like
# to make at a time.


def _one_by_one(objective: Callable, known: Space) -> Callable[[np.ndarray, int], list[float]]:
    return lambda values, first: [_number(objective(known.unravel(values[first])))]


def _batched(objective: Callable, known: Space) -> Callable[[np.ndarray, int], list[float]]:
    # Arrays that the objective holds are arguments: a program would hold them as constants.
    leaves, treedef = jax.tree.flatten(objective)
    arrays = [x if isinstance(x, (jax.Array, np.ndarray)) else None for x in leaves]

    @jax.jit
    def score_all(arrays: list, values: Float[Array, "P D"]) -> Array:
        own = [x if array is None else array for x, array in zip(leaves, arrays)]
        whole = treedef.unflatten(own)
        return jax.vmap(lambda vector: whole(known.unravel(vector)))(values)

    def evaluate(values: np.ndarray, first: int) -> list[float]:
        scores = np.asarray(score_all(arrays, values))
        return [_number(score) for score in scores[first:]]

    return evaluate


def _number(score: Any) -> float:
    """A score as a float; -inf where it is not finite."""
    try:
        value = float(score) if np.shape(score) == () else None
    except (TypeError, ValueError):
        value = None
    if value is None:
        shown = " ".join(repr(score).split())
        raise InputError(f"objective gave {shown:.60}, expected a number")
    return value if math.isfinite(value) else -math.inf
