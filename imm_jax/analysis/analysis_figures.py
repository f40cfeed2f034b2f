"""The report's figures of ``analysis.json``: layers, diversity, the path between two models."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from imm_jax.analysis.figures import Figure, style_of, svg
from imm_jax.analysis.memorisation import SETS
from imm_jax.analysis.summary import by_round_and_arm, draw_rounds, lengths
from imm_jax.statistics import mean_interval

MEASURES = {
    "taylor": "Taylor importance, share",
    "ablation": "loss without the layer, nats more",
    "influence": "block influence, 1 − cos",
}
DIVERSITY = {
    "self_bleu": "Self-BLEU of a question's samples by round",
    "answer_entropy": "Answer entropy by round, nats",
    "token_entropy": "Token entropy by round, nats a token",
    "unique_correct": "Unique correct solutions by round",
    "pass@1": "Share of right samples by round",
}


def analysis_figures(
    analysis: Mapping[str, Any], arms: Sequence[str]
) -> tuple[list[Figure], list[str]]:
    """The figures there is something for, and the sections that cannot be drawn.

    Args:
      analysis: what ``analysis.json`` holds: by section its settings and results.
      arms: the run's, in their order.
    """
    figures, failed = [], []
    for section, draw in SECTIONS.items():
        try:
            figures += draw(analysis, arms) if section in analysis else []
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            failed.append(section)  # another version's, or somebody's own
    return figures, failed


def _diversity(analysis: Mapping[str, Any], arms: Sequence[str]) -> list[Figure]:
    rows = [
        row | {"pass@1": row["pass_at_k"]["1"]} for row in analysis["diversity"]["rows"]
    ]  # as rows of metrics.jsonl
    styles = [style_of(number) for number in range(1, len(arms) + 1)]
    figures = []
    for key, title in DIVERSITY.items():
        if any(row[key] is not None for row in rows):

            def draw(axis: Any, key: str = key) -> None:
                draw_rounds(axis, rows, arms, key, styles)
                axis.set_xlabel("round")

            figures.append(Figure(title, svg(draw, title), "Of the samples that a round drew."))
    return figures


def _layers(analysis: Mapping[str, Any], arms: Sequence[str]) -> list[Figure]:
    """Each measure's importance as bars, the change of each arm's last model as lines over it."""
    changes = _last_models(analysis.get("change", {"rows": []})["rows"], arms)
    figures = []
    for measure, label in MEASURES.items():
        if measure not in analysis["importance"]:
            continue
        title = f"Importance of layers ({measure}) against change"
        importance = analysis["importance"][measure]["layers"]
        picture = svg(partial(_draw_layers, importance, label, changes, arms), title)
        figures.append(Figure(title, picture, _correlations(analysis, measure, changes)))
    return figures


def _draw_layers(
    importance: Sequence[float],
    label: str,
    changes: Mapping[str, dict],
    arms: Sequence[str],
    axis: Any,
) -> None:
    axis.bar(range(1, len(importance) + 1), importance, color=style_of(0)["color"], alpha=0.45)
    axis.set(xlabel="layer", ylabel=label)
    other = axis.twinx()
    for arm, row in changes.items():
        style = style_of(arms.index(arm) + 1)
        del style["elinewidth"]
        layers = range(1, len(row["layers_relative"]) + 1)
        other.plot(layers, row["layers_relative"], **style | {"markersize": 3, "linewidth": 1.2})
    if changes:
        other.set_ylabel("relative change")
        other.set_ylim(bottom=0)
        other.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        other.spines["right"].set_visible(True)
    else:
        other.set_axis_off()


def _last_models(rows: Sequence[dict], arms: Sequence[str]) -> dict[str, dict]:
    """Of each arm the row of its last kept model, merged, from the first seed."""
    kept = [row for row in rows if row["model"] == "model"]
    seed = min((row["seed"] for row in kept), default=0)
    found: dict[str, dict] = {}
    for row in sorted(kept, key=lambda row: row["round"]):
        if row["seed"] == seed and row["arm"] in arms:
            found[row["arm"]] = row
    return found


def _correlations(analysis: Mapping[str, Any], measure: str, changes: Mapping[str, dict]) -> str:
    """What bars and lines are, and the rank correlation with each arm's change."""
    said = []
    for row in analysis.get("correlation", {"rows": []})["rows"]:
        at = changes.get(row.get("arm"))
        same = at and all(row.get(key) == at[key] for key in ("seed", "round", "model"))
        same = same and (row["importance"], row["change"]) == (measure, "layers_relative")
        if same and None not in (row["rho"], row["low"], row["high"]):
            low, high = (f"{row[end]:.2f}".replace("-", "−") for end in ("low", "high"))
            said.append(f"{row['arm']} {row['rho']:.2f} ({low} to {high})")
    lead = "Bars: importance. Lines: change of an arm's last model."
    rank = f" Rank correlation with 95 % interval: {', '.join(said)}." if said else ""
    return lead + rank


