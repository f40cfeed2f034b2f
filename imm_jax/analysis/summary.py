"""A run's figures as a table and as a picture."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imm_jax.analysis.image import save_png
from imm_jax.statistics import mean_interval

PANELS = {  # what is drawn by round
    "in_domain": "in-domain accuracy",
    "out_of_domain": "out-of-domain accuracy",
    "distinct_2": "distinct-2 of the samples",
    "distance": "distance from the original, relative to its size",
}
COLUMNS = ("round", "arm", "ID", "OOD", "kept", "distinct-2", "distance", "seeds")


def table(rows: Sequence[dict]) -> str:
    """Round by arm: accuracies with 95 % intervals, kept samples, diversity, distance.

    With several seeds each cell is the mean over seeds, and the last column says how many. The
    interval of ID is Wilson's; that of OOD, a mean over tasks, treats the tasks' questions as
    independent samples of equal weight for each task.
    """
    lines = [list(COLUMNS)]
    for group in by_round_and_arm(rows):
        first = group[0]
        lines.append(
            [
                str(first["round"]),
                first["arm"],
                _accuracy(group, "in_domain"),
                _accuracy(group, "out_of_domain"),
                _mean(group, "kept", "{:.0f}"),
                _mean(group, "distinct_2", "{:.3f}"),
                _mean(group, "distance", "{:.5f}"),
                str(len(group)),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def plot(rows: Sequence[dict], path: str | Path, title: str = "") -> None:
    """Draws the table: accuracies, diversity and distance by round, one line an arm, as a PNG.

    Bars are 95 % intervals over questions (see :func:`table`); with several seeds lines are means.
    """

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), sharex=True, constrained_layout=True)
        arms = arms_of(rows)
        for axis, (key, label) in zip(axes.flat, PANELS.items()):
            draw_rounds(axis, rows, arms, key)
            axis.set_title(label, fontsize=10)
        for axis in axes[1]:
            axis.set_xlabel("round")
        if arms:
            axes[0, 0].legend()
        return figure

    save_png(draw, path, title)


def draw_rounds(
    axis: Any, rows: Sequence[dict], arms: Sequence[str], key: str, styles: Sequence[dict] = ()
) -> None:
    """Draws the figure ``key`` by round into matplotlib's ``axis``, one line an arm.

    ``styles`` are settings of each arm's line, matplotlib's own where there are none.
    """
    from matplotlib.ticker import MaxNLocator

    groups = by_round_and_arm(rows)
    for number, arm in enumerate(arms):
        points = [g for g in groups if g[0]["arm"] in ("base", arm)]
        points = [g for g in points if all(row.get(key) is not None for row in g)]
        x = [g[0]["round"] + 0.04 * (number - (len(arms) - 1) / 2) for g in points]
        y = [statistics.fmean(row[key] for row in g) for g in points]
        error = None
        if key in ("in_domain", "out_of_domain"):
            error = lengths(y, [interval(g, key) for g in points])
        style = styles[number] if styles else {"marker": "o"}
        axis.errorbar(x, y, yerr=error, capsize=3, label=arm, **style)
    axis.grid(alpha=0.3)
    axis.set_xlim(-0.3, max(row["round"] for row in rows) + 0.3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def lengths(
    values: Sequence[float], bounds: Sequence[tuple[float, float]]
) -> tuple[list[float], list[float]]:
    """How far each interval reaches below and above its value, as matplotlib takes it."""
    # A mean over seeds may be rounded past an end; lengths below 0 are refused.
    below = [max(0.0, value - low) for value, (low, _) in zip(values, bounds)]
    return below, [max(0.0, high - value) for value, (_, high) in zip(values, bounds)]


def arms_of(rows: Sequence[dict]) -> list[str]:
    """The arms in their order, without the original model."""
    return [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != "base"]


def interval(group: Sequence[dict], key: str) -> tuple[float, float]:
    """The 95 % interval of a mean accuracy over seeds (one ``row`` each).

    Seeds answer the same questions, so more seeds do not narrow the interval over questions.
    """
    bounds = [_interval_of(row, key) for row in group]
    return statistics.fmean(b[0] for b in bounds), statistics.fmean(b[1] for b in bounds)


def _interval_of(row: dict, key: str) -> tuple[float, float]:
    scores = list(row["tasks"].values())
    if key == "in_domain":
        return scores[0]["low"], scores[0]["high"]
    shares = [(score["accuracy"], score["low"], score["high"]) for score in scores[1:]]
    return mean_interval(shares)[1:]


def by_round_and_arm(rows: Sequence[dict]) -> list[list[dict]]:
    """The rows of each round and arm together, one for each seed; by round."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["round"], row["arm"]), []).append(row)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def _accuracy(group: Sequence[dict], key: str) -> str:
    if any(row.get(key) is None for row in group):
        return "-"
    low, high = interval(group, key)
    return f"{statistics.fmean(row[key] for row in group):.3f} [{low:.2f}, {high:.2f}]"


def _mean(group: Sequence[dict], key: str, form: str) -> str:
    values = [row.get(key) for row in group]
    return "-" if None in values else form.format(statistics.fmean(values))
