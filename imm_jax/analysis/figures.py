"""The report's figures, as SVG that takes its colours from the page around it."""

import io
import re
import statistics
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from imm_jax.analysis.summary import (
    PANELS,
    arms_of,
    by_round_and_arm,
    draw_rounds,
    interval,
    lengths,
)

MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
SERIES = 6  # colours that the page defines, --s0 (the original model) to --s5
# Colours that no figure has otherwise stand for the page's until the SVG is written.
INK, GRID = "#010101", "#020202"
COLOURS = [f"#0300{number:02x}" for number in range(SERIES)]
PAGE_COLOURS = {INK: "currentColor", GRID: "var(--line)"}
PAGE_COLOURS |= {colour: f"var(--s{number})" for number, colour in enumerate(COLOURS)}

Drawing = Callable[[Any], None]  # draws into matplotlib's axis


class Figure(NamedTuple):
    """A figure of the page: its title, the SVG, and a line that says what is drawn."""

    title: str
    svg: str
    caption: str = ""


def run_figures(rows: Sequence[dict], last: int) -> list[Figure]:
    """The figures of a run's rows: ID against OOD, what is drawn by round, accuracy by task.

    Args:
      rows: as in ``metrics.jsonl``, at least one.
      last: the round whose models the first and the last figure show.
    """
    arms, bars = arms_of(rows), "Bars are 95 % intervals over questions."
    figures = []
    if all(row.get("out_of_domain") is not None for row in rows):
        title = "In-domain against out-of-domain accuracy"
        caption = f"{bars} Thin lines go from the original model to the arm after round {last}."
        figures.append(
            Figure(title, svg(lambda axis: _plane(axis, rows, arms, last), title), caption)
        )
    for key, label in PANELS.items():
        if arms and any(row.get(key) is not None for row in rows):
            what, _, how = label.partition(", ")
            title = f"{what[0].upper()}{what[1:]} by round"
            picture = svg(lambda axis, key=key: _rounds(axis, rows, arms, key), title)
            figures.append(Figure(title, picture, bars if "domain" in key else how.capitalize()))
    title = "Accuracy by task" + (f" after round {last}" if last else "")
    tasks = len(rows[0]["tasks"])
    picture = svg(lambda axis: _tasks(axis, rows, arms, last), title, 1.1 + 0.55 * max(3, tasks))
    return [*figures, Figure(title, picture, bars)]


def svg(draw: Drawing, title: str, height: float = 3.3) -> str:
    """What ``draw`` draws, as an ``<svg>`` element for a page that defines the colours.

    Args:
      draw: called with matplotlib's axis.
      title: read out in the figure's place.
      height: in inches; the width is 4.6.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": ["sans-serif"],
        "font.size": 10,
        "text.parse_math": False,  # a task's name may hold a dollar
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        figure = Canvas(figsize=(4.6, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), title)


def legend(models: Sequence[str]) -> list[tuple[str, int, str]]:
    """For each model, the original first: its marker's letter, its colour's number, its name."""
    letters = list(MARKERS.values())
    return [(letters[i % len(letters)], i % SERIES, name) for i, name in enumerate(models)]


def style_of(number: int, **changes: Any) -> dict:
    """How a model's points and line look; 0 is the original."""
    own = {"color": COLOURS[number % SERIES], "marker": list(MARKERS)[number % len(MARKERS)]}
    return own | {"markersize": 5, "linewidth": 1.6, "elinewidth": 1.1} | changes


def _inline(text: str, title: str) -> str:
    """The element alone, in the page's colours, without names that other figures have too."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for colour, name in PAGE_COLOURS.items():
        text = text.replace(colour, name)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1).strip()


def _plane(axis: Any, rows: Sequence[dict], arms: Sequence[str], last: int) -> None:
    groups = {(g[0]["round"], g[0]["arm"]): g for g in by_round_and_arm(rows)}
    for number, arm in enumerate(["base", *arms]):
        path = [g for (t, name), g in groups.items() if name in ("base", arm) and t <= last]
        group = groups.get((last, arm)) if arm != "base" else groups.get((0, "base"))
        if group is None:
            continue
        means = [[_mean(g, key) for g in path] for key in ("in_domain", "out_of_domain")]
        style = style_of(number)
        if arm != "base":
            axis.plot(*means, color=style["color"], linewidth=0.8, alpha=0.6)
        x, y = _mean(group, "in_domain"), _mean(group, "out_of_domain")
        axis.errorbar(
            [x],
            [y],
            xerr=[[side] for [side] in lengths([x], [interval(group, "in_domain")])],
            yerr=[[side] for [side] in lengths([y], [interval(group, "out_of_domain")])],
            capsize=3,
            **style | {"markersize": 7, "linestyle": "none"},
        )
    axis.set_xlabel("in-domain accuracy")
    axis.set_ylabel("out-of-domain accuracy")
    axis.grid(alpha=0.7)


def _rounds(axis: Any, rows: Sequence[dict], arms: Sequence[str], key: str) -> None:
    styles = [style_of(number) for number in range(1, len(arms) + 1)]
    draw_rounds(axis, rows, arms, key, styles)
    axis.set_xlabel("round")


def _tasks(axis: Any, rows: Sequence[dict], arms: Sequence[str], last: int) -> None:
    names = list(rows[0]["tasks"])
    groups = {(g[0]["round"], g[0]["arm"]): g for g in by_round_and_arm(rows)}
    models = {"base": groups.get((0, "base"))} | {arm: groups.get((last, arm)) for arm in arms}
    for number, group in enumerate(models.values()):
        if group is None:
            continue
        scores = [[row["tasks"][name] for row in group] for name in names]
        x, low, high = (
            [statistics.fmean(s[key] for s in found) for found in scores]
            for key in ("accuracy", "low", "high")
        )
        y = [i + 0.17 * (number - (len(models) - 1) / 2) for i in range(len(names))]
        axis.errorbar(
            x,
            y,
            xerr=lengths(x, list(zip(low, high))),
            capsize=2,
            **style_of(number, linestyle="none"),
        )
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("accuracy")
    axis.grid(axis="x", alpha=0.7)


def _mean(group: Sequence[dict], key: str) -> float:
    return statistics.fmean(row[key] for row in group)
