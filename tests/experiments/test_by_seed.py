"""Arms of several runs, seed by seed, on rows written by hand."""

import json

import pytest
from scipy import stats

from experiments.by_seed import differences, join, main
from imm_jax.errors import InputError


def row(seed: int, t: int, arm: str, *right: int) -> dict:
    """Two tasks of ten questions each."""
    tasks = {
        name: {"accuracy": n / 10, "low": n / 10 - 0.1, "high": n / 10 + 0.1, "questions": 10}
        for name, n in zip(("practised", "other"), right)
    }
    scores = {"in_domain": right[0] / 10, "out_of_domain": right[1] / 10}
    return {"seed": seed, "round": t, "arm": arm, "tasks": tasks, **scores}


FIRST = [row(0, 0, "base", 5, 5)]
FIRST += [row(seed, t, "imm", 5 + t, 4 + seed) for seed in (0, 1, 2) for t in (1, 2)]
SECOND = [row(0, 2, "imm", 7, 4), *(row(seed, 2, "last", 6 - seed, 4) for seed in (0, 1, 3))]


def test_differences_are_those_of_the_seeds_that_both_arms_have():
    found = differences(join({"one": FIRST, "two": SECOND}))
    assert found["round"] == 2 and len(found["accuracies"]) == 6
    inside, outside = found["pairs"]
    assert (inside["first"], inside["second"], inside["seeds"]) == ("last", "imm", [0, 1])
    assert (inside["kind"], outside["kind"]) == ("in_domain", "out_of_domain")
    for pair, gaps in ((inside, [-0.1, -0.2]), (outside, [0.0, -0.1])):
        interval = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
        mean = sum(gaps) / 2
        assert pair["difference"] == pytest.approx((mean, interval.low, interval.high))


def test_a_longer_run_is_compared_where_the_shorter_ends():
    longer = join({"one": [*FIRST, row(0, 3, "imm", 9, 9)], "two": SECOND})
    assert differences(longer) == differences(join({"one": FIRST, "two": SECOND}))
    one_seed = [row(0, 3, "imm", 9, 9), row(0, 3, "last", 9, 9)]  # both arms, but not both seeds
    assert differences(join({"one": FIRST, "two": SECOND, "three": one_seed}))["round"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "one: no round of any arm"),
        ([row(0, 0, "base", 5, 5)], "one: no round of any arm"),
        ([row(0, 0, "base", 5, 5), {"seed": 0, "round": 1, "tasks": {}}], "one:2: no arm"),
    ],
)
def test_what_are_no_metrics_is_refused(rows, message):
    with pytest.raises(InputError, match=message):
        join({"one": rows})


def test_a_figure_of_two_runs_must_be_the_same_and_counts_once():
    assert len(join({"one": FIRST, "two": SECOND})) == len(FIRST) + len(SECOND) - 1
    other = [row(0, 2, "imm", 6, 4)]
    with pytest.raises(InputError, match="two: round 2 of imm, seed 0, has other scores there"):
        join({"one": FIRST, "two": other})


def test_the_command_writes_what_it_says(tmp_path, capsys):
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path, rows in zip(paths, (FIRST, SECOND)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [*map(str, paths), "--output", str(tmp_path / "out")]
    assert main(argv) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith("last less imm, in_domain: -0.150 [")
    assert json.loads((tmp_path / "out.json").read_text())["round"] == 2
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert main([*argv, "--arms", "imm", "lost"]) == 2
    assert "error: --arms lost: not in" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), "--output", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new.json").exists()
