"""What mergekit makes of some recipes; ``python mergekit_recipes.py`` writes the golden file.

Runs where mergekit 0.1.5 is installed, with its planner and its models on disk: small Llamas of
which only the number of layers matters.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "mergekit_recipes.json"
LAYERS = {"a": 4, "b": 4, "c": 4, "d": 6}
# In these tensors every filter, depth and kind of tensor occurs that the recipes distinguish.
KEPT = ("embed_tokens", "model.norm", "lm_head", "self_attn.q_proj", "mlp.down_proj")

RECIPES = {
    "task_arithmetic": """
merge_method: task_arithmetic
base_model: a
models:
  - {model: a, parameters: {weight: 9}}
  - {model: b, parameters: {weight: 0.25}}
  - {model: c, parameters: {weight: "1e-3", density: 0.5}}
parameters: {lambda: 0.5, int8_mask: true}
dtype: float32
""",
    "ties with gradients and filters": """
merge_method: ties
base_model: a
models:
  - model: b
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: c
    parameters:
      density: 0.33
      weight:
        - {filter: mlp, value: 0.5}
        - {value: 0}
parameters: {normalize: true}
""",
    "ties with defaults": """
merge_method: ties
base_model: a
models: [{model: b}, {model: c}]
parameters: {weight: [0, 1]}
""",
    "filters fall through": """
merge_method: dare_ties
base_model: a
models:
  - model: b
    parameters:
      weight: {filter: q_proj, value: [0.1, 0.2, 0.9]}
      density: [{filter: layers.0., value: 0.3}]
  - model: c
parameters:
  weight: [{filter: mlp, value: 3}, {filter: "*", value: 4}, {filter: embed, value: 5}]
  rescale: ["true", false, "no"]
  normalize: [{filter: lm_head, value: 1}]
""",
    "dare_linear": """
merge_method: dare_linear
base_model: a
models: [{model: c, parameters: {weight: 0.3}}, {model: b, parameters: {weight: -0.3}}]
parameters: {density: "0.4"}
""",
    "della": """
merge_method: della
base_model: a
models: [{model: b, parameters: {epsilon: [0.1, 0.3, 0.2], density: 0.6}}, {model: c}]
parameters: {weight: 1, lambda: [1, 2]}
""",
    "della_linear": """
merge_method: della_linear
base_model: a
models: [{model: b}]
parameters: {weight: 1}
""",
    "breadcrumbs": """
merge_method: breadcrumbs
base_model: a
models: [{model: b, parameters: {gamma: 0.05}}, {model: c}]
parameters: {weight: 1, density: 0.9, rescale: false}
""",
    "breadcrumbs_ties": """
merge_method: breadcrumbs_ties
base_model: a
models: [{model: b}, {model: c}]
parameters: {weight: {value: 2}}
""",
    "linear": """
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: {filter: self_attn, value: 2}}}
parameters: {weight: 0.5}
""",
    "linear counts a base": """
merge_method: linear
base_model: c
models: [{model: a, parameters: {weight: 1}}]
parameters: {weight: 0.5, normalize: false}
""",
    "slerp": """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.5}
""",
    "slices have parameters": """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 2]}, {model: d, layer_range: [3, 5]}]
    parameters: {t: [{filter: mlp, value: [0.25, 0.75]}]}
  - sources: [{model: c, layer_range: [2, 3]}, {model: b, layer_range: [3, 4]}]
    base_model: b
    parameters: {t: [0.2, 0.4]}
parameters: {t: 0.9}
""",
    "passthrough": """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources:
      - model: d
        layer_range: [2, 5]
        parameters: {scale: [{filter: down_proj, value: 0}, {filter: q_proj, value: [1, 2]}]}
""",
    "one module": """
merge_method: linear
modules:
  default:
    slices:
      - sources:
          - {model: a, layer_range: [0, 4], parameters: {weight: [{filter: q_proj, value: 1}]}}
          - {model: d, layer_range: [1, 5], parameters: {weight: [{filter: layers.2., value: 7}]}}
        parameters: {weight: [{filter: down_proj, value: 2}]}
    parameters: {weight: [{filter: embed, value: 3}]}
parameters: {weight: 4, normalize: [{filter: norm, value: 0}, {filter: layers.3., value: 0}]}
""",
    "nuslerp": """
