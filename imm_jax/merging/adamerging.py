"""AdaMerging: merge weights found by gradient, from unlabeled inputs alone."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from imm_jax.errors import InputError
from imm_jax.merging import layout
from imm_jax.merging.merge import merge_params
from imm_jax.merging.protocol import Chain, Transform
from imm_jax.merging.weights import LayerWeights

if TYPE_CHECKING:
    import optax

PyTree = Any


def mean_entropy(logits: Array, mask: Array | None = None) -> Array:
    """The mean entropy, in nats, of the predictions of logits ``[..., V]``.

    Computed in float32, over all rows or over those where ``mask`` (bool ``[...]``) is True; 0
    where there are none.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # A logit of -inf has probability 0, and 0 log 0 counts 0.
    log_p = jnp.where(jnp.isneginf(log_p), 0, log_p)
    entropy = -jnp.sum(jnp.where(jnp.isneginf(logits), 0, jnp.exp(log_p) * log_p), axis=-1)
    if mask is None:
        return jnp.mean(entropy)
    return jnp.sum(jnp.where(mask, entropy, 0)) / jnp.maximum(jnp.sum(mask), 1)


def adamerging(
    logits_fn: Callable[[PyTree, PyTree], Array],
    base: PyTree,
    tuned: Sequence[PyTree],
    batches: PyTree,
    *,
    steps: int,
    init: float = 0.3,
    per_layer: bool = True,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    optimizer: "optax.GradientTransformation | None" = None,
    mask: Callable[[PyTree], Array] | None = None,
    transform: Transform | Chain | None = None,
    key: Array | None = None,
    stacked: Callable[[str], bool] | None = None,
    after: Callable[[int, float], None] | None = None,
) -> tuple[PyTree, list, Array]:
    """Finds the merge weights at which the merged model is surest of its predictions.

    Minimises ``H(w) = mean_x entropy(softmax(logits(base + sum_i w_i delta_i, x)))`` by gradient
    steps on one batch after another, over and over (Yang et al. 2024, "AdaMerging", arXiv
    2310.02575, task-wise and layer-wise). No labels are needed.

    One program runs all steps, or each of them where ``after`` is given. Beside the models it holds
    a merged model, its gradient, the task vectors of a leaf in float32, and what the backward pass
    of ``logits_fn`` keeps.

    Args:
      logits_fn: ``logits_fn(params, batch) -> logits [..., V]``, of the positions that count; or a
        number, the mean entropy itself, from models whose logits are too many to be held at once.
      base: the base model, a tree of arrays; see :func:`merge_params`.
      tuned: the tuned models.
      batches: unlabeled inputs, a pytree whose arrays have the batches as first axis ``[N, ...]``.
        Step s takes batch ``s mod N``.
      steps: how many steps (the authors: 500).
      init: every weight at the start.
      per_layer: a weight for each model and layer, with one more for each model's parameters
        outside layers (the authors' code has one for each tensor); False: one for each model.
      bounds: weights are kept in this range after every step, as in the authors' code; None: free.
      optimizer: default ``optax.adam(1e-3)``, the paper's.
      mask: ``mask(batch) -> bool [...]``, which rows of the logits count (padding does not); none
        for a number.
      transform: applied to the task vectors; with ``trim(0.2)``, close to AdaMerging++.
      key: for transforms that draw random numbers; every step draws the same.
      stacked: as in :func:`merge_params`.
      after: called on the host after each step, with its number from 0 and the entropy before it;
        for progress, and to end the search by an exception.

    Returns:
      The merged model; the weight of each model, as ``weight=`` of :func:`merge_params` takes them
      (:class:`LayerWeights`, or 0-d arrays); and the mean entropy in nats before each step,
      ``[steps]``.

    Raises:
      InputError: ``per_layer`` without layers; a ``mask`` for a number; an entropy or a weight that
        is not finite; otherwise as :func:`merge_params`.
    """
    import optax

    if type(tuned) not in (list, tuple) or not tuned:
        raise InputError("adamerging takes a list of tuned models, with at least one")
    if steps < 0:
        raise InputError(f"steps is {steps}; expected a number >= 0")
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    start = [_start(base, init, per_layer, stacked) for _ in tuned]
    merge = functools.partial(merge_params, transform=transform, stacked=stacked)

    def entropy(params: PyTree, batch: PyTree) -> Array:
        found = logits_fn(params, batch)
        if jnp.ndim(found):
            return mean_entropy(found, None if mask is None else mask(batch))
        if mask is not None:
            raise InputError("mask is for logits, but logits_fn returns a number")
        return found

    def run(state: tuple, base: PyTree, tuned: list, key: Any, batches: PyTree, numbers: Array):
        count = jax.tree.leaves(batches)[0].shape[0]

        def step(state: tuple, number: Array) -> tuple[tuple, Array]:
            weights, memory = state
            batch = jax.tree.map(lambda x: x[number % count], batches)
            # Tied to the step, the task vectors cannot be moved out of the loop into memory.
            models = jax.lax.optimization_barrier((base, tuned, number))[:2]
            at = lambda weights: merge(*models, weight=weights, key=key)
            value, slope = jax.value_and_grad(entropy, allow_int=True)(at(weights), batch)
            (gradient,) = jax.vjp(at, weights)[1](slope)
            updates, memory = optimizer.update(gradient, memory, weights)
            weights = optax.apply_updates(weights, updates)
            if bounds is not None:
                weights = jax.tree.map(lambda w: jnp.clip(w, *bounds), weights)
            return (weights, memory), value

        return jax.lax.scan(step, state, numbers)

    run, state, history = jax.jit(run), (start, optimizer.init(start)), []
    parts = np.split(np.arange(steps), 1 if after is None or not steps else steps)
    for part in parts:
        state, found = run(state, base, list(tuned), key, batches, part)
        _check(found, state[0], int(part[0]) if steps else 0)
        history.append(found)
        for number, value in zip(part, found) if after else ():
            after(int(number), float(value))
    weights = state[0]
    return merge(base, list(tuned), weight=weights, key=key), weights, jnp.concatenate(history)


def _check(entropies: Array, weights: PyTree, first: int) -> None:
    """Raises where the steps from number ``first`` on met what is not finite."""
    if isinstance(entropies, jax.core.Tracer):
        return
    bad = np.flatnonzero(~np.isfinite(entropies))
    if len(bad):
        step = first + bad[0]
        raise InputError(f"adamerging: the entropy before step {step} is {entropies[bad[0]]}")
    if not all(np.all(np.isfinite(w)) for w in jax.tree.leaves(weights)):
        step = first + len(entropies) - 1
        raise InputError(f"adamerging: a weight is not finite after step {step}")


def _start(
    base: PyTree, init: float, per_layer: bool, stacked: Callable[[str], bool] | None
) -> Array | LayerWeights:
    """The weights of one model before the first step."""
    value = jnp.asarray(init, jnp.float32)
    if not per_layer:
        return value
    paths, leaves, _ = layout.flatten(base)
    depths = {leaf.num_layers for leaf in layout.describe(paths, leaves, stacked)} - {None}
    if not depths:
        raise InputError("the model has no layers; use per_layer=False")
    return LayerWeights(jnp.full(depths.pop(), value), default=value)
