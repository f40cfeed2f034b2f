"""What both sides of ``round.py`` are to do: the settings of ``imm-jax run`` and the peer's job."""

import argparse
import json
from pathlib import Path

from bench import CPU_REMAT

from imm_jax.tasks import Task, get_style, make_task, render

TASKS = ("one_step", "two_step", "comparison")  # the first is practised
SEED = 1


def run_config(args: argparse.Namespace, model: Path) -> dict:
    """The settings of ``imm-jax run``."""
    style = "few_shot" if args.shots else "plain"
    decoding = {
        "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens,
        "weights": args.weights,
    }
    return {
        "model": str(model),
        "data": {
            "in_domain": f"builtin:{TASKS[0]}",
            "out_of_domain": [f"builtin:{name}" for name in TASKS[1:]],
            "train_questions": args.questions,
            "test_questions": args.test_questions,
            "seed": SEED,
            "sample_style": style,
            "evaluate_style": style,
            "shots": args.shots,
        },
        "samples": args.samples,
        "sampling": {"temperature": 0.7, **decoding},
        "evaluation": {"temperature": 0.0, **decoding},
        "select": {"rule": "correct"},
        "training": {
            "learning_rate": 2e-5,
            "epochs": 2,
            "batch_size": 8,
            "micro_batch_size": 8,
            "max_length": 256,
            "compute_dtype": args.compute_dtype,
            **_training(args),
        },
        "arms": {"imm": {"weight": 0.5, "drop_rate": 0.2}},
        "rounds": 1,
    }


def _training(args: argparse.Namespace) -> dict:
    if args.device == "cpu":
        return {"remat_policy": CPU_REMAT[args.compute_dtype]}
    return {"packing": False}  # cuDNN's attention knows no packed rows


def product_types(args: argparse.Namespace) -> dict[str, str]:
    """The type in which each stage of ours multiplies; a model on a GPU computes in bfloat16."""
    narrow = args.device == "gpu" or args.weights == "bfloat16"
    sampling = "bfloat16" if narrow else "float32"
    return dict.fromkeys(("original", "sample", "evaluate"), sampling) | {"fit": args.compute_dtype}


def peer_job(args: argparse.Namespace, config: dict, folder: Path) -> dict:
    """The same for the peer; writes the questions and their prompts."""
    data, training = config["data"], config["training"]

    def write(task: Task, split: str) -> str:
        path = folder / f"{task.name.replace(':', '-')}-{split}.jsonl"
        rows = [
            {
                "id": question.id,
                "question": question.question,
                "answer": question.answer,
                "prompt": render(data["sample_style"], question, task.shots[: args.shots]).whole,
                "train_prompt": render("plain", question).whole,
            }
            for question in getattr(task, split)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    tasks = [
        make_task(f"builtin:{name}", seed=SEED, train_size=size, test_size=args.test_questions)
        for name, size in zip(TASKS, (args.questions, 0, 0))
    ]
    return {
        "model": config["model"],
        "folder": str(folder / "peer"),
        "train": write(tasks[0], "train"),
        "tests": {task.name: write(task, "test") for task in tasks},
        "stops": get_style(data["sample_style"]).stops,
        "samples": args.samples,
        "temperature": config["sampling"]["temperature"],
        "max_new_tokens": args.max_new_tokens,
        "batch_size": args.peer_batch_size,
        "dtype": args.peer_dtype,
        "train_dtype": args.peer_train_dtype,
        "train_batch_size": training["batch_size"],
        "epochs": training["epochs"],
        "learning_rate": training["learning_rate"],
        "max_length": training["max_length"],
        "weight": config["arms"]["imm"]["weight"],
        "drop_rate": config["arms"]["imm"]["drop_rate"],
        "mergekit": args.mergekit,
        "device": "cuda" if args.device == "gpu" else "cpu",
        "seed": 0,
    }