def _path(analysis: Mapping[str, Any], arms: Sequence[str]) -> list[Figure]:
    """ID and OOD accuracy along the line from the original to a tuned model."""
    section = analysis["path"]
    weights = sorted((key for key in section if key != "settings"), key=float)
    if not weights:
        return []
    title = "Accuracy on the line from the original to the tuned model"

    def draw(axis: Any) -> None:
        shares = [
            [(s["accuracy"], s["low"], s["high"]) for s in section[w]["tasks"].values()]
            for w in weights
        ]
        x = [float(weight) for weight in weights]
        lines = {"ID": [task[:1] for task in shares], "OOD": [task[1:] for task in shares]}
        for number, (name, points) in enumerate(lines.items(), 1):
            if not all(points):
                continue
            means = [mean_interval(point) for point in points]
            y = [mean for mean, _, _ in means]
            error = lengths(y, [bounds[1:] for bounds in means])
            shifted = [value + 0.008 * (number - 1.5) for value in x]  # bars beside one another
            style = style_of(number + 2)
            axis.errorbar(shifted, y, yerr=error, capsize=3, **style)
            axis.annotate(
                name,
                (shifted[-1], y[-1]),
                (8, -3),
                textcoords="offset points",
                color=style["color"],
            )
        axis.set(xlabel="weight (0: original, 1: tuned)", ylabel="accuracy")
        axis.margins(x=0.1)
        axis.grid(alpha=0.7)

    name = section.get("settings", {}).get("name", "")
    caption = "Bars are 95 % intervals over questions; OOD is the mean over tasks."
    return [Figure(title, svg(draw, title), f"{caption} Tuned: {name}." if name else caption)]


def _memorisation(analysis: Mapping[str, Any], arms: Sequence[str]) -> list[Figure]:
    """The original and the tuned model on trained, varied and new questions."""
    section = analysis["memorisation"]
    models = [section[name]["scores"] for name in ("base", "tuned") if name in section]
    sets = [name for name in SETS if any(name in scores for scores in models)]
    if not sets:
        return []
    title = "Accuracy on questions trained on, varied, and new"
    name = section.get("settings", {}).get("name", "")
    arm = next((arm for arm in arms if name.endswith(f", {arm}")), None)

    def draw(axis: Any) -> None:
        numbers = (0, arms.index(arm) + 1 if arm else 3)
        for side, (number, scores) in enumerate(zip(numbers, models)):
            there = [i for i, which in enumerate(sets) if which in scores]
            rows = [scores[sets[i]] for i in there]
            x = [row["accuracy"] for row in rows]
            error = lengths(x, [(row["low"], row["high"]) for row in rows])
            y = [i + 0.2 * (side - 0.5) for i in there]
            axis.errorbar(x, y, xerr=error, capsize=2, **style_of(number, linestyle="none"))
        axis.set_yticks(range(len(sets)), sets)
        axis.set_ylim(len(sets) - 0.5, -0.5)
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel("accuracy")
        axis.grid(axis="x", alpha=0.7)

    caption = "In grey the original. Bars are 95 % intervals over questions."
    return [Figure(title, svg(draw, title), f"{caption} Tuned: {name}." if name else caption)]


def _gap(analysis: Mapping[str, Any], arms: Sequence[str]) -> list[Figure]:
    """What a selection without gold answers gained."""
    rows = analysis["gap"]["rows"]
    if not rows:
        return []
    title = "Generation-verification gap by round"
    draw = lambda axis: _draw_gaps(axis, rows, arms)
    caption = "Share of right ones among kept samples, less that among all."
    caption += " Bars are 95 % intervals over questions." if all("low" in r for r in rows) else ""
    return [Figure(title, svg(draw, title), caption)]


def _verification(analysis: Mapping[str, Any], arms: Sequence[str]) -> list[Figure]:
    """What each round's model gains where it judges its own samples."""
    section = analysis["verification"]
    if not section["rows"]:
        return []
    title = "Gap of models that verify their own samples, by round"

    def draw(axis: Any) -> None:
        _draw_gaps(axis, section["rows"], arms)
        axis.axhline(0, linewidth=0.8, color=style_of(0)["color"])

    caption = (
        "The model that sampled is asked, greedily, which samples are right: share of right ones "
        "among those, less that among all. Bars are 95 % intervals over questions."
    )
    gone = sorted({row["round"] for row in section["missing"]})
    if gone:
        caption += f" Not measured, for the model is not kept: round {', '.join(map(str, gone))}."
    return [Figure(title, svg(draw, title), caption)]


def _draw_gaps(axis: Any, rows: Sequence[dict], arms: Sequence[str]) -> None:
    """A line an arm, with the intervals where all rows have some."""
    from matplotlib.ticker import MaxNLocator

    mean = lambda group, key: statistics.fmean(row[key] for row in group)
    groups, bars = by_round_and_arm(rows), all("low" in row for row in rows)
    for number, arm in enumerate(arms):
        own = [group for group in groups if group[0]["arm"] == arm]
        x = [group[0]["round"] + 0.04 * (number - (len(arms) - 1) / 2) for group in own]
        y = [mean(group, "gap") for group in own]
        ends = [(mean(group, "low"), mean(group, "high")) for group in own] if bars else []
        error = lengths(y, ends) if bars else None
        axis.errorbar(x, y, yerr=error, capsize=3, **style_of(number + 1))
    axis.set_xlim(0.7, max(row["round"] for row in rows) + 0.3)
    axis.set_xlabel("round")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.7)


# By the section that has to be there.
SECTIONS = {
    "importance": _layers,
    "path": _path,
    "memorisation": _memorisation,
    "diversity": _diversity,
    "gap": _gap,
    "verification": _verification,
}
