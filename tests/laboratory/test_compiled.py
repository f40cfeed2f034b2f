"""Compiled rounds against the host's loop, one member against many, one device against eight."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.config import ArmConfig, DataConfig, EvaluationConfig, RunConfig
from imm_jax.errors import InputError
from imm_jax.laboratory.check import LANGUAGE
from imm_jax.laboratory.problems import draw, ids_of, questions, to_task
from imm_jax.laboratory.vocabulary import TOKENS, make_tokenizer
from imm_jax.rounds import compiled as module
from imm_jax.rounds.bench import Bench, check_prompts
from imm_jax.rounds.compiled import Member, Program, sweep
from imm_jax.rounds.round import improve
from imm_jax.rounds.stages import Later, Stages
from imm_jax.rounds.tools import evaluate_tasks, make_tools
from imm_jax.sampling.config import SamplingConfig
from imm_jax.training.config import TrainingConfig

pytestmark = pytest.mark.slow

ROUNDS, SAMPLES, NEW = 2, 4, 14
TRAINING = TrainingConfig(
    learning_rate=2e-3, epochs=2, batch_size=8, micro_batch_size=8, packing=False, remat=False
)
HOST = RunConfig(
    model="tiny",
    data=DataConfig(in_domain="parity", sample_style="plain", evaluate_style="plain"),
    sampling=SamplingConfig(temperature=1.0, max_new_tokens=NEW, batch_size=64),
    samples=SAMPLES,
    evaluation=EvaluationConfig(max_new_tokens=NEW, batch_size=64),
    training=TRAINING,
)
SPLITS = {
    "train": ("parity", "train", 1, 10),
    "test": ("parity", "test", 2, 12),
    "other": ("modular_sum", "test", 3, 9),
}


@cache
def drawn(name: str):
    """Problems and their ids; here, since a module that is only collected should not compile."""
    kind, split, seed, count = SPLITS[name]
    return draw(kind, jax.random.key(seed), count), ids_of(kind, split, count)


@cache
def asked(name: str):
    return questions(*drawn(name))


@cache
def tasks():
    return (
        to_task("parity", train=drawn("train"), test=drawn("test")),
        to_task("modular_sum", test=drawn("other")),
    )


def program(model, **changes) -> Program:
    same = {
        "model": model,
        "language": LANGUAGE,
        "rounds": ROUNDS,
        "samples": SAMPLES,
        "sampling": HOST.sampling,
        "evaluation": HOST.evaluation,
        "training": TRAINING,
    }
    return Program(**(same | changes))


def everything(outcome):
    return outcome


def run(guesser, members, keep=everything, mesh=None, **changes):
    model, params = guesser
    tests = (asked("test"), asked("other"))
    return sweep(
        program(model, **changes), params, asked("train"), tests, members, keep=keep, mesh=mesh
    )


def pick(tree, number):
    return jax.tree.map(lambda x: x[number], tree)


def furthest(one, other) -> float:
    gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one, other)
    return float(max(jax.tree.leaves(gaps)))


IMM = ArmConfig(weight=0.5, drop_rate=0.25)
VANILLA = ArmConfig(weight=1.0, drop_rate=0.0)
MASKED = ArmConfig(weight=(1.0, 0.0), outside=0.5, drop_rate=0.0)
PREVIOUS = ArmConfig(weight=0.5, drop_rate=0.25, merge_with="previous")
AFRESH = ArmConfig(weight=0.5, drop_rate=0.25, start_from="base")
LATE = ArmConfig(weight=0.5, schedule=(2.0, 1.0), drop_rate=0.0)
MASK, SCHEDULE = [1, 0, 0.5], [[1], [0]]  # by layer, and last what is outside layers; by round
MEMBERS = [
    Member(weight=IMM.weight, drop_rate=IMM.drop_rate, seed=5),
    Member(weight=VANILLA.weight, drop_rate=VANILLA.drop_rate, seed=0),
    Member(weight=MASK, seed=0),
    Member(weight=SCHEDULE, seed=5),
    Member(weight=[[1], [0.5]], seed=5),
]


@pytest.fixture(scope="module")
def compiled(guesser):
    return run(guesser, MEMBERS)


def host_rounds(guesser, arm, seed, folder):
    """The host's loop: what each round sampled, kept and scored, and the last merged model."""
    model, params = guesser
    bench = Bench(HOST, model, make_tokenizer(), tasks(), lambda: False)
    bench = dataclasses.replace(bench, prompts=check_prompts(bench))
    scores = [evaluate_tasks(bench, params, Stages(folder / "base"), "original")]
    current, seen = Later(lambda: params), []
    for t in range(1, ROUNDS + 1):
        tools, found = make_tools(bench, seed, "test"), {}

        def select(*args, tools=tools, found=found):
            kept = tools.select(*args)
            return found.update(samples=args[1], kept=kept) or kept

        place = Stages(folder / f"round-{t}")
        current, figures = improve(
            t, arm, Later(lambda: params), current, dataclasses.replace(tools, select=select),
            jax.random.key(seed), place, place,
        )  # fmt: skip
        scores.append(figures)
        seen.append(found)
    return current(), seen, scores


HOSTED = {  # name: arm, number of its member, what its program has of its own
    "imm": (IMM, 0, {}),
    "vanilla": (VANILLA, 1, {}),
    "masked": (MASKED, 2, {}),
    "late": (LATE, 4, {}),
    "previous": (PREVIOUS, 0, {"merge_with": "previous"}),
    "afresh": (AFRESH, 0, {"start_from": "base"}),
}


