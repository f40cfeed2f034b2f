"""The ``evaluate`` command: a model's scores on tasks, or two models on the same questions."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from imm_jax.errors import InputError
from imm_jax.inputs import check_output, open_model, prompt_style, sampling_config


class Scored(NamedTuple):
    """By task: its score, and whether each question, by id, is answered right."""

    scores: dict[str, Any]
    verdicts: dict[str, dict[str, bool]]


class Scoring(NamedTuple):
    """One way to score: what it refuses before weights are read, and the scoring itself."""

    check: Callable[[argparse.Namespace, Any, Any], None]
    score: Callable[..., Scored]


def evaluate(args: argparse.Namespace) -> None:
    """Runs the command."""
    from imm_jax.analysis.scores import comparison_table, score_table
    from imm_jax.evaluation import check_tasks
    from imm_jax.files import atomic_write
    from imm_jax.models.layout import param_shapes
    from imm_jax.models.load import load_model, read_config
    from imm_jax.models.sources import identify
    from imm_jax.sharding import make_mesh, placement
    from imm_jax.tasks import make_tasks

    scoring = SCORINGS[args.scoring]
    sampling_config(args)
    make_mesh(args.mesh)
    args.style = prompt_style(args.style, args.shots)
    check_output(args.output)
    tasks = make_tasks(args.tasks, train_size=0, test_size=args.questions)
    check_tasks(tasks)
    models = [(args.model, args.revision)] + ([(args.compare, None)] if args.compare else [])
    opened = [open_model(*model) for model in models]
    for _, tokenizer in opened:
        for task in tasks:
            scoring.check(args, task, tokenizer)

    results = []
    for (name, _), (source, tokenizer) in zip(models, opened):
        where = placement(args.mesh, param_shapes(read_config(source)))
        model, params = load_model(source.path, sharding=where)
        results.append(scoring.score(args, tasks, model, params, tokenizer))
        del params  # before the other model is loaded
        table = score_table(results[-1].scores)
        print(f"{name}\n{table}\n" if args.compare else table)
    comparisons = _comparisons(results) if args.compare else {}
    if comparisons:
        print(comparison_table(comparisons))
    if args.output:
        first, *second = (
            {"model": identify(source), **_report(result)}
            for (source, _), result in zip(opened, results)
        )
        report = _settings(args, tasks) | first
        if second:
            report["compared_with"] = second[0]
            report["comparison"] = {name: found._asdict() for name, found in comparisons.items()}
        atomic_write(args.output, json.dumps(report, indent=1) + "\n")


def _settings(args: argparse.Namespace, tasks: Sequence[Any]) -> dict[str, Any]:
    """What another would need to score the same again."""
    import jax

    from imm_jax import __version__
    from imm_jax.rounds.output import QUESTIONS, questions_hash
    from imm_jax.sharding import parse_mesh
    from imm_jax.tasks import prompt_version

    settings = {"scoring": args.scoring, "style": prompt_version(args.style), "shots": args.shots}
    if args.scoring == "generate":
        drawn = {"samples": args.samples, "seed": args.seed, "rule": args.rule}
        settings |= drawn | {"sampling": dataclasses.asdict(sampling_config(args))}
    return settings | {
        "sources": {task.name: task.source for task in tasks},
        QUESTIONS: {task.name: questions_hash(task) for task in tasks},
        "imm_jax": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "mesh": parse_mesh(args.mesh) if args.mesh else None,
    }


def _check_generate(args: argparse.Namespace, task: Any, tokenizer: Any) -> None:
    from imm_jax.evaluation import make_prompts

    if args.samples > 1 and args.temperature == 0:
        raise InputError(
            f"--samples: {args.samples}, which would all be the same at temperature 0; expected 1, "
            "or a --temperature above 0"
        )
    make_prompts(task, task.test[:1], args.style, args.shots, tokenizer)


def _generate(args, tasks: Sequence[Any], model: Any, params: Any, tokenizer: Any) -> Scored:
    from imm_jax.analysis.scores import score_answers, verdicts
    from imm_jax.evaluation import answer_tasks

    answers = answer_tasks(
        model,
        params,
        tokenizer,
        tasks,
        style=args.style,
        shots=args.shots,
        sampling=sampling_config(args),
        samples=args.samples,
        seed=args.seed,
        rule=args.rule,
    )
    types = {task.name: task.answer_type for task in tasks}
    return Scored(
        {name: score_answers(found, types[name]) for name, found in answers.items()},
        {name: verdicts(found, types[name]) for name, found in answers.items()},
    )


def _check_choices(args: argparse.Namespace, task: Any, tokenizer: Any) -> None:
    from imm_jax.choices import check_choices, choice_prompts

    if args.samples > 1:
        raise InputError(f"--samples: {args.samples}, expected 1, for log-likelihood draws none")
    check_choices(task, task.test)
    choice_prompts(task, task.test[:1], args.style, args.shots, tokenizer)


def _choices(args, tasks: Sequence[Any], model: Any, params: Any, tokenizer: Any) -> Scored:
    from imm_jax.analysis.scores import score_choices
    from imm_jax.choices import ask_choices

    options = {"batch_size": args.batch_size} if args.batch_size else {}
    answers = {
        task.name: ask_choices(
            model,
            params,
            tokenizer,
            task,
            task.test,
            style=args.style,
            shots=args.shots,
            label=f"evaluate {task.name}",
            **options,
        )
        for task in tasks
    }
    return Scored(
        {name: score_choices(found) for name, found in answers.items()},
        {name: {answer.id: answer.correct for answer in found} for name, found in answers.items()},
    )


def _report(result: Scored) -> dict[str, Any]:
    from imm_jax.analysis.scores import mean_score

    mean = mean_score(list(result.scores.values()))
    tasks = {name: _plain(score) for name, score in result.scores.items()}
    return {"tasks": tasks, "mean": mean._asdict(), "verdicts": result.verdicts}


def _plain(score: Any) -> dict[str, Any]:
    """A score as JSON, without what the scoring does not have."""
    rows = {field.name: getattr(score, field.name) for field in dataclasses.fields(score)}
    rows |= {name: value._asdict() for name, value in rows.items() if hasattr(value, "_asdict")}
    return {name: value for name, value in rows.items() if value not in (None, {})}


def _comparisons(results: Sequence[Scored]) -> Mapping[str, Any]:
    """Task by task and, where there are several, over all of them."""
    from imm_jax.analysis.scores import compare, compare_tasks

    first, second = (result.verdicts for result in results)
    found = {name: compare(first[name], second[name]) for name in first}
    if len(found) > 1:
        found["all"] = compare_tasks(first, second)
    return found


SCORINGS = {
    "generate": Scoring(_check_generate, _generate),
    "loglikelihood": Scoring(_check_choices, _choices),
}
