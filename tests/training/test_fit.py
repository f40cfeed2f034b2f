import dataclasses
import json
import logging
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.errors import InputError, Interrupted
from imm_jax.training import fit as fit_module
from imm_jax.training.batching import Sequence
from imm_jax.training.fit import fit
from tests.processes import PATIENCE, start_code


@pytest.fixture(scope="module")
def sequences(make_sequences):
    return make_sequences(20)


@pytest.fixture
def config(small_config):
    return dataclasses.replace(small_config, save_every_steps=2)  # six steps


@pytest.fixture(scope="module")
def whole(tiny, sequences, small_config):
    """Parameters and statistics of a fit that nothing disturbed."""
    return fit(*tiny, sequences, small_config, seed=0)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_fit_learns_and_reports(tiny, sequences, config):
    model, params = tiny
    config = dataclasses.replace(config, epochs=12)
    new, stats = fit(model, params, sequences, config, seed=0)
    assert stats["last_loss"] < 0.5 * stats["first_loss"]
    assert stats["steps"] == 36 and stats["sequences"] == 20
    responses = sum(len(s.tokens) - s.prompt_length for s in sequences)
    assert stats["tokens"] == 12 * responses
    assert stats["input_tokens"] == 12 * sum(len(s.tokens) - 1 for s in sequences)
    assert stats["tokens_per_second"] > 0 and stats["seconds"] > 0
    assert [len(values) for values in stats["history"].values()] == [36] * 6
    assert stats["skipped"] == 0 and sum(stats["history"]["skipped"]) == 0
    json.dumps(stats)
    assert jax.tree.structure(new) == jax.tree.structure(params)


def test_parameters_come_back_in_their_own_dtype(tiny, sequences, config):
    model, params = tiny
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    before = jax.tree.map(lambda x: np.array(x, np.float32), half)
    new, _ = fit(model, half, sequences, config, seed=0)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("bfloat16")}
    assert_equal(before, jax.tree.map(lambda x: np.array(x, np.float32), half))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tiny, sequences, config, whole):
    same, other = (fit(*tiny, sequences, config, seed=seed)[0] for seed in (0, 1))
    assert_equal(whole[0], same)
    assert not np.array_equal(same["embed"]["embedding"], other["embed"]["embedding"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_that_are_given_away_make_room_and_change_nothing(
    dtype, tiny, sequences, config
):
    model, params = tiny
    params = jax.tree.map(lambda x: jnp.array(x, dtype), params)
    kept, _ = fit(model, params, sequences, config, seed=0)
    new, _ = fit(model, params, sequences, config, seed=0, donate=True)
    assert all(x.is_deleted() for x in jax.tree.leaves(params))
    assert_equal(kept, new)
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype(dtype)}


def test_later_fine_tunes_compile_nothing(tiny, make_sequences, config):
    model, params = tiny
    fit_module._jitted_step.cache_clear()
    longest = [Sequence(tuple(range(20)), 4)]
    for count, epochs in ((20, 1), (9, 2), (13, 3)):  # other data, other numbers of steps
        longer = dataclasses.replace(config, epochs=epochs, max_skipped=count)
        fit(model, params, longest + make_sequences(count, seed=count), longer, seed=0)
    assert fit_module._jitted_step.cache_info().currsize == 1
    assert fit_module._train_step(model, config)._cache_size() == 1


@pytest.mark.parametrize("stop_after", [0, 1, 2, 5])
def test_a_stopped_fit_goes_on_to_the_same_bits(
    tiny, sequences, config, tmp_path, stop_after, whole
):
    model, params = tiny
    asked = iter(range(100))
    with pytest.raises(Interrupted, match=f"stopped after step {stop_after}/6"):
        fit(model, params, sequences, config, seed=0, checkpoints=tmp_path / "c",
            should_stop=lambda: next(asked) == stop_after)  # fmt: skip
    resumed, stats = fit(model, params, sequences, config, seed=0, checkpoints=tmp_path / "c")
    assert_equal(whole[0], resumed)
    assert stats["history"] == whole[1]["history"]


@pytest.mark.parametrize("options", [{"optimizer": "adafactor"}, {"mu_dtype": "bfloat16"}])
def test_other_optimizers_learn_and_go_on_to_the_same_bits(
    tiny, sequences, config, tmp_path, options
):
    model, params = tiny
    config = dataclasses.replace(config, epochs=8, **options)
    new, stats = fit(model, params, sequences, config, seed=0)
    assert stats["last_loss"] < 0.7 * stats["first_loss"]
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        fit(model, params, sequences, config, seed=0, checkpoints=tmp_path,
            should_stop=lambda: next(asked) == 3)  # fmt: skip
    assert_equal(new, fit(model, params, sequences, config, seed=0, checkpoints=tmp_path)[0])


def test_parameters_on_a_named_device_make_one_program(tiny, sequences, config):
    """As a round's are. Otherwise the first step would be compiled for itself alone."""
    model, params = tiny
    config = dataclasses.replace(config, weight_decay=0.25)  # a program of this test's own
    fit(model, jax.device_put(params, jax.devices()[0]), sequences, config, seed=0)
    assert fit_module._train_step(model, config)._cache_size() == 1


SCRIPT = """
import sys, logging
import numpy as np
from imm_jax.models.config import ModelConfig
from imm_jax.models.decoder import Decoder
from imm_jax.models.layout import param_shapes
from imm_jax.training.batching import Sequence
from imm_jax.training.config import TrainingConfig
from imm_jax.training.fit import fit
import jax

logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
model = Decoder(ModelConfig(
    model_type="llama", vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True))
rng = np.random.default_rng(0)
params = {}
for path, shape in param_shapes(model.config).items():
    *folders, leaf = path.split("/")
    node = params
    for folder in folders:
        node = node.setdefault(folder, {})
    node[leaf] = rng.normal(0.3, 0.3, shape).astype("float32")
sequences = [Sequence(tuple(rng.integers(0, 61, 12).tolist()), 4) for _ in range(24)]
config = TrainingConfig(
    learning_rate=1e-2, epochs=40, batch_size=8, max_length=32, bucket=8, save_every_steps=7)
folder = sys.argv[1] if sys.argv[1] != "-" else None
new, stats = fit(model, params, sequences, config, seed=0, checkpoints=folder)
np.savez(sys.argv[2], *jax.tree.leaves(new), history=np.array(list(stats["history"].values())))
"""


@pytest.mark.slow
def test_kill_nine_again_and_again_gives_the_same_bits(tmp_path):
    """A process killed at random moments, while saving or not, and started again until it ends."""

    def start(folder, out):
        words = [str(folder), str(tmp_path / out)]
        return start_code(SCRIPT, words, tmp_path / "log", devices=1, cache=tmp_path / "cache")

    def ended(process) -> tuple[int, str]:
        process.join(PATIENCE)
        return process.exitcode, (tmp_path / "log.err").read_text()

    code, errors = ended(start("-", "whole.npz"))
    assert code == 0, errors
    rng, kills = np.random.default_rng(0), 0
    folder = tmp_path / "checkpoints"
    for _ in range(40):
        newest = max(folder.glob("step_*"), default=None)
        process = start(folder, "killed.npz")
        if kills < 2:
            deadline = time.monotonic() + PATIENCE
            # Killed only once it got further, so that the test ends.
            while process.is_alive() and time.monotonic() < deadline:
                if max(folder.glob("step_*"), default=None) != newest:
                    time.sleep(rng.uniform(0, 0.05))
                    process.kill()
                    break
                time.sleep(0.001)
        code, errors = ended(process)
        if code == 0:
            break
        kills += 1
        assert code == -signal.SIGKILL, errors
    assert kills == 2 and code == 0
    assert "going on from step" in errors
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "killed.npz") as killed:
        assert_equal(dict(whole), dict(killed))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tiny, sequences, config, tmp_path, caplog, whole
):
    model, params = tiny
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        fit(model, params, sequences, config, seed=0, checkpoints=tmp_path,
            should_stop=lambda: next(asked) == 5)  # fmt: skip
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_00000004", "step_00000005"]
    newest = max((tmp_path / "step_00000005").rglob("d/*"), key=lambda path: path.stat().st_size)
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level(logging.INFO, "imm_jax"):
        resumed, _ = fit(model, params, sequences, config, seed=0, checkpoints=tmp_path)
    assert str(newest) in caplog.text and "going on from step 4/6" in caplog.text
    assert_equal(whole[0], resumed)


