"""Merge weights over depth that score best on validation questions, and what they score on others.

    python experiments/search_layer_weights.py BASE TUNED \
        hub:owner/name,train=validation,test=test --output runs/search

Validation questions are the task's training split: name one that TUNED has not practised on. The
weights run on straight lines through a few points over depth, with one more for what is outside the
layers. The same command goes on with a search that was cut off (--output/search.jsonl). The
result, --output/result.json, has the found weights beside weights 0 (BASE), 0.5 and 1 (TUNED).
"""

import argparse
import dataclasses
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import jax

from imm_jax import merging
from imm_jax.console import Stop, logging_to_stderr
from imm_jax.errors import InputError, Interrupted
from imm_jax.evaluation import check_tasks, evaluate, make_prompts
from imm_jax.files import atomic_write
from imm_jax.models.load import load_model, read_config
from imm_jax.models.sources import resolve
from imm_jax.models.tokenizer import check_tokenizer, load_tokenizer
from imm_jax.sampling.config import SamplingConfig
from imm_jax.tasks import Task, get_style, make_task


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code; 2 is bad input, said in one line."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        with logging_to_stderr():
            run(parse(argv), shlex.join(["python", "experiments/search_layer_weights.py", *argv]))
        return 0
    except InputError as error:
        return refuse(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return refuse(f"{where}{error.strerror or error}")
    except Interrupted as error:
        print(f"{error}; the same command goes on from here", file=sys.stderr)
        return 128 + (Stop.signal or signal.SIGINT)


def refuse(message: str) -> int:
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = "a folder, a GGUF file, a hub id, or pypi:DIST==VERSION/FILE"
    parser.add_argument("base", help=source)
    parser.add_argument("tuned", help="the model fine-tuned from it")
    parser.add_argument("task", help="builtin:NAME, hub:NAME, or jsonl:train=FILE,test=FILE")
    parser.add_argument("--output", required=True, help="folder for the record and the result")
    parser.add_argument("--points", type=int, default=3, help="weights over depth (default: 3)")
    parser.add_argument("--budget", type=int, default=64, help="merges to score (default: 64)")
    parser.add_argument("--population", type=int, help="merges in a generation")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--questions", type=int, default=64, help="to validate (default: 64)")
    parser.add_argument("--test-questions", type=int, default=200, help="held out (default: 200)")
    parser.add_argument("--data-seed", type=int, default=0, help="of the questions")
    parser.add_argument("--style", default="few_shot", help="of prompts (default: few_shot)")
    parser.add_argument("--shots", type=int, default=4, help="worked examples (default: 4)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args(argv)
    if args.points < 1:
        raise InputError(f"--points: {args.points}, expected at least 1")
    return args


def run(args: argparse.Namespace, command: str) -> None:
    sampling = SamplingConfig(
        temperature=0.0, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size
    )
    validation, test, source = split(args)
    get_style(args.style)
    resolved = {"base": resolve(args.base), "tuned": resolve(args.tuned)}
    tokenizer = load_tokenizer(resolved["base"])
    check_tokenizer(tokenizer, read_config(resolved["base"]))
    make_prompts(validation, validation.test[:1], args.style, args.shots, tokenizer)
    model, base = load_model(resolved["base"].path)
    _, tuned = load_model(resolved["tuned"].path)

    def score(params: Any, *tasks: Task) -> dict[str, Any]:
        return evaluate(
            model, params, tokenizer, tasks, style=args.style, shots=args.shots, sampling=sampling
        )

    about = {
        "models": {name: found.record for name, found in resolved.items()},
        "task": source,
        **{name: getattr(args, name) for name in ABOUT},
    }
    weight = merging.Interval(0.0, 1.0)
    output = Path(args.output)
    with Stop() as should_stop:
        found = merging.search(
            merging.merge_objective(
                lambda params: score(params, validation)[validation.name].accuracy, base, tuned
            ),
            merging.LayerWeights(merging.gradient([weight] * args.points), default=weight),
            budget=args.budget,
            population=args.population,
            seed=args.seed,
            path=output / "search.jsonl",
            about=about,
            should_stop=should_stop,
        )
    weights = {"0": 0.0, "0.5": 0.5, "1": 1.0, "found": found.weights}
    scores = {}
    for name, weight in weights.items():
        merged = merging.merge_params(base, tuned, weight=weight)
        results = score(merged, validation, test)
        scores[name] = {split: dataclasses.asdict(one) for split, one in results.items()}
    points = [float(point) for point in found.weights.layers.points]
    report = {
        "command": command,
        "config": vars(args),
        "about": about,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "weights": {"over_depth": points, "outside_layers": float(found.weights.default)},
        "merges_scored": len(found.scores),
        "scores": scores,
    }
    atomic_write(output / "result.json", json.dumps(report, indent=1) + "\n")
    print(table(report))


# What a score depends on beside the models and the questions.
ABOUT = ("questions", "data_seed", "style", "shots", "max_new_tokens")


def split(args: argparse.Namespace) -> tuple[Task, Task, str]:
    """The task's training questions to validate with, its test questions, and their source."""
    task = make_task(
        args.task, seed=args.data_seed, train_size=args.questions, test_size=args.test_questions
    )
    if not task.train:
        raise InputError(f"{args.task}: no training questions, expected some to validate with")
    validation = dataclasses.replace(task, name="validation", train=(), test=task.train)
    test = dataclasses.replace(task, name="test", train=())
    check_tasks([validation, test])
    return validation, test, task.source


def table(report: dict) -> str:
    lines = [f"{'weight':<8}{'validation':>22}{'test':>22}"]
    for name, row in report["scores"].items():
        cells = [
            "{accuracy:.3f} [{low:.3f}, {high:.3f}]".format(**row[s])
            for s in ("validation", "test")
        ]
        lines.append(f"{name:<8}{cells[0]:>22}{cells[1]:>22}")
    points = ", ".join(f"{point:.3f}" for point in report["weights"]["over_depth"])
    outside = report["weights"]["outside_layers"]
    lines.append(f"found: {points} over depth, {outside:.3f} outside the layers")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
