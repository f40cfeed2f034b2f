"""Importance and change of a model spread over devices are those of one device."""

import numpy as np
import pytest

from tests.devices import ask

CODE = """
from imm_jax.analysis import importance
from imm_jax.analysis.change import change_by_layer
from imm_jax.training.batching import Sequence

rng, model, params = np.random.default_rng(5), Decoder(LLAMA), draw(LLAMA)
solutions = [Sequence(tuple(rng.integers(1, 64, 12).tolist()), start) for start in (3, 8, 4, 6, 7)]
for name in ("one", "many"):
    if name == "many":
        params = spread(params, sharding.make_mesh("data=2,fsdp=2"))
    batches = importance.solution_batches(solutions, params, batch_size=3, micro_batch_size=1)
    answers[name] = {
        "taylor": importance.taylor_importance(model, params, batches).layers.tolist(),
        "influence": importance.block_influence(model, params, batches).tolist(),
        "loss": importance.mean_loss(model, params, batches),
        "change": change_by_layer(
            params, jax.tree.map(lambda x: 1.1 * x, params)).layers.tolist(),
    }
"""


@pytest.mark.slow
def test_a_mesh_does_not_show():
    found = ask(CODE, count=4)
    for name, value in found["one"].items():
        np.testing.assert_allclose(found["many"][name], value, rtol=1e-5)
