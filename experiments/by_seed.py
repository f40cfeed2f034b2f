"""Arms of several runs side by side, seed by seed, from their ``metrics.jsonl`` alone.

    python experiments/by_seed.py experiments/results/main/metrics.jsonl \\
        experiments/results/schedules/metrics*.jsonl --output experiments/results/schedules/by_seed

The runs must have asked the same questions: a figure that stands in two of them must be the same in
both. For each two arms, the mean difference over the seeds that both have, after the last round
that all arms have with all their seeds, with its t interval of 95 %, which says how far seeds
differ; questions are the same for all, so it does not say how far other questions would. Writes
OUTPUT.json and OUTPUT.png.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from imm_jax.analysis.summary import arms_of, plot, table
from imm_jax.errors import InputError
from imm_jax.files import atomic_write, read_jsonl
from imm_jax.statistics import seed_interval

KINDS = ("in_domain", "out_of_domain")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("metrics", nargs="+", type=Path, help="metrics.jsonl of runs")
    parser.add_argument("--arms", nargs="+", help="those to compare (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="files without their ending")
    args = parser.parse_args(argv)
    try:
        rows = join({str(path): read_jsonl(path) for path in args.metrics}, args.arms)
        found = differences(rows)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    atomic_write(args.output.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    plot(rows, args.output.with_suffix(".png"), ", ".join(arms_of(rows)))
    print(table(rows))
    for row in found["pairs"]:
        mean, low, high = row["difference"]
        seeds = len(row["seeds"])
        print(f"{row['first']} less {row['second']}, {row['kind']}: {mean:+.3f} "
              f"[{low:+.3f}, {high:+.3f}], {seeds} seeds")  # fmt: skip
    return 0


def join(runs: dict[str, list[dict]], arms: Sequence[str] | None = None) -> list[dict]:
    """The rows of several runs, by the runs' names, as those of one: each figure once.

    Raises:
      InputError: a figure stands in two runs and differs; an arm is in none of them, or there is
        none; a row is not of a run's metrics.
    """
    joined: dict[tuple, dict] = {}
    for name, rows in runs.items():
        for number, row in enumerate(rows, 1):
            if missing := {"seed", "round", "arm", "tasks"} - row.keys():
                raise InputError(f"{name}:{number}: no {min(missing)}, expected metrics of a run")
            place = (row["seed"], row["round"], row["arm"])
            same = joined.setdefault(place, row)
            if same["tasks"] != row["tasks"]:
                seed, t, arm = place
                raise InputError(f"{name}: round {t} of {arm}, seed {seed}, has other scores there "
                                 "than in a file before: other questions or settings")  # fmt: skip
    rows = [joined[place] for place in sorted(joined, key=lambda place: place[:2])]
    if not arms_of(rows):
        raise InputError(f"{', '.join(runs)}: no round of any arm, expected metrics of a run")
    for arm in arms or ():
        if arm not in arms_of(rows):
            raise InputError(f"--arms {arm}: not in {', '.join(runs)}: {', '.join(arms_of(rows))}")
    return [row for row in rows if not arms or row["arm"] in ("base", *arms)]


def differences(rows: Sequence[dict]) -> dict:
    """Accuracies after the last round that all have, and the arms' differences over seeds."""
    lasts = {(r["arm"], r["seed"]): r["round"] for r in rows if r["round"]}  # in their order
    last = min(lasts.values())
    scores = {
        (r["arm"], r["seed"]): {k: r.get(k) for k in KINDS} for r in rows if r["round"] == last
    }
    arms = dict.fromkeys(arm for arm, _ in scores)
    pairs = []
    for (second, first), kind in itertools.product(itertools.combinations(arms, 2), KINDS):
        seeds = sorted(s for arm, s in scores if arm == first and (second, s) in scores)
        gaps = [(scores[first, s][kind], scores[second, s][kind]) for s in seeds]
        if len(gaps) > 1 and None not in itertools.chain(*gaps):
            gap = seed_interval([one - other for one, other in gaps])
            pairs.append({"first": first, "second": second, "kind": kind, "seeds": seeds,
                          "difference": gap})  # fmt: skip
    accuracies = [{"arm": arm, "seed": seed, **score} for (arm, seed), score in scores.items()]
    return {"round": last, "accuracies": accuracies, "pairs": pairs}


if __name__ == "__main__":
    sys.exit(main())
