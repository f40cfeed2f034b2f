"""The method: sample, check, select, fit, merge, evaluate."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from imm_jax.analysis.change import relative_distance
from imm_jax.analysis.diversity import distinct_n
from imm_jax.config import ArmConfig
from imm_jax.evaluation import Answer
from imm_jax.merging import LayerWeights, drop_and_rescale, merge_params
from imm_jax.rounds.select import from_rows, to_rows
from imm_jax.rounds.stages import Later, Stages


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a round needs done, each a function of its arguments alone.

    Attributes:
      sample: parameters and round number to graded samples of the training questions.
      select: graded samples to those worth training on; the parameters, round number and stages
        are for rules that ask the model.
      fit: parameters, selected samples, round number to fine-tuned parameters; with ``donate`` the
        parameters are given away.
      evaluate: parameters to scores.
      describe: the arguments of ``select`` to figures of the selection.
    """

    sample: Callable[[Later[PyTree], int, Stages], list[Answer]]
    select: Callable[[Later[PyTree], Sequence[Answer], int, Stages], list[Answer]]
    fit: Callable[..., PyTree]
    evaluate: Callable[[PyTree, Stages], dict]
    describe: Callable[[Later[PyTree], Sequence[Answer], int, Stages], dict]


def improve(
    t: int,
    arm: ArmConfig,
    base: Later[PyTree],
    current: Later[PyTree],
    tools: Tools,
    key: jax.Array,
    drawn: Stages,
    own: Stages,
    learned: Stages | None = None,
    put_aside: bool = False,
) -> tuple[Later[PyTree], dict]:
    """One round of Iterative Model Merging (Yuan et al., arXiv 2503.02103), in our reading::

        D_t     = {(x, y) : y ~ M_{t-1}(. | x), answer(y) is right}
        theta_t = SFT(M_{t-1}, D_t)
        M_t     = theta_0 + alpha_t * drop_and_rescale_p(theta_t - theta_0)

    Without a right answer there is nothing to fine-tune on: theta_t is what the fine-tune would
    have started from.

    Args:
      t: the round, from 1.
      arm: alpha, which the paper holds fixed, p, and the arm's variations.
      base: theta_0.
      current: M_{t-1}.
      tools: how each step is done.
      key: the run's random key; the round number is folded in.
      drawn: where samples are kept; arms may share it.
      own: where the merged model and its scores are kept.
      learned: where selection and fine-tune are kept, by default beside the samples; arms may
        share it.
      put_aside: keep in the host's memory what a step does not need, so that the model it works
        with has the device's to itself.

    Returns:
      M_t and the round's figures.
    """
    learned = learned or drawn
    start = base if arm.start_from == "base" else current
    like = jax.tree.map(_shape, base())

    def make_room(*models: Later[PyTree]) -> None:
        for model in models if put_aside else ():
            model.put_aside()

    make_room(base)
    with drawn.measure("sample"):
        samples = tools.sample(current, t, drawn)
    with learned.measure("select"):
        selected = from_rows(
            learned.rows("selected", lambda: to_rows(tools.select(current, samples, t, learned)))
        )

    def fit() -> PyTree:
        params = start()
        make_room(base, current)
        return tools.fit(params, selected, t, learned, donate=put_aside)

    tuned = learned.params("tuned", like, fit, "fit") if selected else start
    key = jax.random.fold_in(key, t)
    merged = own.params(
        "model", like, lambda: own.traced(merge, arm, t, base, current, tuned(), key), "merge"
    )

    def score() -> dict:
        params = merged()
        make_room(base, current, *([tuned] if selected else ()))
        return {
            **tools.evaluate(params, own),
            "samples": len(samples),
            "correct": sum(sample.correct for sample in samples),
            "kept": len(selected),
            **tools.describe(current, samples, t, learned),
            "distinct_2": distinct_n([sample.text for sample in samples]),
            "distance": relative_distance(base(), params),
        }

    with own.measure("evaluate"):
        scores = own.values("scores", score)
    if selected:
        tuned.forget()
    return merged, scores


def _shape(x: jax.Array | np.ndarray) -> jax.ShapeDtypeStruct | np.ndarray:
    """What an array is restored like; its values need not stay for that."""
    if isinstance(x, np.ndarray):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def merge(
    arm: ArmConfig,
    t: int,
    base: Later[PyTree],
    current: Later[PyTree],
    tuned: PyTree,
    key: jax.Array,
) -> PyTree:
    """``anchor + alpha_t * drop_and_rescale_p(tuned - anchor)``."""
    anchor = base() if arm.merge_with == "base" else current()
    drop = drop_and_rescale(arm.drop_rate) if arm.drop_rate else None
    factor = 1.0 if arm.schedule is None else arm.schedule[min(t, len(arm.schedule)) - 1]
    if isinstance(arm.weight, tuple):
        weight = LayerWeights([factor * w for w in arm.weight], default=factor * arm.outside)
    else:
        weight = factor * arm.weight
    return merge_params(anchor, tuned, weight=weight, transform=drop, key=key)
