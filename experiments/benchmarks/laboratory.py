"""Many runs in one program beside the same runs one after another through the host's loop.

    python experiments/laboratory/pretrain.py
    python experiments/benchmarks/laboratory.py --parts

64 runs (16 merge weights x 4 seeds) of the laboratory's questions. The compiled side does all of
them, every time, the first round's samples and fine-tune once for each seed. Of the host's runs
some are measured, alternating with it, and their median is multiplied by 64: a run costs the same
whatever its weight, up to the samples it keeps. Both sides are warm; what compiling takes, once a
process, stands apart. The host's loop is ``rounds.round.improve`` with its own tools, all rows of a
step side by side. ``parts`` says where the time goes: for the host a run's seconds by step
(``files``: checkpoints, and all else), for the compiled side the seconds of a step for all runs,
each step compiled alone.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from bench import add_output, result_path, write_report

from imm_jax.config import ArmConfig, DataConfig, EvaluationConfig, RunConfig
from imm_jax.laboratory.problems import to_task
from imm_jax.laboratory.vocabulary import make_tokenizer
from imm_jax.models.load import load_model
from imm_jax.rounds.bench import Bench, check_prompts
from imm_jax.rounds.compiled import Member, accuracies, sweep
from imm_jax.rounds.compiled_steps import answer, fit, select
from imm_jax.rounds.round import improve
from imm_jax.rounds.stages import Later, Stages
from imm_jax.rounds.tools import make_tools

sys.path.insert(0, str(Path(__file__).parents[1] / "laboratory"))
import settings

WEIGHTS, SEEDS = 16, 4


def host_bench(model) -> Bench:
    """The same tasks, model and settings for the host's loop."""
    rows = 256  # all rows side by side, and one look at them at the end: its quickest setting
    more = {"batch_size": rows, "chunk": settings.SAMPLING.max_new_tokens}
    config = RunConfig(
        model=str(settings.MODEL),
        data=DataConfig(in_domain=settings.PRACTISED, sample_style="plain", evaluate_style="plain"),
        sampling=dataclasses.replace(settings.SAMPLING, **more),
        samples=settings.program().samples,
        evaluation=EvaluationConfig(max_new_tokens=settings.EVALUATION.max_new_tokens, **more),
        training=settings.FINE_TUNING,
    )
    practised, count = settings.PRACTISED, settings.TESTS
    tasks = [
        to_task(
            practised,
            train=settings.drawn(practised, "train", settings.QUESTIONS),
            test=settings.drawn(practised, "test", count),
        )
    ]
    tasks += [
        to_task(kind, test=settings.drawn(kind, "test", settings.OTHER_TESTS))
        for kind in settings.OTHERS
    ]
    bench = Bench(config, model, make_tokenizer(), tuple(tasks), lambda: False)
    return dataclasses.replace(bench, prompts=check_prompts(bench))


def host_run(bench: Bench, params, member: Member, rounds: int) -> tuple[float, dict, list]:
    """One run: seconds, seconds by step, and in-domain accuracy by round."""
    parts: dict[str, float] = defaultdict(float)
    arm = ArmConfig(weight=member.weight, drop_rate=member.drop_rate)
    with tempfile.TemporaryDirectory() as folder:
        started, current, scores = time.perf_counter(), Later(lambda: params), []
        for t in range(1, rounds + 1):
            tools = make_tools(bench, member.seed, f"round {t}")
            timed = {
                step: _timed(getattr(tools, step), step, parts)
                for step in ("sample", "select", "fit", "evaluate")
            }
            place = Stages(Path(folder) / f"round-{t}")
            current, figures = improve(
                t, arm, Later(lambda: params), current, dataclasses.replace(tools, **timed),
                jax.random.key(member.seed), place, place,
            )  # fmt: skip
            scores.append(figures["in_domain"])
        seconds = time.perf_counter() - started
    parts["files"] = seconds - sum(parts.values())
    return seconds, dict(parts), scores


def _timed(call, name: str, parts: dict):
    def wrapped(*args, **options):
        started = time.perf_counter()
        result = jax.block_until_ready(call(*args, **options))
        parts[name] += time.perf_counter() - started
        return result

    return wrapped


