"""AdamW or Adafactor with a warm-up and a decay, from optax's parts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from imm_jax.training.config import TrainingConfig
from imm_jax.tree import map_with_path, num_bytes, per_tensor

PyTree = Any

DECAYS = {
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": jnp.ones_like,
}


def learning_rate(
    config: TrainingConfig, step: Int[Array, ""], total_steps: Int[Array, ""]
) -> Float[Array, ""]:
    """The rate of update ``step`` (from 0) of ``total_steps``, as in transformers' schedules.

    ``ceil(warmup_ratio * total_steps)`` steps rise linearly from 0, the rest fall to 0. Both counts
    may be traced, so fine-tunes of different lengths share one compiled step.
    """
    # The product is rounded before ceil: in float32 0.03 * 100 is a little over 3.
    warmup = jnp.ceil(jnp.round(jnp.float32(config.warmup_ratio) * total_steps, 4))
    rising = step / jnp.maximum(1, warmup)
    progress = (step - warmup) / jnp.maximum(1, total_steps - warmup)
    falling = DECAYS[config.schedule](jnp.clip(progress, 0, 1))
    return config.learning_rate * jnp.where(step < warmup, rising, falling)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, the scaling that ``config.optimizer`` names, decay, the schedule.

    ``update`` takes ``step`` and ``total_steps`` besides gradients, state and parameters, and
    ``grad_norm`` from a caller who has it.
    """
    parts = list(SCALINGS[config.optimizer](config))
    if config.max_grad_norm is not None:
        parts.insert(0, _clip_by_global_norm(config.max_grad_norm))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=_decayed))
    return optax.chain(*parts, _scale_by_schedule(config))


def optimizer_bytes(config: TrainingConfig, params: PyTree) -> int:
    """The bytes of optimizer state for ``params``: arrays, or shapes before there are any.

    AdamW holds 8 bytes a parameter, 6 with ``mu_dtype: bfloat16``. Adafactor holds 4 bytes for each
    row and each column of a matrix of at least 128 by 128, and 4 a parameter of anything smaller.
    """
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    return num_bytes(jax.eval_shape(make_optimizer(config).init, wide))


def _adamw(config: TrainingConfig) -> tuple[optax.GradientTransformation, ...]:
    """Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2."""
    return (optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype),)


def _adafactor(config: TrainingConfig) -> tuple[optax.GradientTransformation, ...]:
    """Shazeer and Stern, arXiv 1804.04235, Algorithm 4 without the relative step size.

    The root mean square of a tensor's update is at most 1, as Adam's is about 1, so that a learning
    rate means the same for both.
    """
    return _each_tensor(optax.scale_by_factored_rms()), _each_tensor(optax.clip_by_block_rms(1.0))


SCALINGS = {"adamw": _adamw, "adafactor": _adafactor}


def _each_tensor(scaling: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs ``scaling`` on each tensor apart, so that the layers of a stack share no statistics."""

    def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        pairs = per_tensor(scaling.update, updates, state, params)
        updates, state = (
            jax.tree.map(lambda _, pair, i=i: pair[i], updates, pairs) for i in (0, 1)
        )
        return updates, state

    return optax.GradientTransformation(lambda params: per_tensor(scaling.init, params), update)


def _clip_by_global_norm(most: float) -> optax.GradientTransformationExtraArgs:
    """As optax's, but by a product with the norm at hand: no copy of the gradient is written."""

    def update(updates, state, params=None, *, grad_norm=None, **_):
        norm = optax.global_norm(updates) if grad_norm is None else grad_norm
        factor = jnp.minimum(1.0, most / norm)
        return jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _decayed(params: PyTree) -> PyTree:
    """Kernels, their adapters and embeddings decay; norms and biases do not."""
    names = ("kernel", "kernel/a", "kernel/b", "embedding")
    return map_with_path(lambda path, _: path.endswith(names), params)


def _scale_by_schedule(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, *, step, total_steps, **_):
        rate = learning_rate(config, step, total_steps)
        return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
