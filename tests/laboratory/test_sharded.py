"""A sweep over eight devices is that of one, and one in groups that of all at once."""

import pytest

from tests.devices import ask

pytestmark = pytest.mark.slow

SWEEP = """
from jax.sharding import Mesh
from imm_jax.errors import InputError
from imm_jax.rounds.compiled import Language, Member, Program, Questions, sweep
from imm_jax.sampling.config import SamplingConfig
from imm_jax.training.config import TrainingConfig

config = dataclasses.replace(LLAMA, vocab_size=16, num_hidden_layers=1)
params = jax.tree.map(jnp.asarray, draw(config))
graded = []

# Right is what begins with an even token, so that a random model has something to learn.
def correct(tokens, count, answer):
    jax.debug.callback(lambda token: graded.append(int(token)), tokens[0])
    return tokens[0] % 2 == answer[0]

even = Language(
    eos=(0,),
    correct=correct,
    response=lambda tokens, count: (tokens, count))
asked = lambda seed, n: Questions(
    jax.random.randint(jax.random.key(seed), (n, 5), 1, 16), jnp.full(n, 5), jnp.zeros((n, 1), int),
    jnp.arange(n, dtype=jnp.uint32))
program = Program(
    model=Decoder(config), language=even, rounds=2, samples=4,
    sampling=SamplingConfig(temperature=1.0, max_new_tokens=4),
    evaluation=SamplingConfig(temperature=0.0, max_new_tokens=4),
    training=TrainingConfig(
        learning_rate=1e-2, epochs=1, batch_size=8, remat=False, packing=False))
members = [Member(weight=w, drop_rate=0.25, seed=s) for w in (0.0, 0.3, 0.5, 1.0) for s in (1, 2)]
mesh = Mesh(np.array(jax.devices()), ("members",))
everything = lambda outcome: outcome
run = lambda mesh, batch=None, members=members: sweep(
    program, params, asked(1, 6), [asked(2, 32)], members,
    keep=everything, batch=batch, mesh=mesh)
base, many = run(mesh)
jax.effects_barrier()
graded.clear()
_, one = run(None, batch=4)  # one group after another
jax.effects_barrier()
answers["graded"] = len(graded)
answers["devices"] = sorted(d.id for d in many.figures.kept.sharding.device_set)
answers["samples"] = bool((many.samples.tokens == one.samples.tokens).all())
answers["kept"] = many.figures.kept.tolist(), one.figures.kept.tolist()
answers["accuracy"] = many.figures.accuracy.tolist(), one.figures.accuracy.tolist()
answers["params"] = furthest(many.params, one.params)
answers["moved"] = furthest(jax.tree.map(lambda x: x[-1], many.params), params)
for name, wrong in {"mesh": (mesh, None, members[:6]), "batch": (None, 3, members)}.items():
    try:
        run(*wrong)
    except InputError as error:
        answers[name] = str(error)
"""


def test_members_are_spread_over_devices():
    found = ask(SWEEP)
    assert found["devices"] == list(range(8))
    assert found["samples"] and found["kept"][0] == found["kept"][1]
    assert found["accuracy"][0] == found["accuracy"][1]
    assert found["params"] < 1e-5 < 1e-3 < found["moved"]
    assert min(map(min, found["kept"][0])) > 0
    # The base's tests, first samples once a seed; a member's later ones, and its tests each round.
    assert found["graded"] == 32 + 2 * 6 * 4 + 8 * (6 * 4 + 2 * 32)
    assert found["mesh"] == "6 members, expected a multiple of the 8 devices"
    assert found["batch"] == "batch: 3, expected a divisor of the 8 members of a device"
