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

METRICS = ("loss", "accuracy", "tokens", "grad_norm", "learning_rate", "skipped")


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
      params: where to start; left as they are. Trained in float32, returned in their own dtypes.
      sequences: cut at ``config.max_length``; those with no response token left are dropped.
      config: hyperparameters.
      seed: of the order of the sequences.
      checkpoints: folder for the state every ``config.save_every_steps``; a call that finds one
        there goes on from it. None: nothing is saved.
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
      InputError: nothing to train on; a token the model does not have; ``config.max_skipped`` steps
        in a row, or all there are, had a loss or gradient that is not finite (the parameters from
        before them are saved first, in ``checkpoints``); ``checkpoints`` belongs to another
        fine-tune or cannot be written.
      Interrupted: ``should_stop`` said so.
    """
    start = time.monotonic()
    prepared = prepare(sequences, config.max_length)
    _check_ids(prepared.sequences, model.config.vocab_size)
    batches = Batches(prepared.sequences, config, seed=seed)
    run = _Run(batches, config, label)
    with ExitStack() as stack:
        if checkpoints is not None:
            _claim(Path(checkpoints), config, batches)
            run.store = stack.enter_context(StepCheckpoints(checkpoints))
        run.begin(params)
        progress = stack.enter_context(Progress(label, total=len(batches), unit="step"))
        progress.update(run.step)
        run.train(_train_step(model, config), progress, should_stop)
    new = jax.tree.map(lambda old, new: new.astype(old.dtype), params, run.state.params)
    jax.block_until_ready(new)
    stats = run.stats() | {"truncated": prepared.truncated, "dropped": prepared.dropped}
    return new, stats | {"seconds": time.monotonic() - start}


def _train_step(model: nn.Module, config: TrainingConfig) -> Callable:
    """One jitted step for all fine-tunes of a run, so that later rounds compile nothing."""
    model = model.clone(remat=config.remat, dtype=np.dtype(config.compute_dtype))
    # What the compiled step does not depend on must not make a second one.
    same = dataclasses.replace(config, epochs=1, save_every_steps=1, max_skipped=1)
    return _jitted_step(model, same)


@lru_cache(maxsize=4)
def _jitted_step(model: nn.Module, config: TrainingConfig) -> Callable:
    return make_train_step(model, make_optimizer(config), config)


class _Run:
    """A fine-tune under way: the state, the metrics of the steps done, and where both are saved."""

    def __init__(self, batches: Batches, config: TrainingConfig, label: str):
        self.batches, self.config, self.label = batches, config, label
        self.store: StepCheckpoints | None = None
        self.state: TrainState | None = None
        self.step = self.checked = 0  # steps dispatched, steps whose metrics were looked at
        self.limit = min(config.max_skipped, len(batches))
        self.history = np.zeros((len(METRICS), len(batches)), np.float32)
        self.metrics = None
        self.clock: list[tuple[int, float]] = []  # (step, when it was known to be done)

    def begin(self, params: PyTree) -> None:
        """Starts from the newest whole checkpoint, or from ``params``."""
        new = lambda: init_state(params, make_optimizer(self.config), len(self.batches))
        if self.store is not None and self.store.steps():
            like = {"state": jax.eval_shape(new), "history": self.history}
            found = self.store.restore_latest(like)
            if found is not None:
                self.step = self.checked = found[0]
                self.state, self.history = found[1]["state"], np.array(found[1]["history"])
                logger.info(f"{self.label}: going on from step {self.step}/{len(self.batches)}")
                return
        self.state = new()

    def train(self, train_step: Callable, progress: Progress, should_stop: Callable | None) -> None:
        total = len(self.batches)
        while self.step < total:
            if should_stop is not None and should_stop():
                self.look(progress)
                self.save()
                raise Interrupted(f"{self.label}: stopped after step {self.step}/{total}")
            batch = self.batches[self.step]
            if self.skipped_in_a_row() + 1 >= self.limit:
                self.look(progress)  # the step under way may be the last that is let pass
            state, metrics = train_step(self.state, batch)
            # The device works on this step while the host reads what the last one gave.
            self.look(progress)
            self.state, self.metrics, self.step = state, metrics, self.step + 1
            if self.step % self.config.save_every_steps == 0 and self.step < total:
                self.look(progress)
                self.save()
        self.look(progress)

    def look(self, progress: Progress) -> None:
        """Fetches the metrics of the last step, if not yet done; stops where too many were bad."""
        if self.checked < self.step:
            values = {name: float(value) for name, value in jax.device_get(self.metrics).items()}
            self.clock.append((self.checked, time.monotonic()))
            self.history[:, self.checked] = [values[name] for name in METRICS]
            self.checked = self.step
            progress.update(1, f"loss {values['loss']:.3f}")
            if values["skipped"]:
                logger.warning(f"{self._what_is_wrong()}, so the step is skipped")
        if self.skipped_in_a_row() >= self.limit:
            self.save()
            raise InputError(
                f"{self._what_is_wrong()}, expected a finite number; {self.skipped_in_a_row()} "
                f"steps in a row were skipped (training.max_skipped); {self._where_the_good_is()}"
            )

    def skipped_in_a_row(self) -> int:
        """How many of the last steps that were looked at changed nothing."""
        return self.checked - self._last_good()

    def _last_good(self) -> int:
        """The last step, counted from 1, that was not skipped; 0 for none."""
        skipped = self.history[METRICS.index("skipped"), : self.checked]
        return 1 + int(np.flatnonzero(skipped == 0).max(initial=-1))

    def _what_is_wrong(self) -> str:
        last = dict(zip(METRICS, self.history[:, self.checked - 1]))
        name = "grad_norm" if math.isfinite(last["loss"]) else "loss"
        step = f"step {self.checked}/{len(self.batches)}"
        return f"{self.label}: {name} is {last[name]} at {step}"

    def _where_the_good_is(self) -> str:
        if self.store is None:
            return "nothing is saved, for want of a checkpoint folder"
        self.store.wait()
        folder = self.store.folder / f"step_{self.step:08d}"
        return f"the parameters as step {self._last_good()} left them are in {folder}"

    def save(self) -> None:
        if self.store is not None:
            self.store.save(self.step, {"state": self.state, "history": self.history.copy()})

    def stats(self) -> dict[str, Any]:
        inputs = [self.batches.input_tokens(step) for step in range(len(self.batches))]
        kept = self.history[:, self.history[METRICS.index("skipped")] == 0]
        losses = kept[METRICS.index("loss")]
        history = {
            name: [value if math.isfinite(value) else None for value in row.tolist()]
            for name, row in zip(METRICS, self.history)
        }
        return {
            "steps": len(self.batches),
            "skipped": len(self.batches) - kept.shape[1],
            "sequences": len(self.batches.sequences),
            "tokens": int(kept[METRICS.index("tokens")].sum(dtype=np.float64)),
            "input_tokens": sum(inputs),
            "tokens_per_second": self._speed(inputs),
            "first_loss": float(losses[0]),
            "last_loss": float(losses[-1]),
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
    del mine["save_every_steps"], mine["max_skipped"]
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
