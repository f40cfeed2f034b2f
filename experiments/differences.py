"""Arms of runs beside the original model and beside vanilla, with paired 95 % intervals.

    python experiments/differences.py runs/main --output experiments/results/main/differences
    python experiments/differences.py runs/main runs/ablations --round 2 --output ...

Arms are compared on the same test questions; runs given together must have the same tasks and
questions, and an arm's seeds are compared with the same seeds of the other's. Intervals are
bootstrapped over questions, inside each task, and over seeds. Writes OUTPUT.json and OUTPUT.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imm_jax.analysis.image import save_png
from imm_jax.analysis.outcome import Run, is_vanilla, verdicts_of
from imm_jax.analysis.verdict import Verdicts, compare_paired
from imm_jax.errors import InputError
from imm_jax.files import atomic_write
from imm_jax.report_data import read_report

COLOURS = {"in_domain": "tab:blue", "out_of_domain": "tab:orange"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--round", type=int, help="after which (default: the last of all)")
    parser.add_argument("--output", type=Path, required=True, help="files without their ending")
    args = parser.parse_args(argv)
    try:
        runs = [read_report(folder) for folder in args.runs]
        t = args.round or min(run.last for run in runs)
        found = differences(runs, t)
        atomic_write(args.output.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
        save_png(lambda plt: draw(plt, found), args.output.with_suffix(".png"))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in found["arms"]:
        print(line(row))
    return 0


def differences(runs: Sequence[Run], t: int) -> dict[str, Any]:
    """Each arm's accuracies after round ``t`` and their differences.

    Raises:
      InputError: the runs have other tasks or questions, or arms of one name; or no arm has
        finished the round.
    """
    tasks = list(runs[0].rows[0]["tasks"])
    for number, run in enumerate(runs):
        if list(run.rows[0]["tasks"]) != tasks:
            raise InputError(f"{run.name}: its tasks are not those of {runs[0].name}: {tasks}")
        if run.record.get("tasks") != runs[0].record.get("tasks"):
            raise InputError(f"{run.name}: its questions are not those of {runs[0].name}")
        for arm in run.arms:
            if any(arm in other.arms for other in runs[:number]):
                raise InputError(f"{run.name}: another run has an arm {arm} too")
    arms = {arm: (run, verdicts_of(run, arm, t)) for run in runs for arm in run.arms}
    arms = {arm: pair for arm, pair in arms.items() if pair[1]}
    if not arms:
        raise InputError(f"{runs[0].name}: no arm has finished round {t}")
    vanilla = {}
    for arm, (run, verdicts) in arms.items():
        if is_vanilla(run.config["arms"][arm]):
            vanilla |= verdicts
    rows = []
    for arm, (run, verdicts) in arms.items():
        base = verdicts_of(run, "base", 0)
        same = vanilla and not is_vanilla(run.config["arms"][arm])
        rows.append(
            {
                "arm": arm,
                "run": run.name,
                "settings": run.config["arms"][arm],
                "seeds": sorted(verdicts),
                "from_original": compared(verdicts, base, tasks),
                "from_vanilla": compared(verdicts, vanilla, tasks) if same else None,
            }
        )
    return {"round": t, "tasks": tasks, "arms": rows}


def compared(first: Verdicts, second: Verdicts, tasks: Sequence[str]) -> dict[str, dict | None]:
    """In and out of domain, and each task alone."""
    kinds = {"in_domain": tasks[:1], "out_of_domain": tasks[1:], **{name: [name] for name in tasks}}
    return {
        kind: found and found._asdict()
        for kind, names in kinds.items()
        for found in [compare_paired(first, second, names)]
    }


def line(row: dict) -> str:
    """An arm in words."""
    parts = [f"{row['arm']:>15} ({len(row['seeds'])} seeds)"]
    for name, label in (("from_original", "original"), ("from_vanilla", "vanilla")):
        for kind, short in (("in_domain", "ID"), ("out_of_domain", "OOD")):
            found = row[name] and row[name][kind]
            if found:
                interval = f"[{found['low']:+.3f}, {found['high']:+.3f}]"
                parts.append(
                    f"{short} {found['first']:.3f}, {label} {found['difference']:+.3f} {interval}"
                )
    return "  ".join(parts)


def draw(plt: Any, found: dict) -> Any:
    """One line an arm: how far it is from the original in domain and out of domain."""
    arms = found["arms"]
    figure, axis = plt.subplots(figsize=(7, 1.3 + 0.42 * len(arms)), constrained_layout=True)
    for number, (kind, colour) in enumerate(COLOURS.items()):
        if any(row["from_original"][kind] is None for row in arms):
            continue  # a run without other tasks
        values = [row["from_original"][kind] for row in arms]
        sides = [[v["difference"] - v["low"] for v in values]]
        sides += [[v["high"] - v["difference"] for v in values]]
        places = [i + 0.2 * (number - 0.5) for i in range(len(arms))]
        axis.errorbar(
            [v["difference"] for v in values],
            places,
            xerr=sides,
            fmt="o",
            color=colour,
            capsize=3,
            label=kind.replace("_", " "),
        )
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(range(len(arms)), [f"{row['arm']} ({len(row['seeds'])})" for row in arms])
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_xlabel(
        f"accuracy after round {found['round']} less the original's (seeds in brackets)"
    )
    axis.legend(fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    return figure


if __name__ == "__main__":
    sys.exit(main())
