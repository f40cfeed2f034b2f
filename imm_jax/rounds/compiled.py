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
from jaxtyping import Array, Float, Int, PyTree, UInt

from imm_jax.errors import InputError
from imm_jax.merging import LayerWeights, drop_and_rescale, merge_params
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.compiled_steps import Language, Questions, Samples, answer, fit, select
from imm_jax.sampling.config import SamplingConfig
from imm_jax.training.batching import visiting_order
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a sweep.

    Attributes:
      weight: alpha; whatever NumPy broadcasts to ``[T, L + 1]``: for each round the weight of each
        layer, and last that of what is outside the layers. ``0.5`` is the paper's; ``[[1], [0.5]]``
        a schedule of two rounds; ``[1, 0, 1]`` a mask over two layers that moves all but the
        second.
      drop_rate: p.
      seed: of samples, fine-tunes and dropping.
    """

    weight: ArrayLike = 0.5
    drop_rate: float = 0.0
    seed: int = 0


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


class _Inputs(NamedTuple):
    """A member as arrays; ``row`` is its seed's place in the table of orders."""

    weight: Float[Array, "T L1"]
    drop_rate: Float[Array, ""]
    seed: Int[Array, ""]
    row: Int[Array, ""]


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
    (which gives up if that is the first).

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
    inputs, seeds = _arrays(program, base, members)
    if mesh is not None and len(members) % mesh.size:
        raise InputError(f"{len(members)} members, expected a multiple of the {mesh.size} devices")
    each = len(members) // (1 if mesh is None else mesh.size)
    if batch is not None and (batch < 1 or each % batch):
        raise InputError(f"batch: {batch}, expected a divisor of the {each} members of a device")
    orders = _orders(program, seeds, train.tokens.shape[0] * program.samples)
    return _compiled(program, keep, batch, mesh)(base, train, tuple(tests), orders, inputs)


@functools.lru_cache(maxsize=16)
def _compiled(program: Program, keep: Callable, batch: int | None, mesh: Mesh | None) -> Callable:
    """The jitted sweep; the same one for equal arguments, so that nothing is compiled twice."""

    def runs(base, train, tests, orders, inputs):
        one = functools.partial(_run, program, base, train, tests, orders)
        kept = lambda member: keep(one(member))
        if batch is None:
            return jax.vmap(kept)(inputs)
        return jax.lax.map(kept, inputs, batch_size=batch)

    if mesh is not None:
        whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names[0])
        runs = jax.shard_map(
            runs,
            mesh=mesh,
            in_specs=(whole, whole, whole, whole, split),
            out_specs=split,
            check_vma=False,
        )

    def whole_sweep(base, train, tests, orders, inputs):
        return accuracies(program, base, tests), runs(base, train, tests, orders, inputs)

    return jax.jit(whole_sweep)


def _run(
    program: Program,
    base: PyTree,
    train: Questions,
    tests: tuple[Questions, ...],
    orders: Int[Array, "S T E N1 N"],
    member: _Inputs,
) -> Outcome:
    """All rounds of one run."""

    def one_round(current, xs):
        t, weight = xs
        key = jax.random.fold_in(jax.random.key(member.seed), t)
        drawn = answer(
            program.model, program.language, current, train, key, program.sampling, program.samples
        )
        kept = select(drawn, program.deduplicate)
        start = base if program.start_from == "base" else current
        order = lambda epoch, count: orders[member.row, t - 1, epoch, count]
        tuned = fit(program.model, program.training, start, train, drawn, kept, order)
        merged = merge_params(
            base if program.merge_with == "base" else current,
            tuned,
            weight=LayerWeights(layers=weight[:-1], default=weight[-1]),
            transform=drop_and_rescale(member.drop_rate),
            key=key,
        )
        figures = Figures(
            accuracy=accuracies(program, merged, tests),
            correct=drawn.correct.sum(),
            kept=kept.sum(),
            distinct=drawn.fresh.mean(),
            nats=drawn.nats.mean(),
        )
        return merged, (figures, drawn._replace(kept=kept))

    rounds = jnp.arange(1, program.rounds + 1)
    params, (figures, samples) = jax.lax.scan(one_round, base, (rounds, member.weight))
    return Outcome(figures, samples, params)


@functools.partial(jax.jit, static_argnames="program")
def accuracies(program: Program, params: PyTree, tests: tuple[Questions, ...]) -> Float[Array, "K"]:
    """Accuracy on each of several sets of questions, all answered side by side."""
    asked = jax.tree.map(lambda *parts: jnp.concatenate(parts), *tests)
    key = jax.random.key(0)  # read where the temperature is above 0
    graded = answer(program.model, program.language, params, asked, key, program.evaluation, 1)
    ends = np.cumsum([test.tokens.shape[0] for test in tests])[:-1]
    return jnp.stack([part.mean() for part in jnp.split(graded.correct.astype(jnp.float32), ends)])


def _arrays(program: Program, base: PyTree, members: Sequence[Member]) -> tuple[_Inputs, list[int]]:
    if not members:
        raise InputError("members: none, expected at least one")
    seeds = sorted({member.seed for member in members})
    shape = program.rounds, num_layers(base) + 1
    weights = []
    for number, member in enumerate(members):
        if not 0 <= member.drop_rate < 1:
            raise InputError(
                f"member {number}: drop_rate is {member.drop_rate}, expected 0 <= drop_rate < 1"
            )
        if not 0 <= member.seed < 2**31:
            raise InputError(f"member {number}: seed is {member.seed}, expected 0 to 2147483647")
        try:
            weights.append(np.broadcast_to(np.asarray(member.weight, np.float32), shape))
        except ValueError as error:
            raise InputError(
                f"member {number}: weight has shape {np.shape(member.weight)}, expected one that "
                f"broadcasts to {shape}, rounds by layers and what is outside them"
            ) from error
    columns = [
        np.stack(weights),
        np.array([member.drop_rate for member in members], np.float32),
        np.array([member.seed for member in members], np.int32),
        np.array([seeds.index(member.seed) for member in members], np.int32),
    ]
    return _Inputs(*map(jnp.asarray, columns)), seeds


def _orders(program: Program, seeds: Sequence[int], count: int) -> UInt[Array, "S T E N1 N"]:
    """For each seed, round, epoch and number of sequences the order that the host visits them in.

    How many are kept is known on the device alone, hence a row for every number up to ``count``.
    """
    epochs = program.training.epochs
    table = np.zeros((len(seeds), program.rounds, epochs, count + 1, count), np.uint16)
    for s, t, epoch in np.ndindex(table.shape[:3]):
        for n in range(1, count + 1):
            # The seed of a round's fine-tune, as in `tools.make_tools`.
            table[s, t, epoch, n, :n] = visiting_order(seeds[s] * 1000 + t + 1, epoch, n)
    return jnp.asarray(table)
