"""Training tokens a second and memory, beside a plain torch step and TRL's SFTTrainer.

    python experiments/benchmarks/train.py MODEL_FOLDER --peer-python /path/to/python
    python experiments/benchmarks/train.py MODEL_FOLDER --peer-python ... --device gpu --batch 64

``MODEL_FOLDER`` is in Hugging Face layout (``imm-jax convert MODEL DIR``); the peers' Python has
torch, transformers and trl, and never runs in this process. All train on the same sequences: a
prompt of 64 tokens and a response of 40 to 200, the same batch again and again, loss on response
tokens, AdamW at 2e-5 with weight decay 0 and clipping at 1.

First torch's settings run an update each (on a GPU three), and the fastest is taken; where a type's
first setting takes half as long again as the fastest so far, its others are left out. Then ours,
torch at its best and TRL at that setting take turns, each in a process of its own that the others
wait for: two updates, of which the second is timed, as one that follows another. Tokens are those
of the sequences, padding left out; seconds are medians; memory is the peak of a process
(``VmHWM``), imports and all, and on a GPU what the device's allocator held at most. Ours is the
step of ``imm_jax.fit``, compiled apart.

The limit counts ``imm_jax.training.flops.train_flops`` of these sequences, where only response
tokens meet the head (what each side must do at least), over the peak of a large matrix product
in the same run, in our compute dtype with float32 sums.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from bench import CPU_REMAT

PROMPT, SHORTEST, LONGEST, RATE = 64, 40, 200, 2e-5
OURS = {
    "cpu": {"micro_batch_size": 2},  # packed: one row
    "gpu": {"micro_batch_size": 16, "packing": False},  # cuDNN's attention
}
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def make_sequences(count: int, vocabulary: int, seed: int = 0) -> list[dict]:
    """Random tokens with the lengths of short worked answers."""
    rng = np.random.default_rng(seed)
    lengths = PROMPT + rng.integers(SHORTEST, LONGEST + 1, count)
    return [
        {"tokens": rng.integers(0, vocabulary, n).tolist(), "prompt_length": PROMPT}
        for n in lengths
    ]


class Worker:
    """A process that makes one update for each line it is sent."""

    def __init__(self, command: list[str], log: Path):
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, env=ENVIRONMENT,
            )  # fmt: skip
        self.ready = self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text()[-1500:]
            raise RuntimeError(f"{self.process.args[:3]} ended with {self.process.wait()}:\n{tail}")
        return json.loads(line)

    def step(self) -> dict:
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(folder: str, data: str, options: dict) -> None:
    """Our side, in a process of its own: the answers of train_peers.py."""
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options["device"]]
    import jax

    from imm_jax.models.load import load_model
    from imm_jax.training.batching import Batches, Sequence
    from imm_jax.training.config import TrainingConfig
    from imm_jax.training.fit import _train_step
    from imm_jax.training.flops import train_flops
    from imm_jax.training.loop import commit
    from imm_jax.training.optimizer import make_optimizer
    from imm_jax.training.step import init_state

    def answer(**values) -> None:
        print(json.dumps(values), flush=True)

    def memory() -> dict:
        text = Path("/proc/self/status").read_text()
        found = {"resident": 1024 * int(text.split("VmHWM:")[1].split()[0])}
        on_device = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in on_device:
            found["device"] = on_device["peak_bytes_in_use"]
        return found

    sequences = [Sequence(tuple(s["tokens"]), PROMPT) for s in json.loads(Path(data).read_text())]
    config = TrainingConfig(
        learning_rate=RATE, schedule="constant", warmup_ratio=0.0, epochs=1000,
        batch_size=len(sequences), **options["training"],
    )  # fmt: skip
    model, params = load_model(folder)
    batches = Batches(sequences, config, seed=0)
    step = _train_step(model, config)
    state = commit(init_state(params, make_optimizer(config), len(batches)))
    del params  # torch holds one copy of the weights too
    loaded = memory()
    start = time.perf_counter()
    compiled = step.lower(state, batches[0]).compile()
    plan = compiled.memory_analysis()
    lengths = [len(s.tokens) - 1 for s in sequences]
    scored = sum(len(s.tokens) - PROMPT for s in sequences)
    answer(
        ready=True, compile_seconds=time.perf_counter() - start, flops_a_second=_peak(options),
        flops=train_flops(model.config, lengths, scored), tokens=sum(lengths),
        flops_with_whole_head=train_flops(model.config, lengths), loaded=loaded,
        xla={"state": plan.argument_size_in_bytes, "temporaries": plan.temp_size_in_bytes},
        rows=list(batches[0].tokens.shape[1:]), micro_batches=int(batches[0].micro_batches),
    )  # fmt: skip
    for number, _ in enumerate(sys.stdin):
        start, used = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, batches[number])
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        answer(seconds=seconds, cpu_seconds=used, loss=loss, **memory())


def _peak(options: dict) -> float:
    """Operations a second of a large matrix product, the best of many: a machine's speed drifts."""
    import jax
    import jax.numpy as jnp

    size = 8192 if options["device"] == "gpu" else 1536
    one = jnp.ones((size, size), options["training"]["compute_dtype"])
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    seconds = []
    for _ in range(100):
        start = time.perf_counter()
        jax.block_until_ready(product(one, one))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


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


