"""Whole experiments as one XLA program: rounds of sample, check, select, fit, merge and evaluate.

For questions whose answers can be checked on token ids nothing has to leave the device between
rounds. A run is then a function of its merge weights, drop rate and seed, ``lax.scan`` goes through
its rounds, ``vmap`` through as many runs as are wanted, and a mesh axis spreads them over devices.
The steps are those of the host's loop (``round.py``, ``tools.py``): the same keys give the same
samples, the same selection and the same weights, to rounding.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from imm_jax.errors import InputError
from imm_jax.merging import LayerWeights, drop_and_rescale, merge_params
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.compiled_members import Member, Members, Seeds, as_arrays, visiting_orders
from imm_jax.rounds.compiled_steps import Language, Questions, Samples, answer, fit, select
from imm_jax.sampling.config import SamplingConfig
from imm_jax.training.config import TrainingConfig
from imm_jax.tree import num_layers

__all__ = ["Language", "Member", "Outcome", "Program", "Questions", "accuracies", "sweep"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What all runs of a sweep have in common; each field is part of what is compiled.

    Attributes:
      model: the decoder.
      language: how answers end, are checked, and are written down for training.
      rounds: T.
      samples: samples of each training question.
      sampling: how they are drawn; ``batch_size`` and ``chunk`` say nothing here.
      evaluation: how test questions are answered.
      training: the fine-tune, all parameters, ``batch_size`` sequences side by side.
      deduplicate: of equal samples of a question train on the first alone.
      merge_with, start_from: as in ``config.ArmConfig``.
    """

    model: Decoder
    language: Language
    rounds: int
    samples: int
    sampling: SamplingConfig
    evaluation: SamplingConfig
    training: TrainingConfig
    deduplicate: bool = True
    merge_with: str = "base"
    start_from: str = "merged"

    def __post_init__(self):
        for name, options in (
            ("merge_with", ("base", "previous")),
            ("start_from", ("merged", "base")),
        ):
            if getattr(self, name) not in options:
                raise InputError(
                    f"{name}: {getattr(self, name)!r}, expected one of {', '.join(options)}"
                )
        for name in ("rounds", "samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}, expected at least 1")
        if self.training.lora is not None:
            raise InputError("training.lora: compiled rounds train all parameters, expected none")
        if self.training.remat:
            raise InputError("training.remat: compiled rounds do without it, expected false")


class Figures(NamedTuple):
    """What a round comes to.

    Attributes:
      accuracy: of M_t on each set of test questions.
      correct: how many samples drawn from M_{t-1} are right.
      kept: how many of them were trained on.
      distinct: mean over questions of the distinct answers to it, as a share of its samples.
      nats: mean of a sample's negative log-probability, an estimate of the answers' entropy where
        they are drawn at temperature 1.
    """

    accuracy: Float[Array, "K"]
    correct: Int[Array, ""]
    kept: Int[Array, ""]
    distinct: Float[Array, ""]
    nats: Float[Array, ""]


class Outcome(NamedTuple):
    """A run's results; ``figures`` and ``samples`` have the rounds as leading axis.

    Attributes:
      figures: of every round.
      samples: what was drawn, and what of it was kept.
      params: M_T.
    """

    figures: Figures
    samples: Samples
    params: PyTree


class _Proposal(NamedTuple):
    """What a round comes to before anything is merged: samples, and theta_t fine-tuned on them."""

    drawn: Samples
    tuned: PyTree


def sweep(
    program: Program,
    base: PyTree,
    train: Questions,
    tests: Sequence[Questions],
    members: Sequence[Member],
    *,
    keep: Callable[[Outcome], PyTree] = lambda outcome: outcome.figures,
    batch: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "K"], PyTree]:
    """Runs Iterative Model Merging once for each member, all in one compiled program.

    A round in which a run keeps no sample merges without a fine-tune, as the host's loop does
    (which gives up if that is the first). Until theta_1 is merged, runs of one seed are one run:
    its samples are drawn, and theta_1 is fitted, once for each seed.

    Args:
      program: what the runs share.
      base: theta_0, stacked (canonical) float32 parameters.
      train: questions practised in every round.
      tests: sets of test questions, in-domain first.
      members: the runs.
      keep: what of each run's outcome to return; what is left out is not kept in memory.
      batch: members that run side by side on a device, a divisor of how many it has; one such group
        after another, in the same program, in a part of the memory. None: all of them.
      mesh: with one axis, along which the members are split; it is their number's divisor. None:
        one device.

    Returns:
      The accuracy of ``base`` on each set of test questions, and what ``keep`` gives with the
      members as leading axis.

    Raises:
      InputError: no members, a weight that does not fit, a drop rate or seed out of range, members
        that the mesh or ``batch`` does not divide.
    """
    devices = 1 if mesh is None else mesh.size
    seeds, inputs = as_arrays(members, program.rounds, num_layers(base), devices)
    if len(members) % devices:
        raise InputError(f"{len(members)} members, expected a multiple of the {devices} devices")
    each = len(members) // devices
    if batch is not None and (batch < 1 or each % batch):
        raise InputError(f"batch: {batch}, expected a divisor of the {each} members of a device")
    count = train.tokens.shape[0] * program.samples
    orders = visiting_orders(seeds.seed, program.rounds, program.training.epochs, count)
    data = base, train, tuple(tests), orders
    return _compiled(program, keep, batch, mesh)(data, seeds, inputs)


