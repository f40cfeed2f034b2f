"""A whole round of IMM, beside the pipeline one would build from transformers, TRL and mergekit.

    python experiments/benchmarks/round.py --peer-python .../bin/python --mergekit .../mergekit-yaml

Both sides do the same: evaluate the original model on three sets of test questions, sample the
training questions, keep what is right, fine-tune, merge with the original, evaluate again. Ours is
one ``imm-jax run``; the peer is ``round_peer.py`` in an environment of its own, with the settings
found best for it. Same model, prompts, stop strings, answer check, hyperparameters, and number of
samples and questions; the samples themselves are each side's own draw, so that the fine-tunes are
of about the same size: kept samples and accuracies are printed.

Seconds are those of whole processes, alternating. Stages are timed inside: ``start`` is everything
else (process, imports, loading, the last save). Ours is run once more, before all others, with an
empty compilation cache; the others find what it left. What it compiles is within the stages and is
named apart. CPU seconds stand beside, because others at work on a machine lengthen all but these.
On a GPU each side's own allocator says what it held at most.

**Limit**: the floating-point operations that a stage of ours asks for, as the run's ``costs.json``
counts them (``imm_jax.rounds.flops``: each prompt and each token once), over the speed of a large
matrix product with float32 sums, measured before in the type that the stage multiplies in. Stages
that compute next to nothing have none. Our share of it is the limit over our seconds, in which
stages also load, compile, write and grade.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench
import yaml
from machine import description, measured
from models import SMOLLM, make_folder
from round_settings import peer_job, product_types, run_config

STAGES = ("original", "sample", "select", "fit", "merge", "evaluate")
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
held = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")  # None on a CPU
open(sys.argv[3], "w").write(json.dumps({"compiling": sum(compiling.values()), "held": held}))
sys.exit(code)
"""


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Runs a command; its seconds, and the CPU seconds of it and its children."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ... failed:\n{done.stderr[-3000:]}")
    used = after.children_user + after.children_system
    return seconds, used - before.children_user - before.children_system


def run_ours(device: str, folder: Path, cache: Path) -> dict:
    """One ``imm-jax run`` from its start to its end."""
    out, stats = folder / "ours", folder / "compiling.json"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", OURS, str(folder / "run.yaml"), str(out), str(stats)]
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    seconds, used = timed(command, bench.jax_environment(device) | cached)
    inside = json.loads(stats.read_text())
    base, row = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    stages = {"original": base["stages"]["evaluate"], **row["stages"]}
    return {
        "seconds": whole(seconds, {name: cost["seconds"] for name, cost in stages.items()}),
        "cpu_seconds": used,
        "compiling": inside["compiling"],
        "device_bytes": inside["held"],
        "flops": asked_flops(out),
        "tokens": {name: stages[name]["tokens"] for name in ("original", "sample", "evaluate")},
        "kept": row["kept"],
        "accuracy": {"original": accuracies(base), "merged": accuracies(row)},
    }


def asked_flops(out: Path) -> dict[str, int]:
    """FLOPs by stage, of those that a run counted."""
    costs = {"original": json.loads((out / "base" / "costs.json").read_text())["evaluate"]}
    for path in out.glob("seed-*/round-1/*/costs.json"):
        costs |= json.loads(path.read_text())
    return {name: cost["flops"] for name, cost in costs.items() if cost["flops"]}


def run_peer(args: argparse.Namespace, folder: Path) -> dict:
    """One run of the peer from its start to its end."""
    shutil.rmtree(folder / "peer", ignore_errors=True)
    (folder / "peer").mkdir()
    script, result = Path(__file__).with_name("round_peer.py"), folder / "peer.json"
    command = [args.peer_python, str(script), str(folder / "job.json"), str(result)]
    root = str(Path(__file__).resolve().parents[2])
    seconds, used = timed(command, bench.OFFLINE | {"PYTHONPATH": root})
    found = json.loads(result.read_text())
    return found | {"seconds": whole(seconds, found["seconds"]), "cpu_seconds": used}


def whole(total: float, stages: dict[str, float]) -> dict[str, float]:
    """Stages, what is left of the process, and all of it."""
    stages = {name: stages[name] for name in STAGES}
    round_alone = sum(seconds for name, seconds in stages.items() if name != "original")
    return {"start": total - sum(stages.values()), **stages, "round": round_alone, "total": total}


def accuracies(row: dict) -> dict[str, float]:
    return {name: score["accuracy"] for name, score in row["tasks"].items()}


def limit_seconds(flops: dict[str, int], speeds: dict[str, float]) -> dict[str, float]:
    """The least seconds of each stage that computes, of the round and of all.

    Args:
      flops: by stage.
      speeds: FLOP/s that each stage can reach.
    """
    found = {name: count / speeds[name] for name, count in flops.items()}
    total = sum(found.values())
    return found | {"round": total - found.get("original", 0.0), "total": total}


