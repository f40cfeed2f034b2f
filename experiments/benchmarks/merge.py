"""Merging, beside mergekit and the physical limit.

    python experiments/benchmarks/merge.py --mergekit /path/to/mergekit-yaml     # file to file
    python experiments/benchmarks/merge.py --memory [--device gpu]               # merge_params

File to file: two randomly initialised Llama checkpoints of 1.1 B bfloat16 parameters (2.2 GB each),
merged by ``imm-jax merge`` and by mergekit's own command, each from the same YAML file and in
processes of their own, alternating. The floor reads both files and writes one of the same size.
Seconds are those of the whole process; what importing takes of them stands apart. The first run of
a method compiles its programs and the others find them in the cache, as users' runs do. Peak memory
is anonymous memory (what does not lie in a file), sampled every 20 ms over the process and its
children.

In memory: ``merge_params`` of one pair, bytes moved (read two, write one) a second, against a copy
of the same array (read one, write one) in the same run.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
import ml_dtypes
import numpy as np
from machine import description

from imm_jax.models.huggingface.tensor_files import Planned, write_tensors

HIDDEN, FEED_FORWARD, LAYERS, VOCABULARY, KV = 2048, 5632, 22, 32000, 256
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
PAIR = "models:\n- model: {base}\n- model: {tuned}\nbase_model: {base}\n"
ONE = "models:\n- model: {tuned}\n  parameters: {{weight: 0.4, density: 0.5}}\nbase_model: {base}\n"
RECIPES = {
    "linear": "models:\n- model: {base}\n  parameters: {{weight: 0.6}}\n"
    "- model: {tuned}\n  parameters: {{weight: 0.4}}\n",
    "slerp": PAIR + "parameters: {{t: 0.4}}\n",
    "task_arithmetic": ONE.replace(", density: 0.5", ""),
    "ties": ONE,
    "dare_ties": ONE,
    "della": ONE,
}
IMPORTS = {"imm-jax": "import imm_jax.recipes.run", "mergekit": "import mergekit.merge"}
FLOOR = """
import os, sys
*sources, target = sys.argv[1:]
buffer = bytearray(1 << 21)
sizes = []
for source in sources:
    with open(source, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
with open(target, "wb", buffering=0) as file:
    left = os.path.getsize(sources[0])
    while left:
        left -= file.write(memoryview(buffer)[:min(left, len(buffer))])
    os.fsync(file.fileno())
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama with 1.1 B parameters."""
    found = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for n in range(LAYERS):
        at = f"model.layers.{n}."
        found |= {
            f"{at}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}self_attn.k_proj.weight": (KV, HIDDEN),
            f"{at}self_attn.v_proj.weight": (KV, HIDDEN),
            f"{at}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}mlp.gate_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{at}mlp.up_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{at}mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
            f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
        }
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def make_checkpoint(folder: Path, seed: int) -> None:
    """Writes a random checkpoint; seed 0 is the base, others are the base with small changes."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)

    def values():
        for number, shape in enumerate(shapes().values()):
            weights = 0.02 * np.random.default_rng(number).standard_normal(shape, np.float32)
            if seed:
                changes = np.random.default_rng((number, seed)).standard_normal(shape, np.float32)
                weights += 0.002 * changes
            yield weights.astype(BFLOAT16)

    plan = [Planned(name, BFLOAT16, shape) for name, shape in shapes().items()]
    write_tensors(folder / "model.safetensors", plan, values())
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def watched(command: list[str]) -> tuple[float, float]:
    """Runs a command; returns its seconds and the peak of its anonymous memory in GB."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
    return seconds, peak / 1e6


ENVIRONMENT = {**os.environ, **bench.OFFLINE}


def anonymous(pid: int) -> int:
    """Anonymous memory of a process and its children, in kB."""
    total = 0
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        total = int(text.split("RssAnon:")[1].split()[0]) if "RssAnon:" in text else 0
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return total + sum(anonymous(int(child)) for child in children)
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return total


def imports(python: str, code: str) -> float:
    """Seconds that a process takes which imports and ends, at the median of three."""
    return statistics.median(watched([python, "-c", code])[0] for _ in range(3))


def compare_files(args: argparse.Namespace) -> dict:
    """Alternates floor, imm-jax and mergekit for each method; returns all seconds and medians."""
    folder = Path(args.folder)
    base, tuned, out = folder / "base", folder / "tuned", folder / "out"
    make_checkpoint(base, 0)
    make_checkpoint(tuned, 1)
    weights = [str(path / "model.safetensors") for path in (base, tuned)]
    peers = {"imm-jax": [str(Path(sys.executable).parent / "imm-jax"), "merge"]}
    pythons = {"imm-jax": sys.executable}
    if args.mergekit:
        peers["mergekit"] = [args.mergekit]
        pythons["mergekit"] = str(Path(args.mergekit).parent / "python")
    result: dict = {"import_seconds": {k: imports(pythons[k], IMPORTS[k]) for k in peers}}
    for method in args.methods:
        recipe = folder / f"{method}.yaml"
        recipe.write_text(
            RECIPES[method].format(base=base, tuned=tuned)
            + f"merge_method: {method}\ndtype: bfloat16\n"
        )
        runs: dict = {name: [] for name in ("floor", *peers)}
        for _ in range(args.runs):
            target = folder / "floor.bin"
            runs["floor"].append(watched([sys.executable, "-c", FLOOR, *weights, str(target)]))
            target.unlink()
            for name, command in peers.items():
                shutil.rmtree(out, ignore_errors=True)
                runs[name].append(watched([*command, str(recipe), str(out)]))
        shutil.rmtree(out, ignore_errors=True)
        seconds = {name: statistics.median(s for s, _ in found) for name, found in runs.items()}
        peak = {name: max(p for _, p in found) for name, found in runs.items()}
        row = {"seconds": seconds, "peak_gb": peak, "all": runs}
        row["over_floor"] = seconds["imm-jax"] / seconds["floor"]
        if args.mergekit:
            row["times_faster"] = seconds["mergekit"] / seconds["imm-jax"]
        result[method] = row
        print_row(method, row)
    return result


def print_row(method: str, row: dict) -> None:
    """One line of the table."""
    seconds, peak = row["seconds"], row["peak_gb"]
    text = f"{method:<16} floor {seconds['floor']:6.2f} s   imm-jax {seconds['imm-jax']:6.2f} s"
    text += f" ({row['over_floor']:4.2f} x floor, {peak['imm-jax']:.2f} GB)"
    if "mergekit" in seconds:
        text += f"   mergekit {seconds['mergekit']:6.2f} s ({peak['mergekit']:.2f} GB)"
        text += f"   {row['times_faster']:5.1f} x faster"
    print(text, flush=True)


def compare_memory(args: argparse.Namespace) -> dict:
    """``merge_params`` against a copy, in GB moved a second."""
    bench.use_device(args.device)
    import jax
    import jax.numpy as jnp

    from imm_jax import merge_params

    def timed(call) -> float:
        jax.block_until_ready(call())
        times = []
        for _ in range(args.runs):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - start)
        return min(times)

    result = {"device": jax.devices()[0].device_kind}
    copy = jax.jit(jnp.copy)
    for dtype in (jnp.float32, jnp.bfloat16):
        shape = (args.elements // 4096, 4096)
        base = jax.random.normal(jax.random.key(0), shape, dtype)
        tuned = base + 0.01 * jax.random.normal(jax.random.key(1), shape, dtype)
        copies, merges = [], []
        for _ in range(5):
            copies.append(timed(lambda x=base: copy(x)))
            merges.append(timed(lambda b=base, t=tuned: merge_params(b, t, weight=0.4)))
        copied, merged = statistics.median(copies), statistics.median(merges)
        row = {"copy_gb_s": 2e-9 * base.nbytes / copied, "merge_gb_s": 3e-9 * base.nbytes / merged}
        row["share_of_limit"] = row["merge_gb_s"] / row["copy_gb_s"]
        result[dtype.__name__] = row
        print(
            f"{dtype.__name__:<10} copy {row['copy_gb_s']:7.1f} GB/s   "
            f"merge {row['merge_gb_s']:7.1f} GB/s   {row['share_of_limit']:.2f} of the limit"
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mergekit", help="mergekit 0.1.5's mergekit-yaml, in its own environment")
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default="runs/benchmark-merge", help="about 9 GB")
    parser.add_argument("--memory", action="store_true", help="merge_params in memory instead")
    parser.add_argument("--device", choices=bench.DEVICES, default="cpu", help="of --memory")
    parser.add_argument("--elements", type=int, default=64 << 20, help="of the array in memory")
    bench.add_output(parser)
    args = parser.parse_args()
    if not args.memory:
        args.device = "cpu"
    path = bench.result_path(args, f"merge-memory-{args.device}" if args.memory else "merge-cpu")
    figures = compare_memory(args) if args.memory else compare_files(args)
    bench.write_report(path, {"machine": description(args.device), "figures": figures})


if __name__ == "__main__":
    main()
