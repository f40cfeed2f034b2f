"""Recipes that mergekit and this package both run, and tiny models for them.

``python -m tests.recipes.mergekit_merges`` writes what mergekit 0.1.5 makes of the core recipes to
the golden file, where mergekit is installed.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from imm_jax.recipes.run import merge_files
from tests.recipes import tiny_llamas

GOLDEN = Path(__file__).parent / "golden" / "merges.npz"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# For the golden file, which holds every element of every core recipe's result.
SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
         "num_key_value_heads": 2, "vocab_size": 32, "num_hidden_layers": 2}  # fmt: skip

BASE = "base_model: a\n"
TWO = """models:
  - {model: b, parameters: {weight: 0.3}}
  - {model: c, parameters: {weight: 0.9}}
"""
THREE = """models:
  - {model: b, parameters: {weight: 0.5}}
  - {model: c, parameters: {weight: 0.7}}
  - {model: d, parameters: {weight: -0.3}}
"""
PLAIN = "models: [{model: b}, {model: c}, {model: d}]\n"
ONE = "models: [{model: a}, {model: b}]\n"
FAR = "models: [{model: a}, {model: far}]\n"
SPARSE = "parameters: {density: 0.6, lambda: 0.9, normalize: %s}\n"

RECIPES = {
    "linear": THREE,
    "linear, not normalized": THREE + "parameters: {normalize: false}\n",
    "slerp": BASE + FAR + "parameters: {t: 0.3}\n",
    "slerp, on a line": BASE + ONE + "parameters: {t: 0.3}\n",
    **{
        f"nuslerp, {flatten} {rows} {'about' if base else 'without'} a base": base
        + TWO
        + f"parameters: {{nuslerp_flatten: {flatten}, nuslerp_row_wise: {rows}}}\n"
        for flatten in ("true", "false")
        for rows in ("true", "false")
        for base in (BASE, "")
    },
    "multislerp": THREE,
    "multislerp, not normalized": THREE + "parameters: {normalize_weights: false}\n",
    "multislerp, about a base": BASE + TWO,
    "karcher": "models: [{model: a}, {model: far}, {model: b}]\n",
    "task_arithmetic": BASE + THREE + "parameters: {lambda: 0.8}\n",
    "task_arithmetic, normalized": BASE + THREE + "parameters: {normalize: true}\n",
    "ties": BASE + THREE + SPARSE % "true",
    "ties, not normalized": BASE + THREE + SPARSE % "false",
    "ties, rescaled": BASE + THREE + SPARSE % "true, rescale: true",
    "breadcrumbs": BASE + THREE + SPARSE % "false",
    "breadcrumbs, rescaled": BASE + THREE + SPARSE % "false, rescale: true",
    "breadcrumbs_ties, rescaled": BASE + THREE + SPARSE % "true, rescale: true",
    "breadcrumbs, normalized": BASE + THREE + SPARSE % "true",
    "breadcrumbs_ties": BASE + THREE + SPARSE % "true",
    "breadcrumbs_ties, not normalized": BASE + THREE + SPARSE % "false",
    "model_stock": BASE + PLAIN,
    "model_stock, filter_wise": BASE + PLAIN + "parameters: {filter_wise: true}\n",
    "sce": BASE + PLAIN,
    "sce, selected": BASE + PLAIN + "parameters: {select_topk: 0.3}\n",
    "nearswap": BASE + ONE + "parameters: {t: 0.01}\n",
    "arcee_fusion": BASE + ONE,
    "passthrough": "models: [{model: b, parameters: {scale: 0.7}}]\n",
    "ram": BASE + PLAIN,
    "ramplus_tl": BASE + PLAIN,
}
CORE = ("linear", "slerp", "task_arithmetic", "ties", "breadcrumbs", "model_stock", "karcher",
        "nuslerp, true false about a base", "sce", "ram")  # fmt: skip
# What is largest is counted here, and many elements of bfloat16 models change by the same amount.
CUTS = ("ties", "breadcrumbs")


def recipe(name: str) -> str:
    """The YAML text of a recipe."""
    return f"merge_method: {name.partition(',')[0]}\n{RECIPES[name]}"


def models(described: dict) -> dict[str, dict[str, np.ndarray]]:
    """A base a, models b, c and d that were tuned from it, and one that has nothing in common.

    All tuned models changed in the same direction, each a part of the elements in its own as well.
    None of them changed the first layer's MLP, and d did not change its attention.
    """
    base = tiny_llamas.weights(described, 0)
    found = {"a": base, "far": tiny_llamas.weights(described, 9)}
    for i, size in enumerate((0.015, 0.02, 0.01), start=1):
        random, common = np.random.RandomState(i), np.random.RandomState(20)
        found["abcd"[i]] = tuned = {}
        for name, x in base.items():
            shared, own = (r.standard_normal(x.shape) for r in (common, random))
            changed = random.random_sample(x.shape) < 0.9
            frozen = "layers.0.mlp" in name or (i == 3 and "layers.0.self_attn" in name)
            tuned[name] = x + (0 if frozen else size * (2.5 * shared + own) * changed)
    return found


def golden_keys() -> list[tuple[str, np.dtype]]:
    """What the golden file holds: a recipe's name and the type of its models."""
    both = [(name, dtype) for dtype in (np.dtype(np.float32), BFLOAT16) for name in CORE]
    return [(name, d) for name, d in both if d != BFLOAT16 or not name.startswith(CUTS)]


def save_models(folder: Path, described: dict, dtype) -> None:
    for name, values in models(described).items():
        tiny_llamas.save(folder / name, described, values, dtype)


def theirs(text: str, seed: int | None = None, keep: Path | None = None) -> dict[str, np.ndarray]:
    """What mergekit makes of a recipe whose models lie in the current directory.

    ``keep`` is a folder to leave the merged model in.
    """
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    LoaderCache().loaders.clear()  # models of the same names may have been in another directory
    settings = MergeConfiguration.model_validate(yaml.safe_load(text))
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        options = MergeOptions(
            quiet=True, write_model_card=False, copy_tokenizer=False, random_seed=seed,
            lora_merge_cache=f"{scratch}/adapted",
        )  # fmt: skip
        run_merge(settings, str(folder), options, config_source=text)
        return {name: np.array(x) for name, x in tiny_llamas.read(folder).items()}


def ours(text: str, keep: Path | None = None, **options) -> dict[str, np.ndarray]:
    """What this package makes of it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch, "merged")
        Path(scratch, "recipe.yaml").write_text(text)
        merge_files(Path(scratch, "recipe.yaml"), folder, **options)
        return tiny_llamas.read(folder)


def generate() -> dict[str, np.ndarray]:
    """mergekit's results, ``recipe/type``, all tensors one after another.

    float32 models in float32; bfloat16 models computed in float32, as their bits.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, dtype in golden_keys():
            save_models(Path(), tiny_llamas.config(**SMALL), dtype)
            merged = theirs(f"{recipe(name)}dtype: float32\nout_dtype: {dtype.name}\n")
            flat = np.concatenate([merged[n].reshape(-1) for n in sorted(merged)])
            bits = flat.view(np.uint16) if dtype == BFLOAT16 else flat
            found[f"{name}/{dtype.name}"] = bits
    return found


if __name__ == "__main__":
    os.makedirs(GOLDEN.parent, exist_ok=True)
    sys.exit(np.savez_compressed(GOLDEN, **generate()))