@pytest.mark.parametrize("name", HOSTED)
def test_the_rounds_are_those_of_the_host(guesser, compiled, name, tmp_path):
    arm, number, changes = HOSTED[name]
    member = MEMBERS[number]
    if changes:
        base_accuracy, outcomes = run(guesser, [member], **changes)
        outcome = pick(outcomes, 0)
        usual = pick(compiled[1].params, number)  # the same member of the usual program
        assert furthest(outcome.params, usual) > 1e-4
    else:
        base_accuracy, outcomes = compiled
        outcome = pick(outcomes, number)
    params, seen, scores = host_rounds(guesser, arm, member.seed, tmp_path)
    for t, found in enumerate(seen):
        samples = pick(outcome.samples, t)
        ids = [answer.id for answer in found["samples"]]
        assert ids == [name for name in drawn("train")[1] for _ in range(SAMPLES)]
        texts = [" " + answer.text.strip() + TOKENS[0] for answer in found["samples"]]
        lengths = np.asarray(samples.length)
        spelled = ["".join(TOKENS[i] for i in row[:n]) for row, n in zip(samples.tokens, lengths)]
        assert spelled == texts and len(set(texts)) > 5
        nats = [-answer.logprob for answer in found["samples"]]
        np.testing.assert_allclose(samples.nats, nats, rtol=1e-4)
        assert samples.correct.tolist() == [answer.correct for answer in found["samples"]]
        kept = [(answer.id, answer.sample) for answer in found["kept"]]
        places = np.flatnonzero(samples.kept)
        assert [(ids[i], i % SAMPLES) for i in places] == kept
        assert 8 < len(kept) < sum(samples.correct.tolist())  # equal samples were dropped
    accuracies = [base_accuracy, *outcome.figures.accuracy]
    for found, score in zip(accuracies, scores, strict=True):
        expected = [score["tasks"][task.name]["accuracy"] for task in tasks()]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    moved = furthest(params, guesser[1])
    assert moved > 2e-3 and furthest(outcome.params, params) < max(1e-5, 2e-3 * moved)


def test_figures_are_those_of_the_samples(compiled):
    figures, samples, _ = compiled[1]
    assert (figures.correct == samples.correct.sum(-1)).all()
    assert (figures.kept == samples.kept.sum(-1)).all()
    np.testing.assert_allclose(figures.nats, np.asarray(samples.nats, np.float64).mean(-1), 1e-5)
    rows = [row[:n].tolist() for row, n in zip(samples.tokens[0, 1], samples.length[0, 1])]
    shares = [
        len(set(map(tuple, rows[i : i + SAMPLES]))) / SAMPLES for i in range(0, len(rows), SAMPLES)
    ]
    np.testing.assert_allclose(figures.distinct[0, 1], np.mean(shares), 1e-6)


def test_other_members_change_nothing_and_compile_nothing(guesser, compiled):
    """A member beside others; and once things are on the device, nothing goes there or back."""
    model, params = guesser
    others = [
        Member(weight=0.9, seed=5), Member(weight=[0.1, 0.2, 0.3], seed=5), Member(seed=0),
        Member(weight=0.2, seed=0),
    ]  # fmt: skip
    seeds, inputs = module.as_arrays([*others, MEMBERS[0]], ROUNDS, model.config.num_hidden_layers)
    count = len(asked("train").length) * SAMPLES
    orders = module.visiting_orders(seeds.seed, ROUNDS, TRAINING.epochs, count)
    data = params, asked("train"), (asked("test"), asked("other")), orders
    swept = module._compiled(program(model), everything, None, None)
    before = swept._cache_size()
    with jax.transfer_guard("disallow"):
        found = jax.block_until_ready(swept(data, seeds, inputs))[1]
    assert swept._cache_size() == before
    assert (found.samples.tokens[4] == compiled[1].samples.tokens[0]).all()
    assert (found.samples.tokens[2] != compiled[1].samples.tokens[0]).any()  # another seed
    assert furthest(pick(found.params, 4), pick(compiled[1].params, 0)) < 1e-6
    assert furthest(pick(found.params, 0), pick(compiled[1].params, 0)) > 1e-4


def test_weights_by_round_and_layer(guesser, compiled):
    """Layers, and what is outside them, whose weight is 0 stay the original's, bit by bit."""
    base, outcomes = guesser[1], compiled[1].params
    for old, new in zip(*(jax.tree.leaves(x["layers"]) for x in (base, pick(outcomes, 2)))):
        assert (old[1] == new[1]).all() and (old[0] != new[0]).any()
    assert (outcomes["embed"]["embedding"][2] != base["embed"]["embedding"]).any()
    assert furthest(pick(outcomes, 3), base) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": [1, 2, 3, 4]}, r"weight has shape \(4,\)"),
        ({"drop_rate": 1.0}, "drop_rate is 1.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_wrong_member_is_named(guesser, change, message):
    with pytest.raises(InputError, match="member 1: " + message):
        run(guesser, [Member(), Member(**change)])


def test_wrong_programs_are_refused(guesser):
    with pytest.raises(InputError, match="members: none"):
        run(guesser, [])
    with pytest.raises(InputError, match="merge_with: 'last'"):
        program(guesser[0], merge_with="last")
    with pytest.raises(InputError, match="rounds: 0"):
        program(guesser[0], rounds=0)
    with pytest.raises(InputError, match=r"training\.remat"):
        program(guesser[0], training=TrainingConfig(remat=True))
