"""The sampler beside transformers' ``generate`` and llama.cpp, and the physical limit, in one run.

    python experiments/benchmarks/sample.py --device cpu --peer-python python \\
        --llama-python /path/with/llama-cpp-python/bin/python
    python experiments/benchmarks/sample.py --device gpu --models qwen2.5-0.5b qwen2.5-1.5b

**Batch**: 64 arithmetic word problems, 4 samples each at temperature 0.7 over the whole vocabulary,
64 to 200 new tokens. The lengths are drawn once, one for each prompt, and both sides end a row
there and not before, whatever the model says: so both decode the same number of tokens. They stand
for answers whose length nobody knows beforehand, so neither side may plan with them; transformers
decodes a batch until its longest row ends, as it does with end tokens. As a second figure it is
told them: prompts come sorted by length, which no user could do, and its batches have next to no
idle rows. Tokens that count are those inside the limits.

**Stream**: one prompt, one sample, 128 tokens, greedy.

Sides alternate, figures are medians. transformers takes the best setting of a trial before: type,
batch size, kind of cache, on a GPU also a compiled forward pass. Its process and ours hold the same
weights. What loading, importing and compiling cost stands apart. On a GPU each side's own allocator
says what it held at most: torch's in each call, JAX's since the process began, so that models and
batch sizes are to be named in growing order.

**Limit**: a decode step of B rows reads the weights and the keys and values of its rows, and does 2
operations for each weight and row. Bytes over the bandwidth of a large read, or operations over the
speed of a large matrix product, whichever takes longer, both measured in this run.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import bench
from machine import description, measured
from models import SHAPES, SMOLLM, make_folder
from sample_ours import Ours, load, sample

HERE = Path(__file__).parent
TYPES = {"cpu": "float32", "gpu": "bfloat16"}  # what our model computes in
# By device, where no option says otherwise. Two kinds of weights are one where all is bfloat16.
DEFAULTS = {
    "cpu": {"batch_size": [128], "sizes": [16, 64], "weights": ["model", "bfloat16"]},
    "gpu": {"batch_size": [128, 256], "sizes": [16, 64, 256], "weights": ["model"]},
}
SAMPLES, TEMPERATURE = 4, 0.7
IMPORTS = {
    "imm_jax": "import imm_jax, imm_jax.sampling.engine",
    "transformers": "import torch, transformers.generation",
}
TRIAL = 16  # new tokens of the trial that finds transformers' best setting


def workload(prompts: int, tokens: list[int]) -> tuple[list[str], list[int]]:
    """Prompts and how many tokens their answers have."""
    import numpy as np

    from imm_jax.tasks import make_task, render

    examples = make_task("builtin:two_step", seed=1, train_size=prompts, test_size=1).train
    texts = [(lambda p: p.prefix + p.text)(render("alpaca", example)) for example in examples]
    limits = np.random.default_rng(0).integers(tokens[0], tokens[1] + 1, prompts).tolist()
    return texts, limits


def best_setting(peer: bench.Peer, base: dict, settings: list[dict]) -> tuple[dict, list[dict]]:
    """transformers' fastest setting in a short trial, and what each gave."""
    found = []
    for setting in settings:
        few = max(1, setting["batch_size"] // SAMPLES)
        short = base | setting | {
            "prompts": base["prompts"][:few], "limits": [TRIAL] * len(base["prompts"][:few]),
        }  # fmt: skip
        if setting.get("compiled"):
            peer.ask(**short)
        result = peer.ask(**short)
        found.append(setting | {"tokens_per_second": result["tokens"] / result["seconds"]})
        print(f"  trial {found[-1]}", flush=True)
    best = max(found, key=lambda one: one["tokens_per_second"])
    return {key: value for key, value in best.items() if key != "tokens_per_second"}, found


def alternate(runs: int, sides: dict) -> dict[str, dict]:
    """Runs the sides in turn. Ours compiles in a run before, which stands apart."""
    first = {name: call() for name, call in sides.items() if name.startswith("imm_jax")}
    results: dict[str, list[dict]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, call in sides.items():
            results[name].append(call())
    figures = {}
    for name, found in results.items():
        seconds = [one["seconds"] for one in found]
        median = statistics.median(seconds)
        figures[name] = {
            "tokens_per_second": found[0]["tokens"] / median,
            "tokens": found[0]["tokens"],
            "seconds": seconds,
            "log": found[0].get("log", ""),
        }
        held = first.get(name, found[0]).get("device_bytes")  # later peaks are of all our sides
        if held:
            figures[name]["peak_gb"] = held / 1e9
        if name in first:
            figures[name]["compile_seconds"] = first[name]["seconds"] - median
    for row in figures.values():
        row["ours_over_it"] = {
            name: figures[name]["tokens_per_second"] / row["tokens_per_second"] for name in first
        }
    return figures


def peer_settings(device: str, types: list[str], sizes: list[int]) -> list[dict]:
    """What transformers is tried with."""
    caches = [{"cache": "dynamic"}, {"cache": "static"}]
    if device == "gpu":
        caches.append({"cache": "static", "compiled": True})
    return [
        {"dtype": dtype, "batch_size": size} | cache
        for dtype in types
        for size in sizes
        for cache in caches
    ]


def why_no_llama(python: str | None) -> str:
    """Why llama.cpp is not measured; empty where it is."""
    if not python:
        return "llama.cpp: not measured, no --llama-python"
    try:
        command = [python, "-c", "import llama_cpp"]
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return f"llama.cpp: not measured, --llama-python: {error.strerror}"
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return f"llama.cpp: not measured, --llama-python: {words[-1]}"
    return ""


def compare(name: str, args: argparse.Namespace, limits: dict, folder: Path) -> dict:
    """All figures of one model."""
    make_folder(name, folder, TYPES[args.device])
    start = time.perf_counter()
    ours = load(folder, TYPES[args.device])
    result = {"load_seconds": time.perf_counter() - start}
    peer = bench.Peer(
        [args.peer_python, str(HERE / "sample_peers.py"), "transformers"], folder / "peer.log"
    )
    prompts, lengths = workload(args.prompts, args.tokens)
    place = "cuda" if args.device == "gpu" else "cpu"
    base = {"folder": str(folder), "samples": SAMPLES, "temperature": TEMPERATURE, "device": place,
            "prompts": prompts, "limits": lengths}  # fmt: skip
    # The single stream goes first: the peak that JAX reports never falls.
    result["stream"] = stream_figures(name, ours, peer, base, args, limits)
    result |= batch_figures(ours, peer, base, args, limits)
    peer.close()
    return result


def batch_figures(
    ours: Ours, peer: bench.Peer, base: dict, args: argparse.Namespace, limits: dict
) -> dict:
    """Many prompts: ours at each batch size and kind of weights, transformers at its best."""
    from imm_jax import SamplingConfig

    prompts, lengths = base["prompts"], base["limits"]
    mean = ours.mean_tokens(prompts) + statistics.mean(lengths) / 2
    best, trials = best_setting(peer, base, peer_settings(args.device, args.types, args.sizes))
    sides, reach = {}, {}
    for kind in args.weights:
        for rows in args.batch_size:
            config = SamplingConfig(
                temperature=TEMPERATURE,
                max_new_tokens=args.tokens[1],
                batch_size=rows,
                weights=kind,
            )
            label = f"imm_jax {TYPES[args.device] if kind == 'model' else kind}, {rows} rows"
            sides[label] = partial(sample, ours, prompts, lengths, SAMPLES, config)
            reach[label] = ours.limit(limits, rows, mean, kind)
    sides["transformers"] = lambda: peer.ask(**base, **best)
    order = sorted(range(len(prompts)), key=lambda i: lengths[i])
    ordered = {"prompts": [prompts[i] for i in order], "limits": [lengths[i] for i in order]}
    sides["transformers, lengths known"] = lambda: peer.ask(**(base | ordered), **best)
    figures = alternate(args.runs, sides)
    for label, limit in reach.items():
        figures[label]["limit"] = limit
    return {"trials": trials, "transformers_best": best, "batch": figures}


def stream_figures(
    name: str, ours: Ours, peer: bench.Peer, base: dict, args: argparse.Namespace, limits: dict
) -> dict:
    """One prompt, greedily; llama.cpp too where it is there and reads the model's file."""
    from imm_jax import SamplingConfig

    prompts, tokens = base["prompts"][:1], [args.stream]
    greedy = {"samples": 1, "temperature": 0.0, "prompts": prompts, "limits": tokens}
    config = SamplingConfig(temperature=0.0, max_new_tokens=args.stream, batch_size=1)
    best, _ = best_setting(peer, base | greedy, peer_settings(args.device, args.types, [1]))
    label = f"imm_jax {TYPES[args.device]}"
    sides = {
        label: lambda: sample(ours, prompts, tokens, 1, config),
        "transformers": lambda: peer.ask(**(base | greedy), **best),
    }
    llama = None
    if args.llama_python and name not in SHAPES:
        from imm_jax.models.sources import resolve

        llama = bench.Peer([args.llama_python, str(HERE / "sample_peers.py"), "llama"],
                           Path(base["folder"]) / "llama.log")  # fmt: skip
        request = greedy | {"file": str(resolve(name).path), "threads": os.cpu_count()}
        sides["llama.cpp, Q4_1"] = lambda: llama.ask(**request)
    figures = alternate(args.runs, sides)
    mean = ours.mean_tokens(base["prompts"]) + args.stream / 2
    figures[label]["limit"] = ours.limit(limits, 1, mean, "model")
    if llama:
        llama.close()
    return figures


def print_table(name: str, result: dict) -> None:
    """One line a side: tokens a second, ratio to each of ours, share of the limit."""
    print(f"\n{name}: load {result['load_seconds']:.1f} s")
    print(f"transformers at its best: {result['transformers_best']}")
    for kind in ("batch", "stream"):
        rows = result[kind]
        for label, row in rows.items():
            line = f"{kind:<7} {label:<28} {row['tokens_per_second']:9.1f} tokens/s"
            if "limit" in row:
                limit = row["limit"]["tokens_per_second"]
                line += f"   limit {limit:9.1f}, {row['tokens_per_second'] / limit:.2f} of it"
                line += f"   first run {row['compile_seconds']:+.1f} s"
                line += f"   {row['log']}"
            else:
                times = ", ".join(f"{ratio:.2f}" for ratio in row["ours_over_it"].values())
                line += f"   ours / it: {times}"
            if "peak_gb" in row:
                line += f"   {row['peak_gb']:.2f} GB"
            print(line)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=bench.DEVICES, default="cpu")
    parser.add_argument("--models", nargs="+", default=[SMOLLM], help=f"sources or {list(SHAPES)}")
    parser.add_argument("--peer-python", default=sys.executable, help="has torch and transformers")
    parser.add_argument("--llama-python", help="has llama-cpp-python; without it, no llama.cpp")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", nargs=2, type=int, default=[64, 200], help="of an answer")
    parser.add_argument("--stream", type=int, default=128, help="tokens of the single stream")
    parser.add_argument("--batch-size", nargs="+", type=int, help="ours; see DEFAULTS")
    parser.add_argument("--weights", nargs="+", help="ours: model, bfloat16, or both")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"], help="transformers'")
    parser.add_argument("--sizes", nargs="+", type=int, help="batches transformers tries")
    bench.add_output(parser)
    args = parser.parse_args()
    for option, value in DEFAULTS[args.device].items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    return args


def check_models(names: list[str]) -> None:
    """Ends in one line over a model that is not there, before anything is measured."""
    from imm_jax.errors import InputError
    from imm_jax.models.sources import resolve

    for name in names:
        try:
            if name not in SHAPES:
                resolve(name)
        except InputError as error:
            bench.refuse(f"{error}, and none of {', '.join(SHAPES)}")


def main() -> None:
    args = arguments()
    path = bench.result_path(args, f"sample-{args.device}")
    bench.use_device(args.device)
    check_models(args.models)
    note = why_no_llama(args.llama_python)
    if note:
        args.llama_python = None
    report: dict = {
        "machine": description(args.device),
        "import_seconds": {
            "imm_jax": bench.import_seconds(sys.executable, IMPORTS["imm_jax"]),
            "transformers": bench.import_seconds(args.peer_python, IMPORTS["transformers"]),
        },
        "limits": measured(args.device, "device_limits"),
        "notes": [note] if note else [],
        "models": {},
    }
    print(report["machine"], report["import_seconds"], report["limits"], sep="\n", flush=True)
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            report["models"][name] = compare(name, args, report["limits"], Path(folder))
        print_table(name, report["models"][name])
        print(*report["notes"], sep="\n")
    bench.write_report(path, report)


if __name__ == "__main__":
    main()
