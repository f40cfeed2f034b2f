"""When to merge: schedules of the merge weight over the rounds, all runs in one compiled call.

    python experiments/laboratory/pretrain.py
    python experiments/laboratory/schedules.py

The paper merges with one weight after every round. Here a run merges always, never, once after the
last round, every other round, or with a weight that falls or rises. Writes
``experiments/results/laboratory/schedules.{json,png}``: accuracies after the last round, and their
differences from merging always, over seeds that both share.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import settings
from report import interval, rows_of, save

from imm_jax.models.load import load_model
from imm_jax.rounds.compiled import Member, sweep

ALWAYS = "always 0.5"
MEASURES = {
    "in_domain": "in domain",
    "out_of_domain": "out of domain",
    "distinct": "distinct answers, of those sampled",
}


def schedules(rounds: int) -> dict[str, np.ndarray]:
    """Names and the weight of each round."""
    last = lambda weight: np.r_[np.ones(rounds - 1), weight]
    return {
        "never": np.ones(rounds),
        ALWAYS: np.full(rounds, 0.5),
        "last 0.5": last(0.5),
        "last 0.25": last(0.25),
        "last 0.125": last(0.125),
        "every other 0.5": np.where(np.arange(rounds) % 2, 0.5, 1.0),
        "falling 1 to 0.25": np.linspace(1, 0.25, rounds),
        "rising 0.25 to 1": np.linspace(0.25, 1, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=settings.MODEL, help="the folder pretrain.py wrote")
    parser.add_argument(
        "--batch", type=int, default=settings.SIDE_BY_SIDE, help="runs side by side"
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=settings.ROUNDS)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of the fine-tunes")
    parser.add_argument("--output", type=Path, default=settings.RESULTS / "schedules")
    args = parser.parse_args()
    model, params = load_model(args.model)
    table = schedules(args.rounds)
    members = [
        Member(weight=weights[:, None], seed=seed)
        for weights in table.values()
        for seed in range(args.seeds)
    ]
    training = dataclasses.replace(settings.FINE_TUNING, learning_rate=args.learning_rate)
    program = settings.program(model=model, rounds=args.rounds, training=training)
    started = time.monotonic()
    print(f"{len(members)} runs of {args.rounds} rounds in one call ...", flush=True)
    base, figures = sweep(
        program,
        params,
        settings.train_questions(),
        settings.test_questions(),
        members,
        batch=args.batch,
    )
    found = rows_of(base, figures, (len(table), args.seeds))
    report = {
        **settings.record(),
        "seeds": list(range(args.seeds)),
        "seconds": time.monotonic() - started,
        "learning_rate": args.learning_rate,
        "tasks": settings.NAMES,
        "schedules": {name: weights.round(4).tolist() for name, weights in table.items()},
        **found,
    }
    report["last_round"] = compare(report)
    save(args.output, report, lambda figure: draw(figure, report), (15, 4.5))
    for name, row in report["last_round"].items():
        print(f"{name:18s} " + "  ".join(
            f"{measure} {cell['mean'][0]:.3f} {cell['from_always'][0]:+.3f} "
            f"[{cell['from_always'][1]:+.3f}, {cell['from_always'][2]:+.3f}]"
            for measure, cell in row.items()
        ))  # fmt: skip
    print(f"{report['seconds']:.0f} s")


def compare(report: dict) -> dict:
    """After the last round: mean over seeds, and the paired difference from merging always."""
    names = list(report["schedules"])
    last = {measure: np.array(report[measure])[..., -1] for measure in MEASURES}
    usual = names.index(ALWAYS)
    return {
        name: {
            measure: {
                "mean": interval(values[number]),
                "from_always": interval(values[number] - values[usual]),
            }
            for measure, values in last.items()
        }
        for number, name in enumerate(names)
    }


def draw(figure, report: dict) -> None:
    """Accuracies and diversity by round, a line for each schedule."""
    for axis, (measure, title) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items()):
        for name, values in zip(report["schedules"], report[measure]):
            mean = np.mean(values, axis=0)
            first = len(report["schedules"][name]) + 1 - len(mean)
            axis.plot(range(first, first + len(mean)), mean, label=name)
        axis.set(title=title, xlabel="round")
        axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


if __name__ == "__main__":
    main()
