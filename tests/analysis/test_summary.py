"""The table and the plot, from rows made by hand."""

import warnings

import numpy as np
import pytest

from imm_jax.analysis.summary import COLUMNS, interval, plot, table
from imm_jax.statistics import wilson_interval


def row(t, arm, right, seed=0, kept=None, n=20):
    """``right`` of ``n`` answers on the practised task and two others."""
    tasks = {}
    for name, number in zip(("sums", "dates", "words"), right):
        low, high = wilson_interval(number / n, n)
        tasks[name] = {"accuracy": number / n, "low": low, "high": high}
    made = {
        "seed": seed,
        "round": t,
        "arm": arm,
        "tasks": tasks,
        "in_domain": right[0] / n,
        "out_of_domain": sum(right[1:]) / n / 2 if right[1:] else None,
        "distance": 0.001 * t,
    }
    return made | ({} if kept is None else {"kept": kept, "distinct_2": 0.5})


ROWS = [
    row(0, "base", (8, 10, 4)),
    row(1, "vanilla", (12, 8, 4), kept=30),
    row(1, "imm", (11, 10, 5), kept=30),
    row(2, "vanilla", (14, 6, 2), kept=41),
    row(2, "imm", (13, 10, 4), kept=38),
]


def cells(text):
    lines = text.splitlines()
    return [line.replace("[", "").replace("]", "").replace(",", "").split() for line in lines]


def test_table_holds_the_figures():
    lines = cells(table(ROWS))
    assert lines[0] == list(COLUMNS)
    assert set(table(ROWS).splitlines()[1]) == {"-"}
    low, high = (f"{value:.2f}" for value in wilson_interval(0.4, 20))
    assert lines[2][:5] == ["0", "base", "0.400", low, high]
    assert lines[2][5] == "0.350" and lines[2][8:] == ["-", "-", "0.00000", "1"]
    assert [line[:3] for line in lines[3:]] == [
        ["1", "vanilla", "0.600"],
        ["1", "imm", "0.550"],
        ["2", "vanilla", "0.700"],
        ["2", "imm", "0.650"],
    ]
    assert lines[6][8:] == ["38", "0.500", "0.00200", "1"]


def test_columns_are_aligned():
    assert len({len(line) for line in table(ROWS).splitlines()}) == 1


def test_seeds_are_averaged():
    rows = [*ROWS, row(2, "imm", (15, 6, 4), seed=1, kept=40)]
    line = cells(table(rows))[-1]
    assert line[:3] == ["2", "imm", "0.700"]
    bounds = np.mean([wilson_interval(13 / 20, 20), wilson_interval(15 / 20, 20)], axis=0)
    assert line[3:5] == [f"{value:.2f}" for value in bounds]
    assert line[8] == "39" and line[-1] == "2"


def test_the_interval_of_a_mean_over_tasks():
    """Half-widths of independent tasks add in squares, divided by the number of tasks."""
    (low, high), one = interval([ROWS[0]], "out_of_domain"), ROWS[0]["tasks"]
    below = [one[name]["accuracy"] - one[name]["low"] for name in ("dates", "words")]
    above = [one[name]["high"] - one[name]["accuracy"] for name in ("dates", "words")]
    assert low == pytest.approx(0.35 - np.linalg.norm(below) / 2)
    assert high == pytest.approx(0.35 + np.linalg.norm(above) / 2)
    width = high - low
    assert width < max(task["high"] - task["low"] for task in one.values())


def test_without_other_tasks_there_is_a_dash():
    lines = cells(table([row(0, "base", (8,)), row(1, "imm", (9,), kept=3)]))
    assert lines[2][5] == "-" and lines[3][5] == "-"


def drawn(path):
    from matplotlib import image

    pixels = image.imread(path)
    assert pixels.ndim == 3 and min(pixels.shape[:2]) > 400
    return pixels


@pytest.mark.filterwarnings("error")
def test_plot_is_a_picture_of_the_rows(tmp_path):
    plot(ROWS, tmp_path / "sub/plot.png", "quickstart: tiny")
    first = drawn(tmp_path / "sub/plot.png")
    plot(ROWS[:3], tmp_path / "other.png", "quickstart: tiny")
    assert not np.array_equal(first, drawn(tmp_path / "other.png"))
    plot(ROWS, tmp_path / "same.png", "quickstart: tiny")
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "sub/plot.png").read_bytes()


@pytest.mark.parametrize("n", [3, 6, 7, 10, 12, 64])
def test_plot_of_none_and_all_right(n, tmp_path):
    """Where rounding puts an interval's end past the share itself, matplotlib refuses the bar."""
    rows = [row(0, "base", (0, 0, n), n=n), row(1, "imm", (n, n, 0), kept=1, n=n)]
    rows += [row(1, "imm", (0, 0, 0), seed=1, kept=1, n=n)]
    plot(rows, tmp_path / "plot.png")
    drawn(tmp_path / "plot.png")


def test_plot_without_arms_or_other_tasks(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot([row(0, "base", (8,))], tmp_path / "plot.png")
        plot([row(0, "base", (8,)), row(1, "imm", (9,), kept=3)], tmp_path / "more.png")
    drawn(tmp_path / "plot.png")
    drawn(tmp_path / "more.png")
