"""A whole fine-tune: batches, steps, progress, checkpoints, resume."""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imm_jax import hosts, sharding
from imm_jax.errors import InputError
from imm_jax.files import atomic_write
from imm_jax.progress import Progress
from imm_jax.step_checkpoints import StepCheckpoints
from imm_jax.training.batching import Batches, Sequence, prepare
from imm_jax.training.config import TrainingConfig
from imm_jax.training.loop import Run, commit
from imm_jax.training.lora import init_adapters, merge_adapters
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import make_train_step

PyTree = Any

logger = logging.getLogger("imm_jax")


def fit(
    model: nn.Module,
    params: PyTree,
    sequences: Sequences[Sequence],
    config: TrainingConfig,
    *,
    seed: int,
    donate: bool = False,
    checkpoints: str | Path | None = None,
    label: str = "fit",
    should_stop: Callable[[], bool] | None = None,
) -> tuple[PyTree, dict[str, Any]]:
    """Fine-tunes ``params`` on the responses of ``sequences``.

    The same arguments give the same result, bit for bit on one machine's CPU, whether or not the
    process was killed on the way and the call made again with the same ``checkpoints``.

    Args:
      model: a decoder; ``config`` sets its compute dtype and remat.
      params: where to start; left as they are. Trained in float32, returned in their own dtypes.
        With ``config.lora`` adapters are trained, from ``b = 0``, and merged in at the end; jax
        arrays that no adapter changes are then returned themselves, not copied. On a mesh
        (``imm_jax.sharding``) the state lies as they do and batches are split over it; the result
        is that of one device to 1e-5.
      sequences: cut at ``config.max_length``, or where the model's context ends before; those with
        no response token left are dropped.
      config: hyperparameters.
      seed: of the order of the sequences, and of the adapters.
      donate: ``params`` are not needed any more: where all are trained, their memory is freed once
        the float32 copies are made.
      checkpoints: folder for the state every ``config.save_every_steps``, without parameters that
        are not trained; a call that finds one there goes on from it. None: nothing is saved.
      label: what the progress bar says.
      should_stop: asked after every step; on True the state is saved and ``Interrupted`` raised.

    Returns:
      The parameters and statistics: ``steps``, ``skipped`` (those that changed nothing, because
      their loss or gradient was not finite), ``sequences``, ``truncated``, ``dropped``, ``tokens``
      (response tokens trained on, over all steps), ``input_tokens`` (all tokens but padding),
      ``first_loss`` and ``last_loss`` (of the steps not skipped), ``history`` (a list for each
      metric of the step, None where not finite); of this process only, ``seconds`` and
      ``tokens_per_second`` (input tokens, the first step and its compilation left out where there
      are others).

    Raises:
      InputError: nothing to train on; a token the model does not have; an adapter for no kernel;
        ``checkpoints`` belongs to another fine-tune or cannot be written.
      Diverged: ``config.max_skipped`` steps in a row, or all there are, had a loss or gradient that
        is not finite (the parameters from before them are saved first, in ``checkpoints``).
      Interrupted: ``should_stop`` said so.
    """
    began = time.monotonic()
    prepared = prepare(sequences, _max_length(model, config, sequences, label))
    _check_ids(prepared.sequences, model.config.vocab_size)
    mesh = sharding.mesh_of(params)
    shards = sharding.batch_shards(mesh.shape) if mesh else 1
    batches = Batches(prepared.sequences, config, seed=seed, shards=shards)
    train_step, start = _train_step(model, config), params
    if config.lora is not None:
        frozen = commit(jax.tree.map(jnp.asarray, params))
        train_step = partial(train_step, frozen=frozen)
        start = init_adapters(params, config.lora, jax.random.key(seed))
    run = Run(batches, config, label, mesh)
    with ExitStack() as stack:
        if checkpoints is not None:
            mine = _identity(config, batches, params)
            hosts.from_primary(lambda: _claim(Path(checkpoints), mine))
            run.store = stack.enter_context(StepCheckpoints(checkpoints))
        run.begin(start)
        if donate and config.lora is None:
            jax.tree.map(lambda x: x.delete() if isinstance(x, jax.Array) else None, params)
        progress = stack.enter_context(Progress(label, total=len(batches), unit="step"))
        progress.skip(run.step)
        run.train(train_step, progress, should_stop)
    if config.lora is not None:
        new = merge_adapters(frozen, run.state.params, config.lora.alpha)
        if mesh is not None:
            new = jax.device_put(new, jax.tree.map(lambda x: x.sharding, frozen))
    else:
        new = jax.tree.map(lambda old, new: new.astype(old.dtype), params, run.state.params)
    jax.block_until_ready(new)
    stats = run.stats() | {"truncated": prepared.truncated, "dropped": prepared.dropped}
    return new, stats | {"seconds": time.monotonic() - began}


def _max_length(
    model: nn.Module, config: TrainingConfig, sequences: Sequences[Sequence], label: str
) -> int:
    """The tokens that a sequence may have: past its context a model knows no positions."""
    context = model.config.max_position_embeddings
    longer = sum(len(sequence.tokens) > context for sequence in sequences)
    if longer and config.max_length > context:
        logger.warning(
            f"{label}: {longer} of {len(sequences)} sequences are longer than the model's context "
            f"of {context} tokens and are cut there; training.max_length is {config.max_length}"
        )
    return min(config.max_length, context)


def _train_step(model: nn.Module, config: TrainingConfig) -> Callable:
    """One jitted step for all fine-tunes of a run, so that later rounds compile nothing."""
    # What the compiled step does not depend on must not make a second one.
    same = dataclasses.replace(config, epochs=1, save_every_steps=1, max_skipped=1)
    return _jitted_step(model, same)


@lru_cache(maxsize=4)
def _jitted_step(model: nn.Module, config: TrainingConfig) -> Callable:
    return make_train_step(model, make_optimizer(config), config)


def _check_ids(sequences: Sequences[Sequence], vocab_size: int) -> None:
    """Out of range, an id would be read as another token's without a word."""
    for number, sequence in enumerate(sequences):
        if not 0 <= min(sequence.tokens) <= max(sequence.tokens) < vocab_size:
            bad = next(token for token in sequence.tokens if not 0 <= token < vocab_size)
            raise InputError(
                f"training: token {bad} in sequence {number}, expected 0 to {vocab_size - 1}; does "
                "the tokenizer belong to this model?"
            )


def _identity(config: TrainingConfig, batches: Batches, params: PyTree) -> dict[str, Any]:
    """What makes a fine-tune this one and no other, as JSON gives it back."""
    digest = hashlib.sha256()
    for sequence in batches.sequences:
        digest.update(np.int32([sequence.prompt_length, *sequence.tokens, -1]).tobytes())
    mine = {"seed": batches.seed, "sequences": digest.hexdigest(), **dataclasses.asdict(config)}
    del mine["save_every_steps"], mine["max_skipped"]
    if config.lora is not None:  # adapters mean something beside their own parameters only
        mine["parameters"] = hosts.fingerprint(params)
    return json.loads(json.dumps(mine))


def _claim(folder: Path, mine: dict[str, Any]) -> None:
    """Notes whose checkpoints a folder holds; refuses those of another fine-tune."""
    path = folder / "fit.json"
    if path.exists():
        try:
            theirs = json.loads(path.read_bytes())
            differ = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path}: not readable, remove the folder to start afresh") from error
        if differ:
            raise InputError(
                f"{folder}: holds the checkpoints of a fine-tune that differs in "
                f"{', '.join(differ)}; expected the same or an empty folder"
            )
        return
    try:
        atomic_write(path, json.dumps(mine, indent=1))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
