"""Iterative Model Merging in JAX: sample, keep what is right, fine-tune, merge, repeat.

    model, params = imm_jax.load_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    merged = imm_jax.merge_params(params, tuned, weight=0.5)

Names are imported when first used, so that ``import imm_jax`` is quick and touches no device.
"""

import importlib

__version__ = "0.1.0"

# Public name -> the module that has it.
_EXPORTS = {
    "Decoder": "imm_jax.models.decoder",
    "Example": "imm_jax.tasks",
    "InputError": "imm_jax.errors",
    "Interrupted": "imm_jax.errors",
    "LoraConfig": "imm_jax.training.config",
    "ModelConfig": "imm_jax.models.config",
    "RunConfig": "imm_jax.config",
    "SamplingConfig": "imm_jax.sampling.config",
    "Task": "imm_jax.tasks",
    "TrainingConfig": "imm_jax.training.config",
    "evaluate": "imm_jax.evaluation",
    "fit": "imm_jax.training.fit",
    "generate": "imm_jax.sampling.engine",
    "load_config": "imm_jax.config",
    "load_model": "imm_jax.models.load",
    "load_tokenizer": "imm_jax.models.tokenizer",
    "make_task": "imm_jax.tasks",
    "merge_files": "imm_jax.merge_recipe",
    "merge_params": "imm_jax.merging",
    "run": "imm_jax.rounds.run",
    "save_model": "imm_jax.models.huggingface.saving",
    "write_report": "imm_jax.report_command",
}
_ROOMS = ("analysis", "checkpoints", "evaluation", "memory", "merging", "models", "recipes")
_ROOMS += ("rounds", "sampling", "sharding", "tasks", "training", "tree")

__all__ = ["__version__", *_EXPORTS, *_ROOMS]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"imm_jax.{name}")
    raise AttributeError(f"module 'imm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