def test_checkpoints_of_another_fine_tune_are_refused(tiny, sequences, config, tmp_path):
    model, params = tiny
    fit(model, params, sequences, config, seed=0, checkpoints=tmp_path)
    other = dataclasses.replace(config, learning_rate=1.0, epochs=1)
    with pytest.raises(InputError, match="differs in epochs, learning_rate; expected"):
        fit(model, params, sequences, other, seed=0, checkpoints=tmp_path)
    with pytest.raises(InputError, match="differs in sequences;"):
        fit(model, params, sequences[1:], config, seed=0, checkpoints=tmp_path)
    # How often to save may change.
    more = dataclasses.replace(config, save_every_steps=1)
    fit(model, params, sequences, more, seed=0, checkpoints=tmp_path)
    (tmp_path / "fit.json").write_text("{")
    with pytest.raises(InputError, match=r"fit\.json: not readable"):
        fit(model, params, sequences, config, seed=0, checkpoints=tmp_path)


def test_sequences_are_cut_at_the_models_context_and_that_is_said(
    tiny, make_sequences, config, caplog
):
    model, params = tiny
    short = model.clone(config=dataclasses.replace(model.config, max_position_embeddings=24))
    within, over = (
        make_sequences(6),
        [Sequence(tuple(range(30)), 4), Sequence(tuple(range(30)), 26)],
    )
    cut = Sequence(tuple(range(24)), 4)
    expected, _ = fit(model, params, [*within, cut], config, seed=0)
    assert not caplog.records
    found, stats = fit(short, params, [*within, *over], config, seed=0)
    assert_equal(expected, found)
    assert (stats["sequences"], stats["truncated"], stats["dropped"]) == (7, 1, 1)
    [said] = caplog.records
    assert said.levelname == "WARNING" and said.message == (
        "fit: 2 of 8 sequences are longer than the model's context of 24 tokens and are cut there; "
        "training.max_length is 32"
    )
    caplog.clear()
    fit(short, params, within, config, seed=0)
    assert not caplog.records


@pytest.mark.parametrize("token", [-1, 320])
def test_a_token_that_the_model_lacks_is_an_error(tiny, config, token):
    model, params = tiny
    with pytest.raises(InputError, match=f"token {token} in sequence 1, expected 0 to 319"):
        fit(model, params, [Sequence((1, 2), 1), Sequence((1, token), 1)], config, seed=0)


def test_bad_input_fails_before_anything_is_trained(tiny, config, tmp_path):
    model, params = tiny
    with pytest.raises(InputError, match="no sequence with a response token"):
        fit(model, params, [Sequence((1, 2), 2)], config, seed=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        below = tmp_path / "file" / "c"
        fit(model, params, [Sequence((1, 2), 1)], config, seed=0, checkpoints=below)
