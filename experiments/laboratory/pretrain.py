"""The laboratory's model: a decoder of a million parameters that has practised eight tasks.

    python experiments/laboratory/pretrain.py --output runs/laboratory

Writes ``runs/laboratory/model`` (Hugging Face layout, tokenizer included) and its accuracy on test
questions. The practised task of the experiments is rare in the mixture, and when it is learned
hangs on how a CPU rounds. Where it is not by the end, a quarter as many steps follow, at the rates
that end so much longer a schedule, and again. The same command goes on with a pretraining that was
cut off.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import settings

from imm_jax.console import logging_to_stderr
from imm_jax.files import atomic_write
from imm_jax.laboratory.pretraining import begin, init_params, make_pretrain
from imm_jax.laboratory.vocabulary import make_tokenizer
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from imm_jax.progress import Progress
from imm_jax.rounds.compiled import accuracies
from imm_jax.step_checkpoints import StepCheckpoints
from imm_jax.tree import num_params

CHUNK = 100  # steps between two looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=settings.MODEL.parent)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, training = Decoder(settings.CONFIG), settings.PRETRAINING
    advance = make_pretrain(model, settings.BATCH, training, jax.random.key(args.seed))
    state = begin(init_params(settings.CONFIG, args.seed), training, settings.STEPS)
    started, path = time.monotonic(), args.output / "pretraining.json"
    report = {
        **settings.record(),
        "seed": args.seed,
        "parameters": num_params(state.params),
        "batch": settings.BATCH,
        "seconds": 0.0,
        "history": [],
    }
    with logging_to_stderr(), StepCheckpoints(args.output / "pretraining") as store:
        found = store.restore_latest({"state": state}) if store.steps() else None
        if found is not None:
            state, earlier = found[1]["state"], json.loads(path.read_text())
            report["history"] = [look for look in earlier["history"] if look["step"] <= state.step]
            started -= earlier["seconds"]
        with Progress("pretrain", int(state.total_steps), "step") as progress:
            progress.skip(int(state.step))
            while state.step < state.total_steps:
                state, metrics = advance(state, CHUNK)
                scores = accuracies(settings.program(), state.params, settings.test_questions())
                scores = dict(zip(settings.NAMES, scores.tolist()))
                loss, step = float(metrics["loss"]), int(state.step)
                shown = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
                progress.update(CHUNK, f"loss {loss:.3f}, {shown}")
                learned = scores[settings.PRACTISED] >= settings.LEARNED
                if step == state.total_steps < settings.MOST_STEPS and not learned:
                    state = state._replace(
                        total_steps=state.total_steps + step // 4 // CHUNK * CHUNK
                    )
                    progress.total = int(state.total_steps)
                report["history"].append({"step": step, "loss": loss, "accuracy": scores})
                report["seconds"] = time.monotonic() - started
                atomic_write(path, json.dumps(report, indent=1) + "\n")
                store.save(step, {"state": state})
    save_model(args.output / "model", model, state.params, tokenizer=make_tokenizer())


if __name__ == "__main__":
    main()