def seconds_of(call) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def compiled_parts(
    program, params, runs: int, seeds: int, rounds: int, count: int
) -> dict[str, float]:
    """Seconds that each step takes for all runs and rounds, ``count`` side by side, alone.

    The first round samples and fits once for each seed.
    """
    train, tests = settings.train_questions(), settings.test_questions()
    many = jax.tree.map(lambda x: jnp.tile(x[None], (count, *[1] * x.ndim)), params)
    key = jax.random.key(0)
    draw = jax.jit(jax.vmap(lambda p: answer(
        program.model, program.language, p, train, key, program.sampling, program.samples
    )))  # fmt: skip
    drawn = draw(many)
    order = lambda epoch, kept: jnp.arange(len(drawn.length[0]))
    tune = jax.jit(jax.vmap(lambda p, d: fit(
        program.model, program.training, p, train, d, select(d, program.deduplicate), order
    )))  # fmt: skip
    score = jax.jit(jax.vmap(lambda p: accuracies(program, p, tests)))
    steps = {"sample": lambda: draw(many), "fit": lambda: tune(many, drawn),
             "evaluate": lambda: score(many)}  # fmt: skip
    for call in steps.values():
        jax.block_until_ready(call())
    proposals = seeds + (rounds - 1) * runs
    times = {"sample": proposals, "fit": proposals, "evaluate": rounds * runs}
    return {name: times[name] / count * seconds_of(call) for name, call in steps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=settings.MODEL, help="the folder pretrain.py wrote")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--weights", type=int, default=WEIGHTS, help="runs: so many weights ...")
    parser.add_argument(
        "--batch", type=int, default=settings.SIDE_BY_SIDE, help="runs side by side"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="... times so many seeds")
    parser.add_argument("--host-runs", type=int, default=4)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--parts", action="store_true", help="where the compiled side's time goes")
    add_output(parser)
    args = parser.parse_args()
    path = result_path(args, f"laboratory-{jax.default_backend()}")
    model, params = load_model(args.model)
    program = settings.program(model=model, rounds=args.rounds)
    members = [
        Member(weight=float(weight), seed=seed)
        for weight in np.linspace(0, 1, args.weights)
        for seed in range(args.seeds)
    ]
    bench, train, tests = host_bench(model), settings.train_questions(), settings.test_questions()
    compiled = lambda: sweep(program, params, train, tests, members, batch=args.batch)
    first = {"compiled": seconds_of(compiled), "host": host_run(bench, params, members[0], 1)[0]}
    sweeps, runs, parts = [], [], []
    picked = np.linspace(0, len(members) - 1, args.host_runs).astype(int)
    for number, index in enumerate(picked):
        if number % max(1, args.host_runs // args.sweeps) == 0 and len(sweeps) < args.sweeps:
            sweeps.append(seconds_of(compiled))
        seconds, by_step, _ = host_run(bench, params, members[index], args.rounds)
        runs.append(seconds)
        parts.append(by_step)
        print(f"host {seconds:.2f} s a run, compiled {sweeps[-1]:.1f} s for {len(members)}",
              flush=True)  # fmt: skip
    host, all_runs = statistics.median(runs), statistics.median(sweeps)
    inside = None
    if args.parts:
        inside = compiled_parts(program, params, len(members), args.seeds, args.rounds, args.batch)
    report = {
        **settings.record(),
        "runs": len(members),
        "rounds": args.rounds,
        "host_seconds_a_run": runs,
        "compiled_seconds_for_all": sweeps,
        "first_call_seconds": first,
        "times_faster": len(members) * host / all_runs,
        "parts": {
            "host": {name: statistics.median(p[name] for p in parts) for name in parts[0]},
            "compiled": inside,
        },
    }
    print(f"{report['times_faster']:.1f} x faster: host {len(members)} x {host:.2f} s (scaled from "
          f"{len(runs)} runs), compiled {all_runs:.1f} s")  # fmt: skip
    print(json.dumps(report["parts"], indent=1))
    write_report(path, report)


if __name__ == "__main__":
    main()
