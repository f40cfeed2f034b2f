"""Training steps of other libraries, run by train.py in an environment of their own.

    python train_peers.py torch|trl MODEL_FOLDER SEQUENCES.json OPTIONS

One line on standard input is one update; its answer is a line of JSON. Needs torch, transformers
and, for trl, trl; not imm_jax. ``OPTIONS`` is JSON: device, dtype (float32, bfloat16, or autocast:
float32 weights, products in bfloat16), checkpointing, compile, rows (of a micro batch), rate.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

IGNORED = -100


def answer(**values) -> None:
    """One line to the process that started this one."""
    print(json.dumps(values), file=OUT, flush=True)


def peak_memory(device: str) -> dict:
    """Peak bytes: resident of this process, and on a GPU what torch held at most."""
    import torch

    text = Path("/proc/self/status").read_text()
    found = {"resident": 1024 * int(text.split("VmHWM:")[1].split()[0])}
    if device == "cuda":
        found["device"] = torch.cuda.max_memory_allocated()
    return found


def load(folder: str, options: dict):
    """The model with SDPA attention, and the optimizer that the paper uses."""
    import torch
    from transformers import AutoModelForCausalLM

    wide = options["dtype"] != "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32 if wide else torch.bfloat16, attn_implementation="sdpa"
    ).to(options["device"])
    model.config.use_cache = False
    return model


def padded(sequences: list[dict], device: str):
    """Token ids, mask and labels ``[B, T]``, padded on the right to the longest."""
    import torch

    width = max(len(sequence["tokens"]) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, sequence in enumerate(sequences):
        tokens, prompt = torch.tensor(sequence["tokens"]), sequence["prompt_length"]
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, prompt : len(tokens)] = tokens[prompt:]
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "labels": labels.to(device),
    }


def torch_step(folder: str, sequences: list[dict], options: dict) -> None:
    """A plain step: forward, mean loss of response tokens, backward, clip, AdamW."""
    import torch

    device = options["device"]
    model = load(folder, options)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options["rate"], weight_decay=0.0, fused=True
    )
    model.train()
    if options["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    forward = torch.compile(model) if options["compile"] else model
    cast = contextlib.nullcontext()
    if options["dtype"] == "autocast":
        cast = torch.autocast(device, torch.bfloat16)
    ordered = sorted(sequences, key=lambda sequence: -len(sequence["tokens"]))
    rows = options["rows"]
    groups = [ordered[at : at + rows] for at in range(0, len(ordered), rows)]
    responses = sum(len(s["tokens"]) - s["prompt_length"] for s in sequences)
    answer(ready=True, **peak_memory(device))
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        total = 0.0
        for group in groups:
            with cast:
                batch = padded(group, device)
                loss = forward(**batch, num_items_in_batch=responses).loss
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total = float(total)  # waits for the device
        answer(
            seconds=time.perf_counter() - start,
            cpu_seconds=time.process_time() - used,
            loss=total,
            **peak_memory(device),
        )


def trl_step(folder: str, sequences: list[dict], options: dict) -> None:
    """TRL's SFTTrainer on token ids with a completion mask; one update a line."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    device = options["device"]
    rows = options["rows"]

    class Paced(TrainerCallback):
        """Waits for a line before each update and answers after it."""

        def on_step_begin(self, args, state, control, **_):
            control.should_training_stop = not sys.stdin.readline()
            self.start, self.used = time.perf_counter(), time.process_time()

        def on_step_end(self, args, state, control, **_):
            answer(
                seconds=time.perf_counter() - self.start,
                cpu_seconds=time.process_time() - self.used,
                **peak_memory(device),
            )

    data = Dataset.from_list(
        [
            {
                "input_ids": s["tokens"],
                "completion_mask": [int(i >= s["prompt_length"]) for i in range(len(s["tokens"]))],
            }
            for s in sequences
        ]
    )
    with tempfile.TemporaryDirectory() as output:
        config = SFTConfig(
            output_dir=output, per_device_train_batch_size=rows, max_length=None,
            gradient_accumulation_steps=len(sequences) // rows, num_train_epochs=1000,
            learning_rate=options["rate"], lr_scheduler_type="constant", completion_only_loss=True,
            gradient_checkpointing=options["checkpointing"], bf16=options["dtype"] == "autocast",
            use_cpu=device == "cpu", torch_compile=options["compile"], logging_strategy="no",
            save_strategy="no", report_to="none", disable_tqdm=True, optim="adamw_torch_fused",
        )  # fmt: skip
        trainer = SFTTrainer(
            load(folder, options), args=config, train_dataset=data, callbacks=[Paced()],
            processing_class=AutoTokenizer.from_pretrained(folder),
        )  # fmt: skip
        answer(ready=True, **peak_memory(device))
        trainer.train()


def main() -> None:
    peer, folder, data, options = sys.argv[1:]
    step = {"torch": torch_step, "trl": trl_step}[peer]
    step(folder, json.loads(Path(data).read_text()), json.loads(options))


if __name__ == "__main__":
    OUT, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    main()