def best_of_torch(args: argparse.Namespace) -> tuple[dict, list[dict]]:
    """The fastest setting, and what each gave."""
    trials, slow = [], set()
    for options in settings(args):
        if options["dtype"] in slow:
            continue
        worker = peer(args, "torch", options)
        for _ in range(2 if args.device == "gpu" else 0):  # compiles, warms up
            worker.step()
        trials.append({"options": options, **worker.step()})
        worker.close()
        if trials[-1]["seconds"] > 1.5 * min(trial["seconds"] for trial in trials):
            slow.add(options["dtype"])
        print(f"torch {_words(options)}: {trials[-1]['seconds']:.2f} s", flush=True)
    return min(trials, key=lambda trial: trial["seconds"])["options"], trials


def _words(options: dict) -> str:
    parts = [options["dtype"], f"{options['rows']} rows"]
    parts += [name for name in ("checkpointing", "compile") if options[name]]
    return ", ".join(parts)


def compare(args: argparse.Namespace) -> dict:
    """Alternates ours and the peers; returns every answer and the medians."""
    best, trials = best_of_torch(args)
    training = OURS[args.device]
    if args.device == "cpu":
        training = training | {"remat_policy": CPU_REMAT[args.compute_dtype]}
    if args.training:
        training = json.loads(args.training)
    training = training | {"compute_dtype": args.compute_dtype}
    own = json.dumps({"device": args.device, "training": training})
    serving = [sys.executable, __file__, args.model, "--serve", str(args.data), own]
    workers = {"imm_jax": Worker(serving, args.folder / "imm_jax.log")}
    for name in args.peers:  # where TRL has no such type it takes float32 weights and casts
        options = best if name == "torch" or best["dtype"] == "float32" else best | {
            "dtype": "autocast"}  # fmt: skip
        workers[name] = peer(args, name, options)
    found = {name: [] for name in workers}
    for turn in range(args.runs + 1):
        for name, worker in workers.items():
            worker.step()  # after a pause memory and caches are cold
            answer = worker.step()
            if turn:  # the first turn of each warms up
                found[name].append(answer)
    ours = workers["imm_jax"].ready
    for worker in workers.values():
        worker.close()
    rows = {}
    for name, answers in found.items():
        seconds = statistics.median(answer["seconds"] for answer in answers)
        used = statistics.median(answer["cpu_seconds"] for answer in answers)
        memory = max(answer.get("device", answer["resident"]) for answer in answers)
        rows[name] = {
            "seconds": seconds, "cpu_seconds": used, "tokens_per_second": ours["tokens"] / seconds,
            "peak_gb": memory / 1e9, "mfu": ours["flops"] / seconds / ours["flops_a_second"],
        }  # fmt: skip
    limit = ours["tokens"] * ours["flops_a_second"] / ours["flops"]
    return {
        "rows": rows, "limit_tokens_per_second": limit, "ours": ours, "training": training,
        "torch_best": best, "torch_trials": trials, "all": found,
    }  # fmt: skip


def show(figures: dict) -> None:
    """The table."""
    ours = figures["rows"]["imm_jax"]
    print(f"{'':<10}  tokens/s  times   s/step  CPU s  peak GB  ours/theirs   MFU")
    for name, row in figures["rows"].items():
        faster, smaller = (ours[k] / row[k] for k in ("tokens_per_second", "peak_gb"))
        print(
            f"{name:<10} {row['tokens_per_second']:9.1f} {faster:6.2f} {row['seconds']:8.2f} "
            f"{row['cpu_seconds']:6.1f} {row['peak_gb']:8.2f} {smaller:12.2f} {row['mfu']:5.1%}"
        )
    print(f"limit      {figures['limit_tokens_per_second']:9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a model folder in Hugging Face layout")
    parser.add_argument("--peer-python", help="of an environment with torch, transformers and trl")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--batch", type=int, default=12, help="sequences of an update")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=["torch", "trl"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "autocast", "float32"])
    parser.add_argument("--compute-dtype", choices=CPU_REMAT, default="bfloat16", help="ours")
    parser.add_argument("--training", help="ours, as JSON; see OURS")
    parser.add_argument("--folder", type=Path, default="runs/benchmark-train")
    parser.add_argument("--output", help="write the figures here, as JSON")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.model, args.serve[0], json.loads(args.serve[1]))
    args.folder.mkdir(parents=True, exist_ok=True)
    args.data = args.folder / "sequences.json"
    vocabulary = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]
    args.data.write_text(json.dumps(make_sequences(args.batch, vocabulary)))
    figures = compare(args)
    show(figures)
    if args.output:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        report = {"command": sys.argv, "machine": machine, "figures": figures}
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
