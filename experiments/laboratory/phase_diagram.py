"""Merge weight by rounds: in-domain, out-of-domain and diversity, all runs in one compiled call.

    python experiments/laboratory/pretrain.py
    python experiments/laboratory/phase_diagram.py

16 merge weights from 0 to 1 x 4 seeds. The model practises one task for some rounds; the seven
others are out of domain. Writes ``experiments/results/laboratory/phase_diagram.{json,png}``.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=settings.MODEL, help="the folder pretrain.py wrote")
    parser.add_argument("--weights", type=int, default=16, help="merge weights from 0 to 1")
    parser.add_argument(
        "--batch", type=int, default=settings.SIDE_BY_SIDE, help="runs side by side"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=settings.ROUNDS)
    parser.add_argument("--questions", type=int, default=settings.QUESTIONS, help="to practise")
    rate = settings.FINE_TUNING.learning_rate
    parser.add_argument("--learning-rate", type=float, default=rate, help="of the fine-tunes")
    parser.add_argument("--drop-rate", type=float, default=0.0)
    parser.add_argument("--output", type=Path, default=settings.RESULTS / "phase_diagram")
    args = parser.parse_args()
    model, params = load_model(args.model)
    weights = np.linspace(0, 1, args.weights).round(4).tolist()
    members = [
        Member(weight=weight, drop_rate=args.drop_rate, seed=seed)
        for weight in weights
        for seed in range(args.seeds)
    ]
    training = dataclasses.replace(settings.FINE_TUNING, learning_rate=args.learning_rate)
    program = settings.program(model=model, rounds=args.rounds, training=training)
    started = time.monotonic()
    print(f"{len(members)} runs of {args.rounds} rounds in one call ...", flush=True)
    base, figures = sweep(
        program,
        params,
        settings.train_questions(args.questions),
        settings.test_questions(),
        members,
        batch=args.batch,
    )
    found = rows_of(base, figures, (len(weights), args.seeds))
    seconds = time.monotonic() - started
    report = {
        **settings.record(),
        "seeds": list(range(args.seeds)),
        "seconds": seconds,
        "drop_rate": args.drop_rate,
        "learning_rate": args.learning_rate,
        "questions": {
            "practised": args.questions,
            "in_domain": settings.TESTS,
            "each_other_task": settings.OTHER_TESTS,
        },
        "tasks": settings.NAMES,
        "weights": weights,
        **found,
    }
    save(args.output, report, lambda figure: draw(figure, report))
    last = {name: np.array(report[name])[..., -1] for name in ("in_domain", "out_of_domain")}
    for weight, *both in zip(weights, *last.values()):
        print(f"weight {weight:.3f}  " + "  ".join(
            f"{name} {mean:.3f} [{low:.3f}, {high:.3f}]"
            for name, (mean, low, high) in zip(last, map(interval, both))
        ))  # fmt: skip
    print(f"{seconds:.0f} s")


def draw(figure, report: dict) -> None:
    """Three maps, and the last round's curves with intervals over seeds."""
    axes = figure.subplots(1, 4)
    weights, rounds = report["weights"], len(report["in_domain"][0][0]) - 1
    panels = (
        ("in_domain", "in-domain accuracy", 0),
        ("out_of_domain", "out-of-domain accuracy", 0),
        ("distinct", "distinct answers, of those sampled", 1),
    )
    for axis, (name, title, first) in zip(axes, panels):
        values = np.mean(report[name], axis=1)
        extent = (first - 0.5, first + values.shape[1] - 0.5, -0.5, len(weights) - 0.5)
        image = axis.imshow(values, origin="lower", aspect="auto", extent=extent, cmap="viridis")
        axis.set_yticks(range(0, len(weights), 3), [f"{w:.2f}" for w in weights[::3]])
        axis.set_xticks(range(first, first + values.shape[1]))
        axis.set(title=title, xlabel="round", ylabel="merge weight")
        figure.colorbar(image, ax=axis)
    for name, title in (("in_domain", "in-domain"), ("out_of_domain", "out-of-domain")):
        mean, low, high = np.array([interval(row) for row in np.array(report[name])[..., -1]]).T
        axes[3].plot(weights, mean, label=title)
        axes[3].fill_between(weights, low, high, alpha=0.2)
    axes[3].set(title=f"after {rounds} rounds", xlabel="merge weight", ylabel="accuracy")
    axes[3].grid(alpha=0.3)
    axes[3].legend()


if __name__ == "__main__":
    main()
