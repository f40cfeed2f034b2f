"""The laboratory's model: a decoder of a million parameters that has practised eight tasks.

    python experiments/laboratory/pretrain.py --output runs/laboratory

Writes ``runs/laboratory/model`` (Hugging Face layout, tokenizer included) and its accuracy on test
questions. The practised task of the experiments is rare in the mixture. The same command goes on
with a pretraining that was cut off.
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
    started, history = time.monotonic(), []
    with logging_to_stderr(), StepCheckpoints(args.output / "pretraining") as store:
        found = store.restore_latest({"state": state}) if store.steps() else None
        if found is not None:
            state = found[1]["state"]
        with Progress("pretrain", settings.STEPS, "step") as progress:
            progress.update(int(state.step))
            while int(state.step) < settings.STEPS:
                state, metrics = advance(state, CHUNK)
                scores = accuracies(settings.program(), state.params, settings.test_questions())
                scores = dict(zip(settings.NAMES, scores.tolist()))
                loss = float(metrics["loss"])
                history.append({"step": int(state.step), "loss": loss, "accuracy": scores})
                shown = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
                note = f"loss {loss:.3f}, {shown}"
                progress.update(CHUNK, note)
                store.save(int(state.step), {"state": state})
    save_model(args.output / "model", model, state.params, tokenizer=make_tokenizer())
    report = {
        **settings.record(),
        "seed": args.seed,
        "parameters": num_params(state.params),
        "seconds": time.monotonic() - started,
        "batch": settings.BATCH,
        "history": history,
    }
    atomic_write(args.output / "pretraining.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
