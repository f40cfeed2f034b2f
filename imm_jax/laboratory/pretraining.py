"""Pretraining on a mixture of tasks that is drawn on the device, batch by batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from imm_jax.laboratory.problems import mixture
from imm_jax.models.config import ModelConfig
from imm_jax.models.decoder import Decoder
from imm_jax.rounds.compiled_steps import batch_of, join
from imm_jax.training.config import TrainingConfig
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import TrainState, init_state, make_train_step


def init_params(config: ModelConfig, seed: int) -> PyTree:
    """Random parameters, normal with ``config.initializer_range``."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.jit(Decoder(config).init)(jax.random.key(seed), tokens)["params"]


def begin(params: PyTree, config: TrainingConfig, steps: int) -> TrainState:
    """The state before the first of ``steps`` updates."""
    return init_state(params, make_optimizer(config), steps)


def make_pretrain(
    model: Decoder, counts: Mapping[str, int], config: TrainingConfig, key: Array
) -> Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]]:
    """Returns ``advance(state, steps) -> (state, metrics of the last step)``, jitted.

    Args:
      model: the decoder.
      counts: the problems of each kind in a batch.
      config: hyperparameters; ``epochs`` and batch sizes say nothing here.
      key: of the problems; the number of the step is folded in, so a run that was cut off goes on
        as it would have.
    """
    step = make_train_step(model, make_optimizer(config), config)

    def one(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        drawn = mixture(jax.random.fold_in(key, state.step), dict(counts))
        rows = join(drawn.prompt, drawn.prompt_length, drawn.response, drawn.response_length)
        return step(state, batch_of(*rows, jnp.ones(len(rows[0]), bool)))

    def advance(state: TrainState, steps: int) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = jax.lax.scan(one, state, length=steps)
        return state, jax.tree.map(lambda x: x[-1], metrics)

    return jax.jit(advance, static_argnames="steps", donate_argnums=0)
