"""A whole fine-tune: batches, steps, progress, checkpoints, resume."""

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from imm_jax import hosts, sharding
from imm_jax.checkpoints import StepCheckpoints
from imm_jax.errors import InputError, Interrupted
from imm_jax.files import atomic_write
from imm_jax.progress import Progress
from imm_jax.training.batching import Batches, Sequence, prepare
from imm_jax.training.config import TrainingConfig
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import TrainState, init_state, make_train_step

PyTree = Any

logger = logging.getLogger("imm_jax")

METRICS = ("loss", "accuracy", "tokens", "grad_norm", "learning_rate")


def fit(
    model: nn.Module,
    params: PyTree,
    sequences: Sequences[Sequence],
    config: TrainingConfig,
    *,
    seed: int,
    checkpoints: str | Path | None = None,
    label: str = "fit",
    should_stop: Callable[[], bool] | None = None,
) -> tuple[PyTree, dict[str, Any]]:
    """Fine-tunes ``params`` on the responses of ``sequences``.

    The same arguments give the same result, bit for bit on one machine's CPU, whether or not the
    process was killed on the way and the call made again with the same ``checkpoints``.

    Args:
      model: a decoder; ``config`` sets its compute dtype and remat.
      params: where to start; left as they are. Trained in float32, returned in their own dtypes. On
        a mesh (``imm_jax.sharding``) the state lies as they do and batches are split over it; the
        result is that of one device to 1e-5.
      sequences: cut at ``config.max_length``; those with no response token left are dropped.
      config: hyperparameters.
      seed: of the order of the sequences.
      checkpoints: folder for the state every ``config.save_every_steps``; a call that finds one
        there goes on from it. None: nothing is saved.
      label: what the progress bar says.
      should_stop: asked after every step; on True the state is saved and ``Interrupted`` raised.

    Returns:
      The parameters and statistics: ``steps``, ``sequences``, ``truncated``, ``dropped``,
      ``tokens`` (response tokens trained on, over all steps), ``input_tokens`` (all tokens but
      padding), ``first_loss``, ``last_loss``, ``history`` (a list for each metric of the step); of
      this process only, ``seconds`` and ``tokens_per_second`` (input tokens, the first step and its
      compilation left out where there are others).

    Raises:
      InputError: nothing to train on; a token the model does not have; a loss or gradient that is
        not finite (the last good checkpoint stays); ``checkpoints`` belongs to another fine-tune or
        cannot be written.
      Interrupted: ``should_stop`` said so.
    """
    start = time.monotonic()
    prepared = prepare(sequences, config.max_length)
    _check_ids(prepared.sequences, model.config.vocab_size)
    mesh = sharding.mesh_of(params)
    shards = sharding.batch_shards(mesh.shape) if mesh else 1
    batches = Batches(prepared.sequences, config, seed=seed, shards=shards)
    model = model.clone(remat=config.remat, dtype=np.dtype(config.compute_dtype))
    run = _Run(batches, config, label, mesh)
    with ExitStack() as stack:
        if checkpoints is not None:
            hosts.from_primary(lambda: _claim(Path(checkpoints), config, batches))
            run.store = stack.enter_context(StepCheckpoints(checkpoints))
        run.begin(params)
        progress = stack.enter_context(Progress(label, total=len(batches), unit="step"))
        progress.update(run.step)
        # What the compiled step does not depend on must not make a second one.
        same = dataclasses.replace(config, epochs=1, save_every_steps=1)
        run.train(_train_step(model, same), progress, should_stop)
    new = jax.tree.map(lambda old, new: new.astype(old.dtype), params, run.state.params)
    jax.block_until_ready(new)
    stats = run.stats() | {"truncated": prepared.truncated, "dropped": prepared.dropped}
    return new, stats | {"seconds": time.monotonic() - start}


@lru_cache(maxsize=4)
def _train_step(model: nn.Module, config: TrainingConfig):
    """One jitted step for all fine-tunes of a run, so that later rounds compile nothing."""
    return make_train_step(model, make_optimizer(config), config)


