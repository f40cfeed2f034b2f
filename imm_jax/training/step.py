"""One update: a pure function of a state and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Int

from imm_jax.models.decoder import unembedding
from imm_jax.sharding import constrain_params
from imm_jax.training.batching import Batch
from imm_jax.training.config import TrainingConfig
from imm_jax.training.lora import attach, low_rank
from imm_jax.training.loss import LossSums, response_loss
from imm_jax.training.optimizer import learning_rate

PyTree = Any
Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """Everything an update changes, and how many there will be (the schedule reads it).

    ``params`` is what is trained: the model's parameters, or LoRA adapters.
    """

    step: Int[Array, ""]
    total_steps: Int[Array, ""]
    params: PyTree
    opt_state: PyTree


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, total_steps: int
) -> TrainState:
    """The state before the first update, with float32 copies of ``params``.

    They are copies because ``train_step`` gives its state's memory away (donation) and the caller
    still needs the original model to merge with.
    """
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)
    return TrainState(jnp.int32(0), jnp.int32(total_steps), params, optimizer.init(params))


def make_train_step(
    model: nn.Module, optimizer: optax.GradientTransformation, config: TrainingConfig
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the jitted ``train_step(state, batch) -> (state, metrics)``; the state is donated.

    ``config`` sets the model's compute dtype and remat. On CPU only matrix products, their factors
    and gradients, are taken in a narrow compute dtype; all else is float32.

    With ``config.lora`` it is ``train_step(state, batch, frozen)``, the model's parameters being a
    third argument that stays as it is, in its own dtype.

    Gradients of the micro batches are summed and divided by the response tokens of the whole batch,
    so the split into micro batches does not show in the result. Where the loss or the norm of the
    gradient is not finite, parameters and optimizer state stay as they are; the step still counts,
    so the schedule ends where it should. Metrics, all float32 scalars: loss (nats a response
    token), accuracy (share of them ranked first), tokens (how many), grad_norm (before clipping),
    learning_rate, skipped (1 where the step changed nothing, else 0).
    """
    products = np.dtype(config.compute_dtype)
    # A CPU gains from a narrow type in products alone, and from gradients of them written for it.
    cpu = jax.default_backend() == "cpu"
    model = model.clone(
        remat=config.remat,
        remat_policy=config.remat_policy,
        dtype=jnp.float32 if cpu else products,
        products=products if cpu else None,
    )
    optimizer = optax.with_extra_args_support(optimizer)
    adapt = low_rank(config.lora.alpha if config.lora else 0.0)  # changes what has an adapter

    def loss_sum(params: PyTree, frozen: PyTree, batch: Batch, index) -> tuple[Array, LossSums]:
        tokens, targets, mask, positions, segment_ids = jax.tree.map(lambda x: x[index], batch[:5])
        if config.lora is not None:
            params = attach(frozen, params)
        with nn.intercept_methods(adapt):
            hidden_BTD = model.apply(
                {"params": params}, tokens, positions, segment_ids, method="hidden"
            )
        softcap = model.config.final_logit_softcapping
        sums = response_loss(
            hidden_BTD, unembedding(params), targets, mask,
            chunk=config.loss_chunk, softcap=softcap, dtype=products,
        )  # fmt: skip
        return sums.loss, sums

    @partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, batch: Batch, frozen: PyTree = None
    ) -> tuple[TrainState, Metrics]:
        def accumulate(index, total):
            one = partial(loss_sum, frozen=frozen, batch=batch, index=index)
            loss, backward, sums = jax.vjp(one, state.params, has_aux=True)
            if config.remat:  # layers add to the sum in place: one gradient exists
                refs = jax.tree.map(jax.new_ref, total[0])
                backward.with_refs(refs)(jnp.ones_like(loss))
                grads = jax.tree.map(jax.freeze, refs)
            else:  # a scan that keeps what it computed copies such a sum, and no vmap takes it
                grads = jax.tree.map(jnp.add, total[0], backward(jnp.ones_like(loss))[0])
            return constrain_params(grads), jax.tree.map(jnp.add, total[1], sums)

        # A loop to a traced count: a short last batch, or a well-packed one, costs no more than it
        # holds, and none compiles anew.
        zeros = jax.tree.map(jnp.zeros_like, (state.params, LossSums(*jnp.zeros(3))))
        zeros = constrain_params(zeros)
        grads, sums = jax.lax.fori_loop(0, batch.micro_batches, accumulate, zeros)

        counts = {"step": state.step, "total_steps": state.total_steps}
        norm = optax.global_norm(grads) / sums.tokens
        good = jnp.isfinite(sums.loss) & jnp.isfinite(norm)

        def update(params, opt_state):
            # A product, because XLA writes quotients out: another copy of the gradient.
            mean = jax.tree.map(lambda g: g * (1 / sums.tokens), grads)
            updates, opt_state = optimizer.update(mean, opt_state, params, grad_norm=norm, **counts)
            return optax.apply_updates(params, updates), opt_state

        new = jax.lax.cond(good, update, lambda *old: old, state.params, state.opt_state)
        metrics = {
            "loss": sums.loss / sums.tokens,
            "accuracy": sums.correct / sums.tokens,
            "tokens": sums.tokens,
            "grad_norm": norm,
            "learning_rate": learning_rate(config, **counts),
            "skipped": 1.0 - good,
        }
        done = TrainState(state.step + 1, state.total_steps, *new)
        return constrain_params(done), metrics

    return train_step
