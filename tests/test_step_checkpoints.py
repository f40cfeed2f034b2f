"""Checkpoints of a loop, and what is left of one that was killed or found the disk full."""

import logging
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.checkpoints import restore
from imm_jax.errors import InputError
from imm_jax.step_checkpoints import StepCheckpoints
from tests.test_checkpoints import ENVIRONMENT, assert_bits, files, flip, tree

FULL = """
import resource, signal, sys
import numpy as np
from imm_jax.checkpoints import restore, save
from imm_jax.step_checkpoints import StepCheckpoints
from imm_jax.errors import InputError
small, large = ({"w": np.full(n, 1.0, np.float32)} for n in (10, 1_000_000))
save(sys.argv[1] + "/c", small)
with StepCheckpoints(sys.argv[1] + "/steps") as steps:
    steps.save(1, small)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# Writing beyond this fails, as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def expect(action):
    try:
        action()
    except InputError as error:
        assert "could not be written" in str(error) and "\\n" not in str(error), error
    else:
        raise SystemExit("no error")
expect(lambda: save(sys.argv[1] + "/c", large))
steps = StepCheckpoints(sys.argv[1] + "/steps")
steps.save(2, large)
expect(steps.wait)
steps.wait()
steps.save(3, large)
expect(lambda: steps.save(4, small))
steps.save(5, small)
steps.close()
assert steps.steps() == [1, 5], steps.steps()
assert restore(sys.argv[1] + "/c")["w"].shape == (10,)
"""


def test_a_write_that_fails_half_way_leaves_the_old_state(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()


def test_steps_keep_the_newest_and_survive_donation(tmp_path):
    step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    state = {"w": jnp.zeros((300, 1000))}
    with StepCheckpoints(tmp_path / "s", keep=2) as steps:
        assert steps.restore_latest() is None and not (tmp_path / "s").exists()
        for number in range(1, 6):
            state = step(state)
            steps.save(number, state)  # the next step overwrites this memory meanwhile
        state = step(state)
    assert steps.steps() == [4, 5]
    for number in (4, 5):
        saved = restore(tmp_path / "s" / f"step_{number:08d}")["w"]
        assert (saved == number).all()


def test_damaged_and_unfinished_steps_are_named_and_passed_over(tmp_path, caplog):
    with StepCheckpoints(tmp_path, keep=3) as steps:
        for number in (10, 20, 30):
            steps.save(number, tree(number))
    (tmp_path / "step_00000030" / "manifest.json").unlink()
    arrays = files(tmp_path / "step_00000020" / "data-0" / "ocdbt.process_0" / "d")
    flip(max(arrays, key=lambda path: path.stat().st_size), 99)
    with caplog.at_level(logging.WARNING, "imm_jax"):
        step, back = StepCheckpoints(tmp_path).restore_latest()
    assert step == 10
    assert_bits(back, tree(10))
    assert "step_00000030/manifest.json" in caplog.text and "step_00000020/data-0/" in caplog.text
    # Going on from 10, the next save clears the damaged later ones away.
    with StepCheckpoints(tmp_path, keep=2) as steps:
        steps.save(15, tree(15))
    assert steps.steps() == [10, 15]


KILLED = """
import sys
import numpy as np
from imm_jax.checkpoints import save
from imm_jax.step_checkpoints import StepCheckpoints
with StepCheckpoints(sys.argv[1] + "/steps") as steps:
    newest = steps.restore_latest()
    for value in range(newest[0] + 1 if newest else 1, 100_000):
        tree = {"a": np.full((100_000,), value, np.float32), "b": np.full(3, value)}
        steps.save(value, tree)
        save(sys.argv[1] + "/one", tree)
        print(value, flush=True)
"""


def test_kill_nine_at_random_moments_leaves_a_whole_state(tmp_path):
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        printed = int(process.stdout.readline())
        assert printed > reached  # went on from what the last one left
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        lines = process.communicate()[0].split()
        printed = int(lines[-1]) if lines else printed
        # Both may be one ahead of what was printed; the one saved in the background one behind.
        one = restore(tmp_path / "one")
        assert set(one["a"]) == set(one["b"]) and one["b"][0] in (printed, printed + 1)
        reached, steps = StepCheckpoints(tmp_path / "steps").restore_latest()
        assert set(steps["a"]) == set(steps["b"]) == {reached}
        assert printed - 1 <= reached <= printed + 1
    assert not list((tmp_path / "steps").glob(".step_*"))  # left-overs are cleared away


def test_keep_below_one_is_an_error(tmp_path):
    with pytest.raises(InputError, match="keep is 0, expected 1 or more"):
        StepCheckpoints(tmp_path, keep=0)
