"""A round as one would build it from transformers, TRL and mergekit: the peer of ``round.py``.

    python experiments/benchmarks/round_peer.py JOB.json RESULT.json

Runs in an environment of its own (torch, transformers, trl, datasets). ``JOB.json``, which
``round.py`` writes, names the model, files of questions with their prompts, and all settings. The
only thing shared with the other side is how answers are checked.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria
from trl import SFTConfig, SFTTrainer

from imm_jax.tasks import Example, cut_at_stop, grade_all

SECONDS = Counter()
RECIPE = """\
merge_method: dare_linear
base_model: {base}
models:
- model: {tuned}
  parameters: {{weight: {weight}, density: {density}}}
parameters: {{normalize: false, rescale: true}}
dtype: float32
"""


class Timed:
    """Adds the seconds of a block to a stage."""

    def __init__(self, stage):
        self.stage = stage

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        SECONDS[self.stage] += time.perf_counter() - self.start


class StopAt(StoppingCriteria):
    """Ends a row at a stop string; ``generate(stop_strings=...)`` would first work through the
    whole vocabulary.
    """

    def __init__(self, tokenizer, stops, look=8):
        self.tokenizer, self.stops, self.look = tokenizer, stops, look
        self.start = None

    def __call__(self, ids, scores, **_):
        if self.start is None:
            self.start = ids.shape[1] - 1
        ends = ids[:, max(self.start, ids.shape[1] - self.look) :]
        texts = self.tokenizer.batch_decode(ends)
        ended = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(ended, device=ids.device)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def load(job, folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.to(job["device"]).eval()


def generate(job, model, tokenizer, rows, samples, temperature):
    """``samples`` texts for each row's prompt: batches of like length, padded on the left."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt"]))
    each = max(1, job["batch_size"] // samples)
    settings = {"do_sample": False}
    if temperature:
        settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    texts, tokens = [None] * len(rows), 0
    for start in range(0, len(rows), each):
        batch = order[start : start + each]
        prompts = [rows[i]["prompt"] for i in batch]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(job["device"])
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                **settings,
                num_return_sequences=samples,
                max_new_tokens=job["max_new_tokens"],
                stopping_criteria=[StopAt(tokenizer, job["stops"])],
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        tokens += int((new != tokenizer.pad_token_id).sum())
        said = [
            cut_at_stop(text, job["stops"])
            for text in tokenizer.batch_decode(new, skip_special_tokens=True)
        ]
        for place, i in enumerate(batch):
            texts[i] = said[place * samples : (place + 1) * samples]
    return texts, tokens


def right(rows, texts):
    """Whether each sample of each row has the right answer."""
    pairs = [
        (Example(id=row["id"], question=row["question"], answer=row["answer"]), text)
        for row, said in zip(rows, texts)
        for text in said
    ]
    return [grade.correct for grade in grade_all("number", pairs)]


def select(rows, texts):
    """The right samples of each question, each text once."""
    flat = [(row, text.strip()) for row, said in zip(rows, texts) for text in said]
    kept = {}
    for (row, text), correct in zip(flat, right(rows, texts)):
        if correct:
            kept.setdefault((row["id"], " ".join(text.split())), (row, text))
    return [
        {"prompt": row["train_prompt"], "completion": " " + text} for row, text in kept.values()
    ]


def fit(job, tokenizer, pairs, folder):
    """Full fine-tune on the responses alone; AdamW, cosine, in float32 or under autocast."""
    settings = SFTConfig(
        output_dir=str(folder / "trainer"),
        use_cpu=job["device"] == "cpu",
        bf16=job["train_dtype"] == "bfloat16",
        gradient_checkpointing=False,
        completion_only_loss=True,
        per_device_train_batch_size=job["train_batch_size"],
        num_train_epochs=job["epochs"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=job["max_length"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = SFTTrainer(
        model=load(job, job["model"], "float32"),
        args=settings,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(folder / "tuned"))


def merge(job, folder):
    """By mergekit's own command."""
    density, tuned = 1 - job["drop_rate"], folder / "tuned"
    recipe = RECIPE.format(base=job["model"], tuned=tuned, weight=job["weight"], density=density)
    (folder / "recipe.yaml").write_text(recipe)
    command = [job["mergekit"], str(folder / "recipe.yaml"), str(folder / "merged")]
    if job["device"] == "cuda":
        command.append("--cuda")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def evaluate(job, model, tokenizer):
    """Accuracy and sampled tokens on each test file, greedily."""
    scores, tokens = {}, 0
    for name, path in job["tests"].items():
        rows = read(path)
        texts, count = generate(job, model, tokenizer, rows, 1, 0.0)
        scores[name], tokens = sum(right(rows, texts)) / len(rows), tokens + count
    return scores, tokens


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = load(job, job["model"], job["dtype"])
    with Timed("original"):
        original, first = evaluate(job, model, tokenizer)
    train = read(job["train"])
    with Timed("sample"):
        texts, sampled = generate(job, model, tokenizer, train, job["samples"], job["temperature"])
    with Timed("select"):
        pairs = select(train, texts)
    del model
    with Timed("fit"):
        fit(job, tokenizer, pairs, folder)
    with Timed("merge"):
        merge(job, folder)
    with Timed("evaluate"):
        merged, evaluated = evaluate(job, load(job, folder / "merged", job["dtype"]), tokenizer)
    result = {
        "seconds": SECONDS,
        "tokens": {"original": first, "sample": sampled, "evaluate": evaluated},
        "kept": len(pairs),
        "device_bytes": torch.cuda.max_memory_allocated() if job["device"] == "cuda" else None,
        "accuracy": {"original": original, "merged": merged},
    }
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
