"""What two processes tell one another, and what they write together."""

import json

import pytest

from imm_jax import hosts, sharding
from imm_jax.errors import InputError, Interrupted
from tests.devices import PRELUDE, in_two_processes

TWO = (
    PRELUDE
    + """
from pathlib import Path
from imm_jax import checkpoints, hosts
from imm_jax.errors import Interrupted
from imm_jax.step_checkpoints import StepCheckpoints

place, port, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sharding.start_hosts(f"127.0.0.1:{port}", 2, number)
answers["processes"] = [hosts.count(), hosts.index(), jax.device_count(), jax.local_device_count()]
answers["gather"] = hosts.gather(lambda: {"mine": number, "text": "x" * 300 * number})
answers["share"] = hosts.share([3, 1, 4, 1, 5], lambda own: [[n, i] for n in own for i in "ab"])
answers["none"] = hosts.share([], lambda own: list(own))
called = []
answers["primary"] = hosts.from_primary(lambda: called.append(1) or [number, None])
answers["called"] = len(called)

def fails(error, where):
    def make():
        if number == where:
            raise error
    try:
        hosts.gather(make)
    except Exception as caught:
        return [type(caught).__name__, str(caught)]

answers["failures"] = [fails(OSError("no room"), 1), fails(Interrupted("stopped"), 0),
                       fails(ValueError("bad"), 0)]
asked = []
stop = hosts.agreed(lambda: asked.append(1) or (number == 1 and len(asked) > 1), every=3)
answers["agreed"] = [stop() for _ in range(7)]
answers["asked"] = len(asked)

tree = draw(LLAMA)
mesh = sharding.make_mesh(None)
answers["mesh"] = dict(mesh.shape)
put = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda part: x[part])
many = jax.tree.map(put, tree, sharding.param_shardings(mesh, tree))
checkpoints.save(place / "c", many)
other = sharding.make_mesh("data=2,tensor=2")
like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                    tree, sharding.param_shardings(other, tree))
found = checkpoints.restore(place / "c", like)
answers["restored"] = furthest(hosts.fetch(found), tree)
answers["local"] = hosts.fetch({"x": jnp.arange(3), "y": np.arange(2)})["x"].tolist()
with StepCheckpoints(place / "steps", keep=2) as store:
    for step in (1, 2, 3):
        store.save(step, many)
hosts.wait()
answers["steps"] = store.steps()
step, found = store.restore_latest(like)
answers["latest"] = [step, furthest(hosts.fetch(found), tree)]
try:
    checkpoints.save(place, many)
except Exception as error:
    answers["refused"] = [type(error).__name__, "other than a checkpoint" in str(error)]

from imm_jax.sampling.decode import decode_weights
weights = decode_weights(found, jnp.dtype("float32"))
own = jax.tree.leaves(weights)
answers["own"] = all(x.is_fully_addressable for x in own)
answers["own mesh"] = dict(sharding.mesh_of(weights).shape)
(place / f"{number}.json").write_text(json.dumps(answers))
"""
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    with in_two_processes(TWO, place) as finish:
        finish()
    return [json.loads((place / f"{number}.json").read_text()) for number in range(2)]


def test_values_are_gathered_and_told(found):
    for number, one in enumerate(found):
        assert one["processes"] == [2, number, 4, 2]
        assert one["gather"] == [{"mine": 0, "text": ""}, {"mine": 1, "text": "x" * 300}]
        assert one["primary"] == [0, None]
        assert one["share"] == [[n, i] for n in [3, 1, 4, 1, 5] for i in "ab"]
        assert one["none"] == []
    assert [one["called"] for one in found] == [1, 0]


def test_a_failure_in_one_process_is_raised_in_both(found):
    first, second = (one["failures"] for one in found)
    assert first[0] == ["InputError", "process 1: no room"] and second[0] == ["OSError", "no room"]
    assert first[1] == ["Interrupted", "stopped"]
    assert second[1] == ["Interrupted", "process 0: stopped"]
    assert first[2] == ["ValueError", "bad"] and second[2] == ["InputError", "process 0: bad"]


def test_both_stop_when_one_wants_to(found):
    for one in found:
        assert one["agreed"] == [False] * 5 + [True, False] and one["asked"] == 2


def test_checkpoints_are_written_and_read_together(found):
    for one in found:
        assert one["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
        assert one["restored"] == 0 and one["local"] == [0, 1, 2]
        assert one["steps"] == [2, 3] and one["latest"] == [3, 0.0]
        assert one["refused"] == ["InputError", True]


def test_each_process_decodes_with_weights_of_its_own(found):
    for one in found:
        assert one["own"] and one["own mesh"] == {"data": 1, "fsdp": 1, "tensor": 2}


def test_one_process_asks_nobody():
    assert (hosts.count(), hosts.index(), hosts.is_primary()) == (1, 0, True)
    assert hosts.gather(lambda: {1, 2}) == [{1, 2}]  # nothing is sent, so anything goes
    with pytest.raises(Interrupted, match=r"^stopped$"):
        hosts.from_primary(lambda: (_ for _ in ()).throw(Interrupted("stopped")))
    question = lambda: True
    assert hosts.agreed(question, 5) is question


@pytest.mark.parametrize(
    ("given", "variables", "says"),
    [
        (("10.0.0.1:1234", 2, None), {}, "hosts: process is missing, expected coordinator"),
        ((None, 2, 0), {}, "hosts: coordinator is missing"),
        (("10.0.0.1", 2, 0), {}, "coordinator: '10.0.0.1', expected ADDRESS:PORT or auto"),
        (("10.0.0.1:1", 2, 2), {}, "process: 2, expected 0 to 1"),
        (("10.0.0.1:1", None, 0), {"JAX_NUM_PROCESSES": "two"}, "processes: two, expected a whole"),
        (("10.0.0.1:1", 0, 0), {}, "processes: 0, expected a whole number of at least 1"),
        ((None, None, 5), {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4"}, "0 to 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(monkeypatch, given, variables, says):
    monkeypatch.setattr("jax.distributed.initialize", None)  # must not be reached
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=says) as error:
        sharding.start_hosts(*given)
    assert "\n" not in str(error.value)


def test_what_jax_is_told(monkeypatch):
    told = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **options: told.append(options))
    sharding.start_hosts()
    assert told == []  # one process
    sharding.start_hosts("auto")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    sharding.start_hosts()
    sharding.start_hosts("127.0.0.1:99", process=0)
    assert told[0] == {}
    explicit = {"cluster_detection_method": "deactivate", "num_processes": 4}
    assert told[1] == {"coordinator_address": "10.0.0.1:1234", "process_id": 3, **explicit}
    here = {"coordinator_address": "127.0.0.1:99", "coordinator_bind_address": "127.0.0.1:99"}
    assert told[2] == {**here, "process_id": 0, **explicit}


def test_processes_that_cannot_be_joined_are_one_line(monkeypatch):
    def refuse(**_):
        raise RuntimeError("connection refused\nand much more")

    monkeypatch.setattr("jax.distributed.initialize", refuse)
    with pytest.raises(InputError, match=r"cannot be joined \(connection refused\)$"):
        sharding.start_hosts("127.0.0.1:99", 2, 1)
