"""The plots of an analysis, from the figures of its JSON file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imm_jax.analysis.image import save_png

LABELS = {
    "taylor": "Taylor importance, share",
    "ablation": "loss without the layer, nats more",
    "influence": "block influence, 1 - cos",
}
FIGURES = {
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU within a question",
    "answer_entropy": "answer entropy, nats",
    "token_entropy": "token entropy, nats a token",
    "unique_correct": "unique correct solutions",
    "pass": "pass@1, and at the most samples (dashed)",
}


def plot_layers(
    importance: Mapping[str, Sequence[float]],
    changes: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    path: Path,
    title: str = "",
) -> None:
    """Importance and change of each layer over depth, and one against the other.

    Args:
      importance: for each measure a figure a layer, ``[L]``.
      changes: by kind of change (``"relative change"``), for each model ``[seeds, L]``. Their mean
        is drawn, with the least and the greatest around it.
      path: of the PNG.
      title: stands above.
    """

    def draw(plt) -> Any:
        rows = [(measure, kind) for measure in importance or [None] for kind in changes]
        figure, axes = plt.subplots(
            len(rows), 2, figsize=(10, 3.4 * len(rows)), squeeze=False, constrained_layout=True
        )
        for (measure, kind), (depth, scatter) in zip(rows, axes):
            for name, seeds in changes[kind].items():
                values = np.mean(seeds, axis=0)
                layers = range(1, len(values) + 1)
                (line,) = depth.plot(layers, values, marker=".", label=name)
                depth.fill_between(
                    layers, np.min(seeds, axis=0), np.max(seeds, axis=0),
                    color=line.get_color(), alpha=0.15,
                )  # fmt: skip
                if measure:
                    scatter.scatter(importance[measure], values, s=16, color=line.get_color())
            depth.set(xlabel="layer", ylabel=kind)
            depth.grid(alpha=0.3)
            depth.set_ylim(bottom=0)
            depth.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
            if measure:
                other, values = depth.twinx(), importance[measure]
                other.bar(range(1, len(values) + 1), values, color="0.85")
                other.set_ylabel(f"{LABELS[measure]} (bars)")
                other.set_zorder(depth.get_zorder() - 1)
                depth.patch.set_visible(False)
                scatter.set(xlabel=LABELS[measure], ylabel=kind)
                scatter.grid(alpha=0.3)
                scatter.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
                if min(values) > 0 and max(values) > 20 * sorted(values)[len(values) // 2]:
                    scatter.set_xscale("log")
            else:
                scatter.set_axis_off()
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
        )
        return figure

    save_png(draw, path, title)


def plot_path(points: Mapping[str, Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Accuracy and loss along the line from the base (0) to the tuned model (1).

    Args:
      points: for each weight ``{"tasks": {name: score}, "loss": nats or None}``; the first task is
        the in-domain one. Bars are 95 % Wilson intervals.
      path: of the PNG.
      title: stands above.
    """

    def draw(plt) -> Any:
        weights = sorted(points, key=float)
        x = [float(weight) for weight in weights]
        names = list(points[weights[0]]["tasks"])
        losses = [points[weight].get("loss") for weight in weights]
        panels = 1 + (None not in losses)
        figure, axes = plt.subplots(
            1, panels, figsize=(5.2 * panels, 4), squeeze=False, constrained_layout=True
        )
        for number, name in enumerate(names):
            scores = [points[weight]["tasks"][name] for weight in weights]
            y = [score["accuracy"] for score in scores]
            error = [
                [max(0.0, s["accuracy"] - s["low"]) for s in scores],
                [max(0.0, s["high"] - s["accuracy"]) for s in scores],
            ]
            width = 0.006 * (number - (len(names) - 1) / 2)  # bars beside one another
            style = "-" if number == 0 else "--"
            axes[0, 0].errorbar(
                [v + width for v in x], y, yerr=error, fmt=f"o{style}", capsize=2, label=name
            )
        axes[0, 0].set(ylabel="accuracy", ylim=(-0.02, 1.02))
        axes[0, 0].legend(fontsize=8)
        if panels > 1:
            axes[0, 1].plot(x, losses, "o-", color="0.3")
            axes[0, 1].set(ylabel="loss of the kept solutions, nats a token")
        for axis in axes[0]:
            axis.set_xlabel("weight (0: base, 1: tuned)")
            axis.grid(alpha=0.3)
        return figure

    save_png(draw, path, title)


def plot_diversity(rows: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Figures of the samples by round, a line an arm; with several seeds the mean over them.

    Args:
      rows: as ``analysis.diversity.Diversity``, with ``seed``, ``round`` and ``arm``.
      path: of the PNG.
      title: stands above.
    """

    def draw(plt) -> Any:
        from matplotlib.ticker import MaxNLocator

        figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), sharex=True, constrained_layout=True)
        for axis, (key, label) in zip(axes.flat, FIGURES.items()):
            for number, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
                own = [row for row in rows if row["arm"] == arm]
                color = f"C{number}"
                if key == "pass":
                    last = list(own[0]["pass_at_k"])[-1]
                    _line(axis, own, lambda row: row["pass_at_k"]["1"], f"o-{color}", arm)
                    _line(axis, own, lambda row, k=last: row["pass_at_k"][k], f"o--{color}", None)
                else:
                    _line(axis, own, lambda row, k=key: row[k], f"o-{color}", arm)
            axis.set_title(label, fontsize=10)
            axis.grid(alpha=0.3)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in axes[1]:
            axis.set_xlabel("round")
        axes[0, 0].legend(fontsize=8)
        return figure

    save_png(draw, path, title)


def _line(axis, rows, value: Callable, style: str, label: str | None) -> None:
    rounds = sorted({row["round"] for row in rows})
    groups = [[value(row) for row in rows if row["round"] == t] for t in rounds]
    kept = [(t, group) for t, group in zip(rounds, groups) if None not in group]
    axis.plot(
        [t for t, _ in kept], [sum(group) / len(group) for _, group in kept], style, label=label
    )
