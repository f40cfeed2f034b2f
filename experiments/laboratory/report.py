"""Figures of a sweep as plain numbers, with intervals over seeds, and files for them."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from imm_jax.files import atomic_write


def rows_of(base, figures, shape: tuple[int, ...]) -> dict[str, list]:
    """Members as ``shape``, rounds as last axis; accuracies begin with round 0, the original.

    ``accuracy`` keeps the tasks apart, in one more axis.
    """
    base = np.broadcast_to(np.asarray(base), (*shape, 1, len(base)))
    accuracy = np.asarray(figures.accuracy)
    accuracy = np.concatenate([base, accuracy.reshape(*shape, *accuracy.shape[1:])], axis=-2)
    found = {
        "in_domain": accuracy[..., 0],
        "out_of_domain": accuracy[..., 1:].mean(-1),
        "accuracy": accuracy,
    }
    for name in ("correct", "kept", "distinct", "nats"):
        values = np.asarray(getattr(figures, name))
        found[name] = values.reshape(*shape, *values.shape[1:])
    return {name: np.round(values.astype(np.float64), 4).tolist() for name, values in found.items()}


def interval(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean over seeds with its Student t interval.

    Seeds answer the same test questions: it says how far the runs differ, not the questions.
    """
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    half = t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def save(path: Path, report: dict, draw: Callable, size: tuple[float, float] = (17, 4)) -> None:
    """Writes ``path.json`` and ``path.png``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path.with_suffix(".json"), json.dumps(report) + "\n")
    figure, image = Figure(figsize=size, constrained_layout=True), io.BytesIO()
    draw(figure)
    figure.savefig(image, format="png", dpi=110)
    atomic_write(path.with_suffix(".png"), image.getvalue())
