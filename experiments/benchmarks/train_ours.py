"""Our training step, run by train.py in a process of its own: the answers of train_peers.py.

    python experiments/benchmarks/train_ours.py MODEL_FOLDER SEQUENCES.json OPTIONS

One line on standard input is one update; its answer is a line of JSON. ``OPTIONS`` is JSON: device,
rate, and the settings of ``TrainingConfig`` under training.
"""

import json
import sys
import time
from pathlib import Path

from bench import peak_memory, use_device
from machine import product_flops


def answer(**values) -> None:
    print(json.dumps(values), flush=True)


def prepare(folder: str, sequences: list[dict], options: dict):
    """The model, the state before the first update, the batches, and the step, not compiled."""
    from imm_jax.models.load import load_model
    from imm_jax.training.batching import Batches, Sequence
    from imm_jax.training.config import TrainingConfig
    from imm_jax.training.fit import _train_step
    from imm_jax.training.loop import commit
    from imm_jax.training.optimizer import make_optimizer
    from imm_jax.training.step import init_state

    config = TrainingConfig(
        learning_rate=options["rate"], schedule="constant", warmup_ratio=0.0, epochs=1000,
        batch_size=len(sequences), **options["training"],
    )  # fmt: skip
    model, params = load_model(folder)
    rows = [Sequence(tuple(s["tokens"]), s["prompt_length"]) for s in sequences]
    batches = Batches(rows, config, seed=0)
    state = commit(init_state(params, make_optimizer(config), len(batches)))
    return model, state, batches, _train_step(model, config)


def sizes(config, sequences: list[dict], batch, plan) -> dict:
    """What an update asks for, and what XLA plans for it."""
    from imm_jax.training.flops import train_flops

    lengths = [len(s["tokens"]) - 1 for s in sequences]
    scored = sum(len(s["tokens"]) - s["prompt_length"] for s in sequences)
    return {
        "tokens": sum(lengths),
        "flops": train_flops(config, lengths, scored),
        "flops_with_whole_head": train_flops(config, lengths),
        "xla": {"state": plan.argument_size_in_bytes, "temporaries": plan.temp_size_in_bytes},
        "rows": list(batch.tokens.shape[1:]),
        "micro_batches": int(batch.micro_batches),
    }


def serve(folder: str, sequences: list[dict], options: dict) -> None:
    import jax

    # prepare's frame is gone then, and with it the loaded weights: torch holds one copy too.
    model, state, batches, step = prepare(folder, sequences, options)
    loaded, start = peak_memory(), time.perf_counter()
    compiled = step.lower(state, batches[0]).compile()
    answer(
        compile_seconds=time.perf_counter() - start,
        loaded=loaded,
        flops_a_second=product_flops(options["device"], options["training"]["compute_dtype"]),
        **sizes(model.config, sequences, batches[0], compiled.memory_analysis()),
    )
    for number, _ in enumerate(sys.stdin):
        start, used = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, batches[number])
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        answer(seconds=seconds, cpu_seconds=used, loss=loss, **peak_memory())


if __name__ == "__main__":
    folder, data, options = sys.argv[1:]
    options = json.loads(options)
    use_device(options["device"])
    serve(folder, json.loads(Path(data).read_text()), options)
