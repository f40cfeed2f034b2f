"""LoRA adapters as PEFT writes them, and what they add, in float64."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RANK, ALPHA = 4, 6.0
TARGETS = ("q_proj", "v_proj", "down_proj")


def save_adapter(folder: Path, weights: dict, seed: int, **settings) -> dict:
    """Writes an adapter of ``TARGETS`` and returns its update of each tensor, in float64.

    ``alpha_pattern`` is not counted in; ``own`` are tensors to save whole, by their names.
    """
    own, random = settings.pop("own", {}), np.random.default_rng(seed)
    tensors, updates = {f"base_model.model.{n}": x for n, x in own.items()}, {}
    scale = ALPHA / (np.sqrt(RANK) if settings.get("use_rslora") else RANK)
    for name, x in weights.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in TARGETS:
            continue
        a, b = (
            random.standard_normal(shape).astype(np.float32) * 0.1
            for shape in ((RANK, x.shape[1]), (x.shape[0], RANK))
        )
        updates[name] = scale * (b.astype(np.float64) @ a.astype(np.float64))
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS),
        "bias": "none", "use_dora": False, "fan_in_fan_out": False, "init_lora_weights": True,
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return updates


def added(weights: dict, updates: dict, dtype=np.float32) -> dict:
    """W + update, rounded to float32 and to the result's type."""
    sums = {n: np.float64(x) + updates.get(n, 0) for n, x in weights.items()}
    return {n: x.astype(np.float32).astype(dtype) for n, x in sums.items()}