@functools.lru_cache(maxsize=16)
def _compiled(program: Program, keep: Callable, batch: int | None, mesh: Mesh | None) -> Callable:
    """The jitted sweep; the same one for equal arguments, so that nothing is compiled twice."""

    def for_each(run, shared, rows):
        """``run`` on every row, some side by side, split over the devices."""

        def here(shared, rows):
            one = functools.partial(run, *shared)
            count = len(rows.seed)
            if batch is None or count <= batch:
                return jax.vmap(one)(rows)
            size = max(n for n in range(1, batch + 1) if count % n == 0)
            return jax.lax.map(one, rows, batch_size=size)

        if mesh is not None:
            whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names[0])
            here = jax.shard_map(
                here, mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False
            )
        return here(shared, rows)

    def whole_sweep(data, seeds, members):
        base, train, tests, orders = data

        def first(base, train, orders, seed):
            return _propose(program, base, base, train, orders, 1, seed)

        def kept(*args):
            return keep(_run(program, *args))

        firsts = for_each(first, (base, train, orders), seeds)
        return accuracies(program, base, tests), for_each(kept, (*data, firsts), members)

    return jax.jit(whole_sweep)


def _propose(
    program: Program,
    base: PyTree,
    current: PyTree,
    train: Questions,
    orders: Int[Array, "S T E N1 N"],
    t: ArrayLike,
    run: Seeds | Members,
) -> _Proposal:
    """A round from M_{t-1} up to theta_t."""
    key = jax.random.fold_in(jax.random.key(run.seed), t)
    drawn = answer(
        program.model, program.language, current, train, key, program.sampling, program.samples
    )
    kept = select(drawn, program.deduplicate)
    start = base if program.start_from == "base" else current
    order = lambda epoch, count: orders[run.row, t - 1, epoch, count]
    tuned = fit(program.model, program.training, start, train, drawn, kept, order)
    return _Proposal(drawn._replace(kept=kept), tuned)


def _run(
    program: Program,
    base: PyTree,
    train: Questions,
    tests: tuple[Questions, ...],
    orders: Int[Array, "S T E N1 N"],
    firsts: _Proposal,
    member: Members,
) -> Outcome:
    """All rounds of one run, from its seed's samples of the first and theta_1 on."""

    def one_round(carry, xs):
        current, (drawn, tuned) = carry
        t, weight = xs
        merged = merge_params(
            base if program.merge_with == "base" else current,
            tuned,
            weight=LayerWeights(layers=weight[:-1], default=weight[-1]),
            transform=drop_and_rescale(member.drop_rate),
            key=jax.random.fold_in(jax.random.key(member.seed), t),
        )
        figures = Figures(
            accuracy=accuracies(program, merged, tests),
            correct=drawn.correct.sum(),
            kept=drawn.kept.sum(),
            distinct=drawn.fresh.mean(),
            nats=drawn.nats.mean(),
        )
        # The condition is the same for all members, so under `vmap` it still skips.
        following = jax.lax.cond(
            t < program.rounds,
            lambda: _propose(program, base, merged, train, orders, t + 1, member),
            lambda: _Proposal(drawn, tuned),
        )
        return (merged, following), (figures, drawn)

    first = jax.tree.map(lambda x: x[member.row], firsts)
    rounds = jnp.arange(1, program.rounds + 1)
    (params, _), (figures, samples) = jax.lax.scan(
        one_round, (base, first), (rounds, member.weight)
    )
    return Outcome(figures, samples, params)


@functools.partial(jax.jit, static_argnames="program")
def accuracies(program: Program, params: PyTree, tests: tuple[Questions, ...]) -> Float[Array, "K"]:
    """Accuracy on each of several sets of questions, all answered side by side."""
    asked = jax.tree.map(lambda *parts: jnp.concatenate(parts), *tests)
    key = jax.random.key(0)  # read where the temperature is above 0
    graded = answer(program.model, program.language, params, asked, key, program.evaluation, 1)
    ends = np.cumsum([test.tokens.shape[0] for test in tests])[:-1]
    return jnp.stack([part.mean() for part in jnp.split(graded.correct.astype(jnp.float32), ends)])
