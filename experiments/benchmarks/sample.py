"""The sampler beside transformers' ``generate`` and llama.cpp, and the physical limit, in one run.

    python experiments/benchmarks/sample.py --device cpu --peer-python python \\
        --llama-python /path/with/llama-cpp-python/bin/python --output results.json
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
weights. What loading, importing and compiling cost stands apart.

**Limit**: a decode step of B rows reads the weights and the keys and values of its rows, and does 2
operations for each weight and row. Bytes over the bandwidth of a large read, or operations over the
speed of a large matrix product, whichever takes longer, both measured in this run.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import bench
from sample_models import SHAPES, SMOLLM, limit_of, make_model

HERE = Path(__file__).parent
SAMPLES, TEMPERATURE = 4, 0.7
TRIAL = 16  # new tokens of the trial that finds transformers' best setting


def workload(prompts: int, tokens: list[int]) -> tuple[list[str], list[int]]:
    """Prompts and how many tokens their answers have."""
    import numpy as np

    from imm_jax.tasks import make_task, render

    examples = make_task("builtin:two_step", seed=1, train_size=prompts, test_size=1).train
    texts = [(lambda p: p.prefix + p.text)(render("alpaca", example)) for example in examples]
    limits = np.random.default_rng(0).integers(tokens[0], tokens[1] + 1, prompts).tolist()
    return texts, limits


def sample(ours, prompts: list[str], limits: list[int], samples: int, config) -> dict:
    """Seconds and tokens of our engine."""
    from imm_jax import generate

    model, weights, tokenizer = ours
    said: list[str] = []
    watch = logging.Handler()
    watch.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("imm_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(watch)
    start = time.perf_counter()
    rows = generate(
        model, weights, tokenizer, prompts,
        config=config, samples=samples, limits=limits, eos=(), seed=1,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    logger.removeHandler(watch)
    counts = [[len(one.tokens) for one in row] for row in rows]
    assert counts == [[limit] * samples for limit in limits]
    return {"seconds": seconds, "tokens": sum(map(sum, counts)), "log": said[-1] if said else ""}


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
    first = {name: call()["seconds"] for name, call in sides.items() if name.startswith("imm_jax")}
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
        if name in first:
            figures[name]["compile_seconds"] = first[name] - median
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


def compare(name: str, args: argparse.Namespace, limits: dict, folder: Path) -> dict:
    """All figures of one model."""
    import jax.numpy as jnp

    from imm_jax import SamplingConfig

    dtype = "bfloat16" if args.device == "gpu" else "float32"
    start = time.perf_counter()
    ours = make_model(name, folder, jnp.dtype(dtype))
    result: dict = {"load_seconds": time.perf_counter() - start}
    model, params, tokenizer = ours
    prompts, lengths = workload(args.prompts, args.tokens)
    prompt_tokens = statistics.mean(map(len, tokenizer(prompts)["input_ids"]))
    place = "cuda" if args.device == "gpu" else "cpu"
    peer = bench.Peer(
        [args.peer_python, str(HERE / "sample_peers.py"), "transformers"], folder / "peer.log"
    )
    base = {"folder": str(folder), "samples": SAMPLES, "temperature": TEMPERATURE, "device": place,
            "prompts": prompts, "limits": lengths}  # fmt: skip
    best, result["trials"] = best_setting(
        peer, base, peer_settings(args.device, args.types, args.sizes)
    )
    result["transformers_best"] = best
    order = sorted(range(len(prompts)), key=lambda i: lengths[i])
    ordered = {"prompts": [prompts[i] for i in order], "limits": [lengths[i] for i in order]}
    sides = {}
    for kind in args.weights:
        config = SamplingConfig(
            temperature=TEMPERATURE,
            max_new_tokens=args.tokens[1],
            batch_size=args.batch_size,
            weights=kind,
        )
        label = f"imm_jax {dtype if kind == 'model' else kind}"
        sides[label] = lambda c=config: sample(ours, prompts, lengths, SAMPLES, c)
    sides["transformers"] = lambda: peer.ask(**base, **best)
    sides["transformers, lengths known"] = lambda: peer.ask(**(base | ordered), **best)
    result["batch"] = batch = alternate(args.runs, sides)
    mean = prompt_tokens + statistics.mean(lengths) / 2
    for label, row in batch.items():
        if label.startswith("imm_jax"):
            row["limit"] = limit_of(
                model, params, limits, args.batch_size, mean, label.removeprefix("imm_jax ")
            )

    greedy = {"samples": 1, "temperature": 0.0, "prompts": prompts[:1], "limits": [args.stream]}
    config = SamplingConfig(temperature=0.0, max_new_tokens=args.stream, batch_size=1)
    single = [one | {"batch_size": 1} for one in peer_settings(args.device, args.types, [1])]
    best, _ = best_setting(peer, base | greedy, single)
    sides = {
        f"imm_jax {dtype}": lambda: sample(ours, prompts[:1], [args.stream], 1, config),
        "transformers": lambda: peer.ask(**(base | greedy), **best),
    }
    llama = None
    if args.llama_python and name not in SHAPES:
        from imm_jax.models.sources import resolve

        llama = bench.Peer([args.llama_python, str(HERE / "sample_peers.py"), "llama"],
                           folder / "llama.log")  # fmt: skip
        request = greedy | {"file": str(resolve(name).path), "threads": os.cpu_count()}
        sides["llama.cpp, Q4_1"] = lambda: llama.ask(**request)
    result["stream"] = stream = alternate(args.runs, sides)
    stream[f"imm_jax {dtype}"]["limit"] = limit_of(
        model, params, limits, 1, prompt_tokens + args.stream / 2, dtype
    )
    peer.close()
    if llama:
        llama.close()
    return result


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
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--models", nargs="+", default=[SMOLLM], help=f"sources or {list(SHAPES)}")
    parser.add_argument("--peer-python", default=sys.executable, help="has torch and transformers")
    parser.add_argument("--llama-python", help="has llama-cpp-python; without it, no llama.cpp")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", nargs=2, type=int, default=[64, 200], help="of an answer")
    parser.add_argument("--stream", type=int, default=128, help="tokens of the single stream")
    parser.add_argument("--batch-size", type=int, default=128, help="ours")
    parser.add_argument("--weights", nargs="+", default=["model", "bfloat16"], help="ours, of both")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"], help="transformers'")
    parser.add_argument("--sizes", nargs="+", type=int, default=[16, 64], help="batches it tries")
    parser.add_argument("--output", help="write the figures here, as JSON")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[args.device]
    report: dict = {
        "machine": bench.machine(args.device),
        "import_seconds": {
            "imm_jax": bench.import_seconds(
                sys.executable, "import imm_jax, imm_jax.sampling.engine"
            ),
            "transformers": bench.import_seconds(
                args.peer_python, "import torch, transformers.generation"
            ),
        },
        "limits": bench.device_limits(args.device),
        "models": {},
    }
    print(report["machine"], report["import_seconds"], report["limits"], sep="\n", flush=True)
    if args.device == "cpu" and not args.llama_python:
        print("llama.cpp: not measured, no --llama-python")
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            report["models"][name] = compare(name, args, report["limits"], Path(folder))
        print_table(name, report["models"][name])
    bench.write_report(args.output, report)


if __name__ == "__main__":
    main()
