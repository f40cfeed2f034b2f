"""Training tokens a second and memory, beside a plain torch step and TRL's SFTTrainer.

    python experiments/benchmarks/train.py MODEL --peer-python /path/to/python
    python experiments/benchmarks/train.py qwen2.5-0.5b --peer-python ... --device gpu --batch 64

``MODEL`` is a folder in Hugging Face layout (``imm-jax convert MODEL DIR``) or a shape of
``models.py``, whose random weights are made for this run; the peers' Python has torch, transformers
and trl, and never runs in this process. All train on the same sequences: a prompt of 64 tokens and
a response of 40 to 200, the same batch again and again, loss on response tokens, AdamW at 2e-5 with
weight decay 0 and clipping at 1.

First torch's settings run one update each after updates that warm up, and the fastest is taken. On
a CPU a setting whose first update takes three times the fastest runs no second, and where a type's
first setting takes half as long again as the fastest so far, its others are left out. Then ours,
torch at its best and TRL at that setting take turns, each in a process of its own that the others
wait for: updates that warm up, and timed ones. On a CPU the processes live through all turns. On a
GPU each turn is a new process, so that what one side holds there is free before the next begins.

Tokens are those of the sequences, padding left out; seconds are medians; memory is the peak of a
process (``VmHWM``), imports and all, and on a GPU what each side's own allocator held at most. Ours
is the step of ``imm_jax.fit``, compiled apart.

The limit counts ``imm_jax.training.flops.train_flops`` of these sequences, where only response
tokens meet the head (what each side must do at least), over the peak of a large matrix product
in the same run, in our compute dtype with float32 sums.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bench
import numpy as np
from machine import description
from models import SHAPES, make_folder

PROMPT, SHORTEST, LONGEST, RATE = 64, 40, 200, 2e-5
OURS = {
    "cpu": {"micro_batch_size": 2},  # packed: one row
    "gpu": {"micro_batch_size": 16, "packing": False},  # cuDNN's attention
}
# Updates of a turn. After a pause memory and caches are cold; on a GPU the first ones compile.
WARM_UP = {"cpu": 1, "gpu": 3}
TIMED = {"cpu": 1, "gpu": 5}
HOPELESS = 3.0  # times the fastest that a setting's first update may take on a CPU
HERE = Path(__file__).parent


def make_sequences(count: int, vocabulary: int, seed: int = 0) -> list[dict]:
    """Random tokens with the lengths of short worked answers."""
    rng = np.random.default_rng(seed)
    lengths = PROMPT + rng.integers(SHORTEST, LONGEST + 1, count)
    return [
        {"tokens": rng.integers(0, vocabulary, n).tolist(), "prompt_length": PROMPT}
        for n in lengths
    ]


class Worker(bench.Peer):
    """A process that makes one update for each request; ``ready`` is what it says before."""

    def __init__(self, command: list[str], log: Path):
        super().__init__(command, log)
        self.ready = self.answer()


def settings(args: argparse.Namespace) -> list[dict]:
    """What is tried of torch: types, checkpointing, rows of a micro batch; compiled on a GPU."""
    gpu = args.device == "gpu"
    tried = itertools.product(
        args.dtypes, (False, True), (args.batch, args.batch // 4), (False, True)[: 1 + gpu]
    )
    return [
        {"device": "cuda" if gpu else "cpu", "dtype": dtype, "checkpointing": checkpointing,
         "rows": rows, "compile": compiled, "rate": RATE}
        for dtype, checkpointing, rows, compiled in tried
        if gpu or not (checkpointing and rows < args.batch)
    ]  # fmt: skip


def peer(args: argparse.Namespace, name: str, options: dict) -> Worker:
    script = str(HERE / "train_peers.py")
    command = [args.peer_python, script, name, args.model, str(args.data), json.dumps(options)]
    return Worker(command, args.folder / f"{name}.log")


def ours(args: argparse.Namespace, training: dict) -> Worker:
    options = json.dumps({"device": args.device, "rate": RATE, "training": training})
    script = str(HERE / "train_ours.py")
    command = [sys.executable, script, args.model, str(args.data), options]
    return Worker(command, args.folder / "imm_jax.log")


def trial(update: Callable[[], dict], device: str, fastest: float) -> dict:
    """An update after others that warm up, or the first where that is hopeless already."""
    first = update()
    if device == "cpu" and first["seconds"] > HOPELESS * fastest:
        return first | {"cold": True}
    for _ in range(WARM_UP[device] - 1):
        update()
    return update()


def best_of_torch(args: argparse.Namespace) -> tuple[dict, list[dict]]:
    """The fastest setting, and what each gave."""
    trials, slow, fastest = [], set(), math.inf
    for options in settings(args):
        if options["dtype"] in slow:
            continue
        worker = peer(args, "torch", options)
        trials.append({"options": options, **trial(worker.ask, args.device, fastest)})
        worker.close()
        fastest = min(fastest, trials[-1]["seconds"])
        if trials[-1]["seconds"] > 1.5 * fastest:
            slow.add(options["dtype"])
        print(f"torch {_words(options)}: {trials[-1]['seconds']:.2f} s", flush=True)
    return min(trials, key=lambda found: found["seconds"])["options"], trials


def _words(options: dict) -> str:
    parts = [options["dtype"], f"{options['rows']} rows"]
    parts += [name for name in ("checkpointing", "compile") if options[name]]
    return ", ".join(parts)


def take_turns(
    sides: dict[str, Callable[[], Worker]], device: str, runs: int
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    """The timed updates of each side, and what each said before its first."""
    stay = device == "cpu"  # starting costs more than an update, and memory is enough for all
    found, ready, workers = {name: [] for name in sides}, {}, {}
    for turn in range(runs + stay):
        for name, start in sides.items():
            worker = workers.pop(name, None) or start()
            ready.setdefault(name, worker.ready)
            answers = [worker.ask() for _ in range(WARM_UP[device] + TIMED[device])]
            if turn or not stay:  # the first turn of those that stay warms up
                found[name] += answers[WARM_UP[device] :]
            if stay:
                workers[name] = worker
            else:
                worker.close()
    for worker in workers.values():
        worker.close()
    return found, ready


def our_settings(args: argparse.Namespace) -> dict:
    training = OURS[args.device]
    if args.device == "cpu":
        training = training | {"remat_policy": bench.CPU_REMAT[args.compute_dtype]}
    if args.training:
        training = json.loads(args.training)
    return training | {"compute_dtype": args.compute_dtype}


def compare(args: argparse.Namespace) -> dict:
    """Alternates ours and the peers; returns every answer and the medians."""
    best, trials = best_of_torch(args)
    training = our_settings(args)
    sides = {"imm_jax": partial(ours, args, training)}
    for name in args.peers:  # where TRL has no such type it takes float32 weights and casts
        options = best if name == "torch" or best["dtype"] == "float32" else best | {
            "dtype": "autocast"}  # fmt: skip
        sides[name] = partial(peer, args, name, options)
    found, ready = take_turns(sides, args.device, args.runs)
    said = ready["imm_jax"]
    return {
        "rows": {name: figures(answers, said) for name, answers in found.items()},
        "limit_tokens_per_second": said["tokens"] * said["flops_a_second"] / said["flops"],
        "ours": said, "training": training, "torch_best": best, "torch_trials": trials,
        "all": found,
    }  # fmt: skip


def figures(answers: list[dict], said: dict) -> dict:
    """Medians and the peak of one side; ``said`` is what our side counted."""
    seconds = statistics.median(answer["seconds"] for answer in answers)
    return {
        "seconds": seconds,
        "cpu_seconds": statistics.median(answer["cpu_seconds"] for answer in answers),
        "tokens_per_second": said["tokens"] / seconds,
        "peak_gb": max(answer.get("device", answer["resident"]) for answer in answers) / 1e9,
        "mfu": said["flops"] / seconds / said["flops_a_second"],
    }


def show(report: dict) -> None:
    """The table."""
    first = report["rows"]["imm_jax"]
    print(f"{'':<10}  tokens/s  times   s/step  CPU s  peak GB  ours/theirs   MFU")
    for name, row in report["rows"].items():
        faster, smaller = (first[k] / row[k] for k in ("tokens_per_second", "peak_gb"))
        print(
            f"{name:<10} {row['tokens_per_second']:9.1f} {faster:6.2f} {row['seconds']:8.2f} "
            f"{row['cpu_seconds']:6.1f} {row['peak_gb']:8.2f} {smaller:12.2f} {row['mfu']:5.1%}"
        )
    print(f"limit      {report['limit_tokens_per_second']:9.1f}")


def measure(args: argparse.Namespace, path: Path) -> None:
    """Everything, from a model's folder to the table and the file."""
    args.folder.mkdir(parents=True, exist_ok=True)
    args.data = args.folder / "sequences.json"
    vocabulary = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]
    args.data.write_text(json.dumps(make_sequences(args.batch, vocabulary)))
    report = compare(args)
    show(report)
    bench.write_report(path, {"machine": description(args.device), "figures": report})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help=f"a folder in Hugging Face layout, or of {list(SHAPES)}")
    parser.add_argument("--peer-python", required=True, help="has torch, transformers and trl")
    parser.add_argument("--device", choices=bench.DEVICES, default="cpu")
    parser.add_argument("--batch", type=int, default=12, help="sequences of an update")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["torch", "trl"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "autocast", "float32"])
    parser.add_argument("--compute-dtype", choices=bench.CPU_REMAT, default="bfloat16", help="ours")
    parser.add_argument("--training", help="ours, as JSON; see OURS")
    parser.add_argument("--folder", type=Path, default="runs/benchmark-train")
    bench.add_output(parser)
    args = parser.parse_args()
    if (Path(args.model) / "config.json").is_file():
        return measure(args, bench.result_path(args, f"train-{args.device}"))
    if args.model not in SHAPES:
        bench.refuse(f"{args.model}: no folder with a config.json, and none of {', '.join(SHAPES)}")
    path = bench.result_path(args, f"train-{args.device}-{args.model}")
    with tempfile.TemporaryDirectory() as folder:
        make_folder(args.model, Path(folder), "float32")
        args.model = folder
        measure(args, path)


if __name__ == "__main__":
    main()
