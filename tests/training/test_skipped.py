"""Steps whose loss or gradient is not finite, in a whole fine-tune."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from imm_jax.checkpoints import restore
from imm_jax.errors import InputError, Interrupted
from imm_jax.models.decoder import Decoder
from imm_jax.training.batching import Sequence
from imm_jax.training.fit import fit


@pytest.fixture
def config(small_config):
    return dataclasses.replace(small_config, save_every_steps=2)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def brittle(tiny_config, random_params):
    """A model with untied embeddings, and parameters that token 319 makes overflow."""
    config = tiny_config("llama", tie_word_embeddings=False)
    params = random_params(config)
    params["embed"]["embedding"][319] = np.inf
    return Decoder(config), params


CONSTANT = {"schedule": "constant", "warmup_ratio": 0.0, "batch_size": 4, "micro_batch_size": 4}


def in_order(sequences):
    """Laid out so that the first epoch with seed 0 visits them as they were given."""
    order = np.random.default_rng([0, 0]).permutation(len(sequences))
    return [sequences[i] for i in np.argsort(order)]


def test_a_bad_batch_is_skipped_as_if_it_were_not_there(brittle, make_sequences, config, caplog):
    config = dataclasses.replace(config, epochs=1, **CONSTANT)
    good, bad = make_sequences(8), [Sequence((5, 319, 6, 7), 1)] * 4
    with caplog.at_level(logging.WARNING, "imm_jax"):
        new, stats = fit(*brittle, in_order(good[:4] + bad + good[4:]), config, seed=0)
    want, lacking = fit(*brittle, in_order(good), config, seed=0)
    assert_equal(want, new)
    assert "loss is nan at step 2/3, so the step is skipped" in caplog.text
    assert (stats["steps"], stats["skipped"]) == (3, 1) and lacking["skipped"] == 0
    for same in ("tokens", "first_loss", "last_loss"):
        assert stats[same] == lacking[same]
    assert stats["history"]["skipped"] == [0, 1, 0] and stats["history"]["loss"][1] is None
    json.dumps(stats, allow_nan=False)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_resume_skips_the_same_steps(brittle, make_sequences, config, tmp_path, stop_after):
    model, params = brittle
    sequences = [*make_sequences(9, seed=3), Sequence((5, 319, 6, 7), 1)]
    config = dataclasses.replace(config, epochs=2, **CONSTANT)
    whole, stats = fit(model, params, sequences, config, seed=0)
    assert stats["skipped"] == 2 and stats["steps"] == 6
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        fit(model, params, sequences, config, seed=0, checkpoints=tmp_path,
            should_stop=lambda: next(asked) == stop_after)  # fmt: skip
    resumed, again = fit(model, params, sequences, config, seed=0, checkpoints=tmp_path)
    assert_equal(whole, resumed)
    assert again["history"] == stats["history"] and again["skipped"] == 2


@pytest.mark.parametrize(("max_skipped", "last"), [(1, 2), (3, 4)])
def test_a_fine_tune_that_diverges_stops_with_its_last_good_state_saved(
    tiny, make_sequences, config, tmp_path, max_skipped, last
):
    """A rate of 1e30: the first step is good, what it leaves is not."""
    (model, params), sequences = tiny, make_sequences(20)
    config = dataclasses.replace(
        config, learning_rate=1e30, max_skipped=max_skipped, save_every_steps=50, warmup_ratio=0.0
    )
    folder = tmp_path / f"step_{last:08d}"
    says = rf"fit: (loss|grad_norm) is (nan|inf) at step {last}/6, expected a finite number; "
    says += rf"{last - 1} steps in a row were skipped .*step 1 left them are in {folder}$"
    for _ in range(2):  # the second call finds the saved state and says the same
        with pytest.raises(InputError, match=says) as error:
            fit(model, params, sequences, config, seed=0, checkpoints=tmp_path)
        assert "\n" not in str(error.value)
        saved = restore(folder)
        # One update of Adam at this rate, and the schedule's count of the steps.
        moved = saved["state"]["params"]["final_norm"]["scale"] - params["final_norm"]["scale"]
        np.testing.assert_allclose(np.abs(moved), 1e30, rtol=1e-2)
        assert int(saved["state"]["step"]) == last
    # Who allows more goes on from there.
    more = dataclasses.replace(config, max_skipped=9)
    assert fit(model, params, sequences, more, seed=0, checkpoints=tmp_path)[1]["skipped"] == 5


def test_without_one_good_step_there_is_no_result(brittle, config):
    model, params = brittle
    config = dataclasses.replace(config, epochs=2, max_skipped=5)
    with pytest.raises(InputError, match=r"step 2/2, .* 2 steps in a row .* nothing is saved"):
        fit(model, params, [Sequence((5, 319, 6), 1)], config, seed=0)
