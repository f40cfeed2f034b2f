"""Which layers matter: first-order Taylor, by leaving a layer out, and by what a layer changes.

All three look at the response tokens of given solutions, a batch at a time. A batch is what a
fine-tune takes: ``A`` micro batches ``[b, T]``, gone through in a loop inside one program, so that
no more is held than in training without an optimizer: the parameters, one sum of gradients, the
activations of a micro batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from imm_jax import sharding
from imm_jax.analysis.by_layer import ByLayer, by_module, sum_by_layer
from imm_jax.errors import Interrupted
from imm_jax.models.decoder import Block, Decoder, unembedding
from imm_jax.progress import Progress
from imm_jax.training.batching import Batch, Batches, prepare
from imm_jax.training.batching import Sequence as TokenSequence
from imm_jax.training.config import TrainingConfig
from imm_jax.training.loss import LossSums, response_loss
from imm_jax.tree import STACK, num_layers

Stop = Callable[[], bool] | None
COLLECTION, NAME = "intermediates", "influence"


class Taylor(NamedTuple):
    """Importance by the first-order Taylor expansion of the loss.

    Attributes:
      sums: ``sum_ij |W_ij * dL/dW_ij|`` of each module of each layer.
      loss: L, the mean loss of the response tokens, in nats.
    """

    sums: ByLayer
    loss: float

    @property
    def layers(self) -> Float[np.ndarray, "L"]:
        """``I_l`` as a share of the sum over layers, ``[L]``."""
        total = self.sums.layers.sum()
        return self.sums.layers / total if total > 0 else self.sums.layers


class Ablation(NamedTuple):
    """The loss without a layer.

    Attributes:
      losses: mean loss of the response tokens without layer ``l``, in nats, ``[L]``.
      loss: that of the whole model.
    """

    losses: Float[np.ndarray, "L"]
    loss: float

    @property
    def layers(self) -> Float[np.ndarray, "L"]:
        """How much greater the loss is without each layer, ``[L]``."""
        return self.losses - self.loss


def solution_batches(
    sequences: Sequence[TokenSequence],
    params: PyTree,
    *,
    max_length: int = 512,
    batch_size: int = 8,
    micro_batch_size: int = 8,
) -> Batches:
    """Solutions in packed rows of one width, each once, for the functions below.

    Args:
      sequences: prompts with their responses; longer than ``max_length`` tokens they are cut.
      params: the parameters they are for, whose mesh, if any, splits the rows.
      max_length, batch_size, micro_batch_size: as in ``TrainingConfig``; no result depends on the
        latter two but for the order of float32 sums.

    Raises:
      InputError: no sequence has a response token.
    """
    config = TrainingConfig(
        epochs=1,
        max_length=max_length,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
    )
    mesh = sharding.mesh_of(params)
    shards = sharding.batch_shards(mesh.shape) if mesh else 1
    return Batches(prepare(sequences, max_length).sequences, config, seed=0, shards=shards)


def taylor_importance(
    model: Decoder, params: PyTree, batches: Batches, *, should_stop: Stop = None
) -> Taylor:
    """``I_l = sum_W sum_ij |W_ij * dL/dW_ij|`` over the weight arrays W of layer l.

    The first-order criterion of Molchanov et al. (arXiv 1906.10771, eq. 8), with the absolute value
    in place of the square. L is the mean loss of the response tokens of all batches, so gradients
    are summed over all micro batches and multiplied with the weights once, at the end. A sum of
    ``|W * dL/dW|`` of single batches would be larger, by the noise that cancels here, and would
    depend on the batch size. With tied embeddings the embedding's figure holds the head.

    Args:
      model: the decoder; computes in its ``dtype``, recomputing blocks in the backward pass.
      params: the canonical tree with stacked layers.
      batches: see :func:`solution_batches`.
      should_stop: asked between batches; gives up where it returns true.

    Raises:
      Interrupted: ``should_stop`` said so.
    """
    model = model.clone(remat=True)
    zeros = jax.tree.map(lambda x: jnp.zeros(np.shape(x), jnp.float32), params)
    start = zeros, LossSums(*jnp.zeros(3))
    add = partial(_add_gradients, model)
    grads, sums = _over(batches, params, start, add, "importance: Taylor", should_stop)
    found = by_module(_products(params, grads, sums.tokens))
    return Taylor(found, float(sums.loss / sums.tokens))


def ablation_importance(
    model: Decoder, params: PyTree, batches: Batches, *, should_stop: Stop = None
) -> Ablation:
    """The mean loss of the response tokens without each layer in turn.

    Takes ``L + 1`` forward passes. Arguments and errors as in :func:`taylor_importance`.
    """
    count = num_layers(params)
    losses = []
    for layer in (None, *range(count)):  # without none first
        add = partial(_add_loss, model, layer if layer is None else jnp.int32(layer))
        what = "whole" if layer is None else f"without layer {layer + 1}/{count}"
        start = LossSums(*jnp.zeros(3))
        sums = _over(batches, params, start, add, f"importance: {what}", should_stop)
        losses.append(float(sums.loss / sums.tokens))
    return Ablation(np.array(losses[1:]), losses[0])


def block_influence(
    model: Decoder, params: PyTree, batches: Batches, *, should_stop: Stop = None
) -> Float[np.ndarray, "L"]:
    """``1 - cos`` of what goes into a block and what comes out of it.

    ShortGPT's block influence (Men et al., arXiv 2403.03853, eq. 1): the mean over the positions
    that predict a response token, float64 ``[L]``. ShortGPT takes all positions of its texts; here
    prompts, which many questions share, do not count. Arguments and errors as in
    :func:`taylor_importance`.
    """
    start = jnp.zeros(num_layers(params)), jnp.zeros(())
    add = partial(_add_influence, model)
    sums, count = _over(batches, params, start, add, "importance: influence", should_stop)
    return np.asarray(sums, np.float64) / float(count)


def without_layer(params: PyTree, layer: int | Int[Array, ""]) -> PyTree:
    """The parameters with layer ``layer`` out of action: its input is, bit for bit, its output.

    A block adds to its input what its two last products (attention's ``o``, the MLP's ``down``)
    give, through a norm perhaps, which leaves 0 as it is. Here both are 0.

    Args:
      params: the canonical tree with stacked layers.
      layer: which one, from 0; may be traced.
    """
    kept = jnp.arange(num_layers(params)) != layer

    def drop(x: Array) -> Array:
        return jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x))

    layers = {**params[STACK]}
    for part, last in (("attn", "o"), ("mlp", "down")):
        layers[part] = {**layers[part], last: jax.tree.map(drop, layers[part][last])}
    return {**params, STACK: layers}


def mean_loss(
    model: Decoder,
    params: PyTree,
    batches: Batches,
    *,
    label: str = "loss",
    should_stop: Stop = None,
) -> float:
    """The mean loss of the response tokens, in nats; arguments as in :func:`taylor_importance`."""
    add = partial(_add_loss, model, None)
    sums = _over(batches, params, LossSums(*jnp.zeros(3)), add, label, should_stop)
    return float(sums.loss / sums.tokens)


def _over(
    batches: Batches, params: PyTree, total: PyTree, add: Callable, label: str, should_stop: Stop
) -> PyTree:
    """Adds every batch to ``total``, whose memory is given away each time."""
    mesh = sharding.mesh_of(params)
    with Progress(label, len(batches), "batch") as progress, sharding.on(mesh):
        for batch in batches:
            if should_stop is not None and should_stop():
                raise Interrupted(f"{label}: stopped")
            total = add(params, sharding.place_batch(mesh, batch, axis=1), total)
            jax.block_until_ready(total)  # a bar that runs ahead of the work says nothing
            progress.update()
    return total


def _loss_sums(model: Decoder, params: PyTree, rows: tuple) -> tuple[Array, LossSums]:
    tokens, targets, mask, positions, segment_ids = rows
    hidden_BTD = model.apply({"params": params}, tokens, positions, segment_ids, method="hidden")
    softcap = model.config.final_logit_softcapping
    sums = response_loss(hidden_BTD, unembedding(params), targets, mask, softcap=softcap)
    return sums.loss, sums


def _micro_batches(batch: Batch, add: Callable, total: PyTree) -> PyTree:
    """``add(rows, total)`` for each micro batch that holds anything."""
    rows = lambda index: jax.tree.map(lambda x: x[index], tuple(batch[:5]))
    step = lambda index, total: add(rows(index), total)
    return jax.lax.fori_loop(0, batch.micro_batches, step, total)


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _add_gradients(model: Decoder, params: PyTree, batch: Batch, total: PyTree) -> PyTree:
    def add(rows, total):
        loss = lambda params: _loss_sums(model, params, rows)
        new = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda t, n: t + n, total, sharding.constrain_params(new))

    return _micro_batches(batch, add, sharding.constrain_params(total))


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _add_loss(model: Decoder, layer, params: PyTree, batch: Batch, total: LossSums) -> LossSums:
    if layer is not None:
        params = without_layer(params, layer)
    add = lambda rows, total: jax.tree.map(jnp.add, total, _loss_sums(model, params, rows)[1])
    return _micro_batches(batch, add, total)


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _add_influence(model: Decoder, params: PyTree, batch: Batch, total: PyTree) -> PyTree:
    def add(rows, total):
        tokens, _, mask, positions, segment_ids = rows

        def record(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if isinstance(context.module, Block) and context.method_name == "__call__":
                value = jnp.sum(mask * (1 - _cosine(args[0], out[0])))
                context.module.sow(COLLECTION, NAME, value)
            return out

        with nn.intercept_methods(record):
            _, state = model.apply(
                {"params": params},
                tokens,
                positions,
                segment_ids,
                method="hidden",
                mutable=[COLLECTION],
            )
        [influence] = jax.tree.leaves(state)
        return total[0] + influence, total[1] + mask.sum()

    return _micro_batches(batch, add, total)


def _cosine(x: Float[Array, "B T D"], y: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    sizes = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return jnp.sum(x * y, axis=-1) / jnp.maximum(sizes, jnp.finfo(jnp.float32).tiny)


@jax.jit
def _products(params: PyTree, grads: PyTree, tokens: Array) -> dict[str, Array]:
    return sum_by_layer(lambda w, g: jnp.abs(w * g) / tokens, params, grads)
