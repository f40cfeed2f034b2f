"""The ``analyze`` command: what happened to a model in a run, or between two models."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from imm_jax.errors import InputError, nearest
from imm_jax.inputs import check_output, prompt_style

RESULTS, PLOTS = "analysis.json", "analysis"
CHANGES = {"layers_relative": "relative change", "layers": "change, L2 norm"}


class Subject(NamedTuple):
    """What is looked at: settings and tasks, the run if it is one, and where results go."""

    config: Any
    tasks: tuple
    run: Any
    last: Any  # the place of the run's tuned model
    output: Path


def analyze(args: argparse.Namespace) -> None:
    """Runs the command."""
    from imm_jax.analysis.path import path_weights
    from imm_jax.analysis.record import Record
    from imm_jax.console import Stop

    weights = path_weights(args.path, args.beyond) if args.path else []
    subject = _of_run(args) if len(args.models) == 1 else _of_models(args)
    check_output(str(subject.output / RESULTS))
    practised = _practised(args, subject)
    record = Record(subject.output / RESULTS)
    with Stop() as should_stop:
        _analyze(args, subject, record, weights, practised, should_stop)
    print(f"figures: {record.path}, {subject.output / PLOTS}/*.png")


def _analyze(
    args, subject: Subject, record, weights: list, practised: tuple, should_stop: Callable
) -> None:
    from imm_jax import analyses, probes
    from imm_jax.analysis import plots, text
    from imm_jax.gap_probe import put_verification

    plot_at = subject.output / PLOTS
    title = " and ".join(Path(name).name for name in args.models)
    if subject.run:
        rows = analyses.put_diversity(record, subject.run, subject.tasks[0].answer_type)
        plots.plot_diversity(rows, plot_at / "diversity.png", title)
        print(text.diversity_table(rows, record.sections["collapse"]["rows"]), end="\n\n")
        if gaps := record.sections["gap"]["rows"]:
            print(text.gap_table(gaps), end="\n\n")

    bench, base, tuned, models = _load(args, subject, should_stop)
    if models:
        analyses.put_changes(record, base, models)
    batches, measures = None, _measures(args, subject)
    if measures:
        solutions = _solutions(args, subject, record, bench, base)
        batches = analyses.put_importance(record, measures, bench, base, solutions)
    if models:
        changes, found = record.sections["change"]["rows"], analyses.importances(record, base)
        correlations = analyses.put_correlations(record, found)
        newest = [r for r in changes if r.get("round") == changes[-1].get("round")]
        named = {text.name_of(row): row["layers_relative"] for row in newest}
        drawn = {label: text.by_model(newest, key) for key, label in CHANGES.items()}
        plots.plot_layers(found, drawn, plot_at / "importance.png", title)
        print(text.layer_table(found, named), end="\n\n")
        if correlations:
            print(text.correlation_table(correlations), end="\n\n")
    if args.ablation_questions:
        found = probes.put_skipped(record, bench, base, args.ablation_questions)
        print(f"accuracy without a layer\n{text.skipped_table(found)}\n")
    if args.gap:
        kept = plot_at / "gap"
        found = put_verification(record, subject.run, bench, base, kept, args.questions)
        print(f"each round's model on its own samples\n{text.verification_table(found)}\n")
    if not weights and not practised:
        return
    pair = probes.Pair(base, tuned(), str(subject.last or args.models[1]))
    name = pair.name
    if weights:
        points = probes.put_path(record, bench, pair, weights, batches)
        plots.plot_path(points, plot_at / "path.png", f"from the base to {name}")
        print(f"path to {name}\n{text.path_table(points)}\n")
    if practised:
        found = probes.put_memorisation(record, bench, pair, *practised)
        print(f"memorisation, {name}\n{text.memorisation_table(found)}\n")


def _practised(args: argparse.Namespace, subject: Subject) -> tuple:
    """The questions trained on and their variations, where memorisation is asked for."""
    from imm_jax.analysis.memorisation import matched
    from imm_jax.tasks.sources import make_task

    if not args.memorisation and not args.variations:
        return ()
    task = subject.tasks[0]
    trained = task.train
    if subject.run:
        ids = subject.run.trained_on(subject.last)
        trained = [question for question in trained if question.id in ids]
    trained = trained[: args.questions]
    if not args.variations:
        return trained, []
    other = make_task(args.variations, seed=subject.config.data.seed)
    if other.answer_type != task.answer_type:
        raise InputError(
            f"--variations: {args.variations} has answers of type {other.answer_type!r}, expected "
            f"{task.answer_type!r} as {task.name}"
        )
    return trained, matched(trained, other.test)


def _of_run(args: argparse.Namespace) -> Subject:
    from imm_jax.gap_probe import check_questions
    from imm_jax.rounds.run import load_tasks
    from imm_jax.run_folder import read_run

    for name in ("tasks", "style", "shots", "max_new_tokens"):
        if getattr(args, name) not in (None, []):
            flag = name.replace("_", "-")
            raise InputError(f"--{flag}: given with a run, expected two models beside it")
    run = read_run(args.models[0])
    place = _last_place(args, run)
    config = dataclasses.replace(run.config, mesh=args.mesh, teacher=None)
    tasks = load_tasks(config)
    if args.gap:
        check_questions(run, tasks[0])
    return Subject(
        config, _shortened(tasks, args.questions), run, place, Path(args.output or args.models[0])
    )


def _last_place(args: argparse.Namespace, run):
    """The last finished round, from the first seed, of the arm whose model is the tuned one."""
    arms = run.config.arms
    if args.arm is not None and args.arm not in arms:
        raise InputError(
            f"--arm: the run has no arm {args.arm!r}{nearest(args.arm, arms)}, expected one of "
            f"{', '.join(arms)}"
        )
    if not run.places():
        raise InputError(f"{run.path}: no round of this run is finished, expected one at least")
    arm = args.arm or next((name for name in arms if not run.merges(name)), list(arms)[-1])
    places = [p for p in run.places() if (p.seed, p.arm) == (run.places()[0].seed, arm)]
    if not places:
        raise InputError(f"{run.path}: no round of the arm {arm} is finished")
    return places[-1]


def _of_models(args: argparse.Namespace) -> Subject:
    from imm_jax.config import DataConfig, EvaluationConfig, RunConfig
    from imm_jax.rounds.run import check_settings, load_tasks
    from imm_jax.sampling.config import SamplingConfig

    if len(args.models) != 2:
        raise InputError(
            f"analyze: {len(args.models)} models, expected a run's folder or two models"
        )
    if args.output is None:
        raise InputError("analyze: no --output, expected a folder for the figures of two models")
    for name in ("arm", "gap"):
        if getattr(args, name):
            raise InputError(f"--{name}: given with two models, expected a run's folder")
    for name in ("importance", "ablation_questions", "path", "memorisation", "variations"):
        if getattr(args, name) and not args.tasks:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag}: needs questions, expected --tasks with two models")
    shots = 8 if args.shots is None else args.shots
    style = prompt_style(args.style, shots)
    data = DataConfig(
        in_domain=args.tasks[0] if args.tasks else "",
        out_of_domain=tuple(args.tasks[1:]),
        test_questions=args.questions,
        sample_style=style,
        evaluate_style=style,
        shots=shots,
    )
    length = {"max_new_tokens": args.max_new_tokens or 256}
    config = RunConfig(
        model=args.models[0],
        data=data,
        sampling=SamplingConfig(**length),
        evaluation=EvaluationConfig(**length),
        mesh=args.mesh,
    )
    check_settings(config)
    tasks = load_tasks(config) if args.tasks else ()
    return Subject(config, tasks, None, None, Path(args.output))


def _shortened(tasks, most: int | None) -> tuple:
    return tuple(dataclasses.replace(task, test=task.test[:most]) for task in tasks)


def _load(args, subject: Subject, should_stop: Callable):
    """The bench, the base's parameters, how to read the tuned ones, and all tuned models."""
    from imm_jax import analyses, checkpoints
    from imm_jax.rounds.bench import check_prompts
    from imm_jax.rounds.run import open_bench
    from imm_jax.rounds.stages import Later

    config = subject.config
    settings = config, subject.tasks, should_stop
    bench, read, _ = open_bench(config.model, config.revision, *settings)
    if subject.tasks:
        check_prompts(bench)
    if subject.run is None:
        from imm_jax.analysis.change import check_same

        tuned = open_bench(args.models[1], None, *settings)[1]
        base = read()
        check_same(base, tuned())
        return bench, base, tuned, [({"model": args.models[1]}, tuned)]
    kept = subject.run.models(subject.last)
    folder = kept.get("tuned", kept.get("model"))
    if folder is None and (args.path or args.memorisation or args.variations):
        raise InputError(f"{subject.run.path}: no weights kept of {subject.last}, expected a model")
    base = read()
    tuned = Later(lambda: checkpoints.restore(folder, base))
    return bench, base, tuned, analyses.saved_models(subject.run, base)


def _measures(args: argparse.Namespace, subject: Subject) -> list[str]:
    if args.importance is None:
        return ["taylor"] if subject.run else []
    return list(dict.fromkeys(args.importance))


def _solutions(args, subject: Subject, record, bench, base) -> list:
    from imm_jax.probes import right_solutions, sampled_solutions

    if subject.run is None:
        return sampled_solutions(record, bench, base, args.solutions)
    first = subject.run.places()[0]
    return right_solutions(subject.run.selected(first), args.solutions)