def summary(runs: dict[str, list[dict]], speeds: dict[str, float]) -> dict:
    """Medians of seconds, how many times longer the peer takes, the limit and our share of it.

    ``cold`` is our first run, which compiles everything, ``warm`` the others.
    """
    keys = [*runs["imm-jax"][0]["seconds"], "cpu_seconds"]
    flat = lambda run: run["seconds"] | {"cpu_seconds": run["cpu_seconds"]}
    first, *later = runs["imm-jax"]
    sides = {"cold": [first], "warm": later, "peer": runs["peer"]}
    median = {
        side: {key: statistics.median(flat(run)[key] for run in found) for key in keys}
        for side, found in sides.items()
    }
    for side in ("cold", "warm"):
        median[f"ratio_{side}"] = {
            key: median["peer"][key] / max(median[side][key], 1e-3) for key in keys
        }
    median["limit"] = limit = limit_seconds(first["flops"], speeds)
    for side in ("cold", "warm"):
        median[f"share_{side}"] = {key: limit[key] / median[side][key] for key in limit}
    return median


def cell(side: str, figure: float | None) -> str:
    """A figure of the table; a dash where there is none."""
    if figure is None:
        return "-"
    return f"{figure:.1%}" if side.startswith("share") else f"{figure:.1f}"


def print_summary(median: dict, runs: dict[str, list[dict]]) -> None:
    print(" " * 12 + "".join(f"{name:>12}" for name in median))
    for key in median["peer"]:
        cells = (cell(side, figures.get(key)) for side, figures in median.items())
        print(f"{key:<12}" + "".join(f"{text:>12}" for text in cells))
    compiling = [run["compiling"] for run in runs["imm-jax"]]
    print(f"of ours tracing and compiling: {', '.join(f'{s:.1f}' for s in compiling)}")
    for side, found in runs.items():
        for run in found:
            scores = {
                when: [round(x, 3) for x in run["accuracy"][when].values()]
                for when in ("original", "merged")
            }
            held = f", {run['device_bytes'] / 1e9:.2f} GB" if run["device_bytes"] else ""
            print(f"{side:<8} kept {run['kept']}, tokens {run['tokens']}, accuracy {scores}{held}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", required=True, help="has torch, transformers, trl")
    parser.add_argument("--mergekit", required=True, help="mergekit's mergekit-yaml")
    parser.add_argument("--device", choices=bench.DEVICES, default="cpu", help="of both sides")
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
    parser.add_argument("--compute-dtype", choices=dtypes,
                        help="training, ours; bfloat16 on a GPU, else float32")  # fmt: skip
    parser.add_argument("--peer-batch-size", type=int, default=64, help="rows side by side")
    parser.add_argument("--peer-dtype", choices=dtypes, default="bfloat16", help="generation")
    parser.add_argument("--peer-train-dtype", choices=dtypes, default="bfloat16",
                        help="bfloat16: autocast")  # fmt: skip
    parser.add_argument("--folder", default="runs/benchmark-round", help="about 4 GB")
    bench.add_output(parser)
    args = parser.parse_args()
    if args.compute_dtype is None:
        args.compute_dtype = "bfloat16" if args.device == "gpu" else "float32"
    return args


def take_turns(args: argparse.Namespace, folder: Path) -> dict[str, list[dict]]:
    """Runs of both sides in turn, after one of ours that finds no compiled programs."""
    cache = folder / "xla"
    shutil.rmtree(cache, ignore_errors=True)
    ours = lambda: run_ours(args.device, folder, cache)
    sides = {"imm-jax": ours, "peer": lambda: run_peer(args, folder)}
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for side in ["imm-jax", *args.runs * list(sides)]:
        runs[side].append(sides[side]())
        print(side, json.dumps(runs[side][-1]), flush=True)
    return runs


def main() -> None:
    args = arguments()
    path = bench.result_path(args, f"round-{args.device}")
    folder = Path(args.folder).absolute()
    model = folder / "model"
    folder.mkdir(parents=True, exist_ok=True)
    if not model.exists():  # both sides begin with the same float32 folder
        make_folder(SMOLLM, model, "float32")
    config = run_config(args, model)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "job.json").write_text(json.dumps(peer_job(args, config, folder), indent=1))
    types = product_types(args)
    peaks = {dtype: measured(args.device, "product_flops", dtype) for dtype in {*types.values()}}
    runs = take_turns(args, folder)
    median = summary(runs, {stage: peaks[dtype] for stage, dtype in types.items()})
    print_summary(median, runs)
    machine = description(args.device)
    report = {"machine": machine, "product_flops": peaks, "median": median, "runs": runs}
    bench.write_report(path, report)


if __name__ == "__main__":
    main()