class _Run:
    """A fine-tune under way: the state, the metrics of the steps done, and where both are saved."""

    def __init__(self, batches: Batches, config: TrainingConfig, label: str, mesh: Mesh | None):
        self.batches, self.config, self.label, self.mesh = batches, config, label, mesh
        self.store: StepCheckpoints | None = None
        self.state: TrainState | None = None
        self.step = self.checked = 0  # steps dispatched, steps whose metrics were looked at
        self.history = np.zeros((len(METRICS), len(batches)), np.float32)
        self.metrics = None
        self.clock: list[tuple[int, float]] = []  # (step, when it was known to be done)

    def begin(self, params: PyTree) -> None:
        """Starts from the newest whole checkpoint, or from ``params``."""
        new = lambda params: init_state(params, make_optimizer(self.config), len(self.batches))
        if self.mesh is not None:
            where = sharding.param_shardings(self.mesh, jax.eval_shape(new, params))
            new = jax.jit(new, out_shardings=where)
        if self.store is not None and self.store.steps():
            like = {"state": jax.eval_shape(new, params), "history": self.history}
            found = self.store.restore_latest(like)
            if found is not None:
                self.step = self.checked = found[0]
                self.state, self.history = found[1]["state"], np.array(found[1]["history"])
                logger.info(f"{self.label}: going on from step {self.step}/{len(self.batches)}")
                return
        self.state = new(params)

    def train(self, train_step: Callable, progress: Progress, should_stop: Callable | None) -> None:
        total = len(self.batches)
        while self.step < total:
            if should_stop is not None and should_stop():
                self.look(progress)
                self.save()
                raise Interrupted(f"{self.label}: stopped after step {self.step}/{total}")
            batch = sharding.place_batch(self.mesh, self.batches[self.step], axis=1)
            with sharding.on(self.mesh):
                state, metrics = train_step(self.state, batch)
            # The device works on this step while the host reads what the last one gave.
            self.look(progress)
            self.state, self.metrics, self.step = state, metrics, self.step + 1
            if self.step % self.config.save_every_steps == 0 and self.step < total:
                self.look(progress)
                self.save()
        self.look(progress)

    def look(self, progress: Progress) -> None:
        """Fetches the metrics of the last step, if not yet done, and stops at a bad one."""
        if self.checked == self.step:
            return
        values = {name: float(value) for name, value in jax.device_get(self.metrics).items()}
        self.clock.append((self.checked, time.monotonic()))
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                kept = f"; the checkpoints in {self.store.folder} are good" if self.store else ""
                raise InputError(
                    f"{self.label}: {name} is {values[name]} at step {self.step}/"
                    f"{len(self.batches)}, expected a finite number{kept}"
                )
        self.history[:, self.checked] = [values[name] for name in METRICS]
        self.checked = self.step
        progress.update(1, f"loss {values['loss']:.3f}")

    def save(self) -> None:
        if self.store is not None:
            self.store.save(self.step, {"state": self.state, "history": self.history.copy()})

    def stats(self) -> dict[str, Any]:
        inputs = [self.batches.input_tokens(step) for step in range(len(self.batches))]
        history = {name: row.tolist() for name, row in zip(METRICS, self.history)}
        return {
            "steps": len(self.batches),
            "sequences": len(self.batches.sequences),
            "tokens": int(self.history[METRICS.index("tokens")].sum(dtype=np.float64)),
            "input_tokens": sum(inputs),
            "tokens_per_second": self._speed(inputs),
            "first_loss": history["loss"][0],
            "last_loss": history["loss"][-1],
            "history": history,
        }

    def _speed(self, inputs: list[int]) -> float | None:
        if len(self.clock) < 2:
            return None
        (first, since), (last, until) = self.clock[0], self.clock[-1]
        return sum(inputs[first + 1 : last + 1]) / max(until - since, 1e-9)


def _check_ids(sequences: Sequences[Sequence], vocab_size: int) -> None:
    """Out of range, an id would be read as another token's without a word."""
    for number, sequence in enumerate(sequences):
        if not 0 <= min(sequence.tokens) <= max(sequence.tokens) < vocab_size:
            bad = next(token for token in sequence.tokens if not 0 <= token < vocab_size)
            raise InputError(
                f"training: token {bad} in sequence {number}, expected 0 to {vocab_size - 1}; does "
                "the tokenizer belong to this model?"
            )


def _claim(folder: Path, config: TrainingConfig, batches: Batches) -> None:
    """Notes whose checkpoints a folder holds; refuses those of another fine-tune."""
    digest = hashlib.sha256()
    for sequence in batches.sequences:
        digest.update(np.int32([sequence.prompt_length, *sequence.tokens, -1]).tobytes())
    mine = {"seed": batches.seed, "sequences": digest.hexdigest(), **dataclasses.asdict(config)}
    del mine["save_every_steps"]
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