merge_method: nuslerp
base_model: a
models: [{model: b, parameters: {weight: 0.2}}, {model: c, parameters: {weight: 0.8}}]
parameters: {nuslerp_row_wise: true}
""",
    "nuslerp without a base": """
merge_method: nuslerp
models: [{model: b, parameters: {weight: 0.2}}, {model: c, parameters: {weight: 0.8}}]
""",
    "multislerp": """
merge_method: multislerp
models: [{model: b}, {model: c}, {model: a}]
parameters: {weight: 1, eps: 1e-6}
""",
    "karcher counts a base": """
merge_method: karcher
base_model: a
models: [{model: b}, {model: c}]
parameters: {max_iter: "20"}
""",
    "model_stock": """
merge_method: model_stock
base_model: a
models: [{model: b}, {model: c}]
""",
    "sce": """
merge_method: sce
base_model: a
models: [{model: b}, {model: c}]
parameters: {select_topk: [0.1, 0.2]}
""",
    "nearswap": """
merge_method: nearswap
base_model: a
models: [{model: a}, {model: b}]
parameters: {t: 1e-4}
""",
    "arcee_fusion": """
merge_method: arcee_fusion
base_model: a
models: [{model: b}]
""",
    "ram": """
merge_method: ram
base_model: a
models: [{model: b}, {model: c}]
""",
    "ramplus_tl": """
merge_method: ramplus_tl
base_model: a
models: [{model: b}, {model: c}]
parameters: {r: 0.2, epsilon: 1.0e-6}
""",
}


def save_models(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1, "vocab_size": 8}
    for name, layers in LAYERS.items():
        config = LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=False, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder / name)


def resolved(text: str) -> list[dict]:
    """Each tensor's parameters as the planner finds them, by the order of its models.

    A record: the slice's index, the depth, the name of the output, the models and the names in
    them (only where one is another), the shared parameters, and those of each model.
    """
    import mergekit.plan as plan
    import yaml
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions

    found, slices = [], []
    original = plan.resolve_parameters

    def record(spec, *, tensor_name, inputs, sources, base_model=None, t=0):
        shared, each = original(
            spec, tensor_name=tensor_name, inputs=inputs, sources=sources,
            base_model=base_model, t=t,
        )  # fmt: skip
        part = sources.__self__.slice_out
        if not any(part is known for known in slices):
            slices.append(part)
        index = next(i for i, known in enumerate(slices) if part is known)
        if any(kept in tensor_name for kept in KEPT):
            models, names = [str(m) for m in inputs], list(inputs.values())
            names = [] if set(names) == {tensor_name} else names
            own = [each[m] for m in inputs]
            found.append([index, t, tensor_name, models, names, shared, own])
        return shared, each

    plan.resolve_parameters = record
    try:
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        options = MergeOptions()
        arch = get_architecture_info(config, options)
        out = _model_out_config(config, arch)
        plan.MergePlanner(config, arch, options, out)._plan()
    finally:
        plan.resolve_parameters = original
    return found


def specs() -> dict:
    """Every method's parameters and how many models it takes."""
    from mergekit.merge_methods import registered_methods

    table = {}
    for method in registered_methods():
        spec, contract = method.spec, method.spec.contract
        table[spec.name] = {
            "base": contract.base.value,
            "inputs": [contract.min_inputs, contract.max_inputs],
            "non_base": [contract.min_non_base, contract.max_non_base],
            "parameters": {
                p.name: [
                    getattr(p.value_type, "__name__", str(p.value_type)),
                    p.scope.value,
                    "required" if p.required else p.default,
                ]
                for p in spec.parameters
            },
        }
    return table


def generate() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            save_models(Path(folder))
            recipes = {name: resolved(text) for name, text in RECIPES.items()}
        finally:
            os.chdir(before)
    return json.loads(json.dumps({"specs": specs(), "recipes": recipes}))


def write() -> None:
    golden = generate()
    lines = [f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(r) for r in rows) + "]"
             for name, rows in golden["recipes"].items()]  # fmt: skip
    GOLDEN.parent.mkdir(exist_ok=True)
    text = '{"specs": ' + json.dumps(golden["specs"]) + ',\n"recipes": {' + ",\n".join(lines)
    GOLDEN.write_text(text + "}}\n")


if __name__ == "__main__":
    sys.exit(write())
