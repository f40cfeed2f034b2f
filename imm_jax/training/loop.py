"""The loop of a fine-tune: steps, what they said, and the state that is saved on the way."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imm_jax import sharding
from imm_jax.errors import Diverged, Interrupted
from imm_jax.progress import Progress
from imm_jax.step_checkpoints import StepCheckpoints
from imm_jax.training.batching import Batches
from imm_jax.training.config import TrainingConfig
from imm_jax.training.optimizer import make_optimizer
from imm_jax.training.step import TrainState, init_state

PyTree = Any

logger = logging.getLogger("imm_jax")

METRICS = ("loss", "accuracy", "tokens", "grad_norm", "learning_rate", "skipped")


class Run:
    """A fine-tune under way: the state, the metrics of the steps done, and where both are saved."""

    def __init__(self, batches: Batches, config: TrainingConfig, label: str, mesh: Mesh | None):
        self.batches, self.config, self.label, self.mesh = batches, config, label, mesh
        self.store: StepCheckpoints | None = None
        self.state: TrainState | None = None
        self.step = self.checked = 0  # steps dispatched, steps whose metrics were looked at
        self.limit = min(config.max_skipped, len(batches))
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
        self.state = commit(new(params))

    def train(self, train_step: Callable, progress: Progress, should_stop: Callable | None) -> None:
        total = len(self.batches)
        while self.step < total:
            if should_stop is not None and should_stop():
                self.look(progress)
                self.save()
                raise Interrupted(f"{self.label}: stopped after step {self.step}/{total}")
            batch = sharding.place_batch(self.mesh, self.batches[self.step], axis=1)
            if self.skipped_in_a_row() + 1 >= self.limit:
                self.look(progress)  # the step under way may be the last that is let pass
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
            raise Diverged(
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


def commit(tree: PyTree) -> PyTree:
    """Ties arrays to the device they are on, as restored ones are: else a step compiles twice."""
    devices = set().union(*(leaf.devices() for leaf in jax.tree.leaves(tree)))
    return jax.device_put(tree, devices.pop()) if len(devices) == 1 else tree
