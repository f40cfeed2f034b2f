"""Our side of ``sample.py``: the engine of ``imm_jax.generate`` with a model that stays loaded."""

import dataclasses
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import bench
from models import decoding_limit


@dataclasses.dataclass(frozen=True)
class Ours:
    """Our model, loaded."""

    model: Any
    params: Any
    tokenizer: Any

    def limit(self, limits: dict, rows: int, tokens: float, weights: str) -> dict:
        """What decoding can reach; see ``models.decoding_limit``."""
        matrices = self.model.dtype.name if weights == "model" else weights
        return decoding_limit(self.model, self.params, limits, rows, tokens, matrices)

    def mean_tokens(self, prompts: list[str]) -> float:
        return statistics.mean(map(len, self.tokenizer(prompts)["input_ids"]))


def load(folder: Path, dtype: str) -> Ours:
    import jax.numpy as jnp

    from imm_jax import load_model, load_tokenizer

    model, params = load_model(folder)
    return Ours(model.clone(dtype=jnp.dtype(dtype)), params, load_tokenizer(folder))


def sample(ours: Ours, prompts: list[str], limits: list[int], samples: int, config) -> dict:
    """Seconds, tokens and peak memory of our engine."""
    from imm_jax import generate

    said: list[str] = []
    watch = logging.Handler()
    watch.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("imm_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(watch)
    start = time.perf_counter()
    rows = generate(
        ours.model, ours.params, ours.tokenizer, prompts,
        config=config, samples=samples, limits=limits, eos=(), seed=1,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    logger.removeHandler(watch)
    counts = [[len(one.tokens) for one in row] for row in rows]
    assert counts == [[limit] * samples for limit in limits]
    return {
        "seconds": seconds,
        "tokens": sum(map(sum, counts)),
        "log": said[-1] if said else "",
        "device_bytes": bench.peak_memory().get("device"),
    }
