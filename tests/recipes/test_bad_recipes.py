"""A table of wrong recipes: each is one line that names the file and the key."""

# ruff: noqa: E501

import pytest

from imm_jax.errors import InputError
from imm_jax.recipes import load_recipe, resolve

TIES = "merge_method: ties\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1}}]\n"
LINEAR = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
SOUP = "merge_method: greedy_soup\nmodels: [{model: a}, {model: b}]\nparameters: {task: t}\n"
REGMEAN = SOUP.replace("greedy_soup", "regmean")
ADAMERGING = "merge_method: adamerging\nbase_model: a\nmodels: [{model: b}]\nparameters: {task: t, steps: 2}\n"
SLERP = "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n"
PAIR = "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n"


def della(density, epsilon) -> str:
    given = f"{{weight: 1, density: {density}, epsilon: {epsilon}}}"
    return f"merge_method: della\nbase_model: a\nmodels: [{{model: b}}]\nparameters: {given}\n"


# The name: the file, and what its message begins with and holds.
CASES = {
    "no method": ("models: [{model: a}]", "merge_method: missing, expected a value"),
    "unknown method": (TIES.replace("ties", "tiez"), "merge_method: unknown method 'tiez' (did you mean 'ties'?)"),
    "method of another type": (TIES.replace("ties", "7"), "merge_method: 7 is not valid: input should be a string"),
    "unknown method that asks": (SOUP.replace("soup", "sop"), "merge_method: unknown method 'greedy_sop' (did you mean 'greedy_soup'?)"),
    "no task": (SOUP.replace("task: t", "seed: 1"), "parameters.task: missing, greedy_soup needs it"),
    "no task of a model": (REGMEAN.replace("parameters: {task: t}", "parameters: {}"), "parameters.task: missing for a, regmean needs it"),
    "no steps": (ADAMERGING.replace("steps: 2", "seed: 1"), "parameters.steps: missing, adamerging needs it"),
    "no steps at all": (ADAMERGING.replace("steps: 2", "steps: 0"), "parameters.steps: 0, expected at least 1"),
    "adamerging without a base": (ADAMERGING.replace("base_model: a\n", ""), "base_model: missing, adamerging needs one"),
    "a soup of one": (SOUP.replace(", {model: b}", ""), "models: 1, greedy_soup merges at least 2 models"),
    "a model's own task of a soup": (SOUP.replace("model: a", "model: a, parameters: {task: u}"), "models[0].parameters.task: greedy_soup has one task for all models, expected it under the parameters"),
    "a model's own seed": (REGMEAN.replace("model: a", "model: a, parameters: {seed: 1}"), "models[0].parameters.seed: regmean has one seed for all models"),
    "unknown parameter of the questions": (SOUP.replace("task: t", "task: t, question: 3"), "parameters.question: greedy_soup has no such parameter (did you mean 'questions'?)"),
    "another method's way to ask": (SOUP.replace("task: t", "task: t, alpha: 1"), "parameters.alpha: greedy_soup has no such parameter, expected one of task, questions"),
    "tasks that are a list": (SOUP.replace("task: t", "task: [t, u]"), "parameters.task: ['t', 'u'], expected a word or a file's path for the whole model"),
    "a gradient of alphas": (REGMEAN.replace("task: t", "task: t, alpha: [0, 1]"), "parameters.alpha: [0, 1], expected a number for the whole model"),
    "a filter of alphas": (REGMEAN.replace("task: t", "task: t, alpha: {filter: mlp, value: 1}"), "parameters.alpha: {'filter': 'mlp', 'value': 1}, expected a number for the whole model"),
    "alpha above 1": (REGMEAN.replace("task: t", "task: t, alpha: 2"), "parameters.alpha: 2, expected at least 0 and at most 1"),
    "half a question": (SOUP.replace("task: t", "task: t, questions: 1.5"), "parameters.questions: 1.5, expected a whole number"),
    "no questions": (SOUP.replace("task: t", "task: t, questions: 0"), "parameters.questions: 0, expected at least 1"),
    "no learning rate": (ADAMERGING.replace("steps: 2", "steps: 2, learning_rate: 0"), "parameters.learning_rate: 0, expected above 0"),
    "another split": (SOUP.replace("task: t", "task: t, split: tset"), "parameters.split: 'tset', expected train or test (did you mean 'test'?)"),
    "other labels": (REGMEAN.replace("regmean", "fisher").replace("task: t", "task: t, labels: gold"), "parameters.labels: 'gold', expected solutions or samples"),
    "a task and files": (REGMEAN.replace("regmean", "fisher").replace("task: t", "task: t, fisher: f"), "parameters.fisher: found beside task, expected files of Fisher information or a task"),
    "questions without a task": (REGMEAN.replace("regmean", "fisher").replace("task: t", "questions: 3"), "parameters.task: missing for a, fisher needs it"),
    "the length of answers that are not drawn": (REGMEAN.replace("regmean", "fisher").replace("task: t", "task: t, max_new_tokens: 3"), "parameters.max_new_tokens: of the answers that labels: samples draws"),
    "slices that are asked": ("merge_method: regmean\nparameters: {task: t}\nslices:\n" + PAIR, "slices: regmean merges whole models, expected models"),
    "a tokenizer of those asked": (SOUP + "tokenizer_source: union", "tokenizer: greedy_soup merges whole models that have one vocabulary"),
    "unknown key": (TIES + "dtpye: float32", "unknown key dtpye (did you mean 'dtype'?)"),
    "unknown key of a model": (TIES.replace("parameters", "paramters"), "models[0]: unknown key paramters (did you mean 'parameters'?)"),
    "unknown key of a slice": (SLERP + PAIR + "    parameter: {}", "slices[0]: unknown key parameter (did you mean 'parameters'?)"),
    "unknown key of a source": (SLERP + PAIR.replace("layer_range: [0, 2]}]", "layers: [0, 2]}]"), "slices[0].sources[1]: unknown key layers"),
    "a key twice": (TIES + "base_model: b", "the key base_model (line 4) is there twice"),
    "a list of nothing": ("merge_method: ties\nbase_model: a\nmodels: []", "models: expected one of models, slices and modules, found none of them"),
    "models and slices": (TIES + "slices:\n" + PAIR, "slices: expected one of models, slices and modules, found models and slices"),
    "models that are names": ("merge_method: linear\nmodels: [a, b]", "models[0]: expected a mapping of keys, found str"),
    "models that are one": ("merge_method: linear\nmodels: a", "models: 'a' is not valid: input should be a list"),
    "two modules": ("merge_method: linear\nmodules: {default: {models: [{model: a}]}, vision: {}}", "modules: default, vision, expected default or text_decoder alone"),
    "a vision module": ("merge_method: linear\nmodules: {vision_tower: {models: [{model: a}]}}", "modules: vision_tower, expected default or text_decoder alone"),
    "an empty module": ("merge_method: linear\nmodules: {default: {}}", "modules.default.models: expected one of models and slices, found none of them"),
    "two adapters": (TIES.replace("model: b", "model: b+c+d"), "models[0].model: 'b+c+d', expected a path or hub id, perhaps with @revision, and perhaps a LoRA adapter behind a +"),
    "an adapter of nothing": (TIES.replace("model: b", "model: +c"), "models[0].model: '+c', expected a path or hub id"),
    "no adapter behind a plus": (TIES.replace("model: b", "model: b+"), "models[0].model: '', expected a path or hub id"),
    "two revisions": (TIES.replace("model: b", "model: b@1@2"), "models[0].model: 'b@1@2', expected a path or hub id, perhaps with @revision"),
    "no model": (TIES.replace("base_model: a", "base_model: ''"), "base_model: '', expected a path or hub id"),
    "a model twice": (TIES.replace("[{", "[{model: b}, {"), "models[1].model: b is there twice, expected it once"),
    "no base": (TIES.replace("base_model: a\n", ""), "base_model: missing, ties needs one"),
    "only a base": (TIES.replace("base_model: a", "base_model: b"), "models: 0, ties merges at least 1 models besides the base"),
    "too many models": (SLERP.replace("slices:\n", "models: [{model: b}, {model: c}]"), "models: 2, slerp merges 1 models besides the base"),
    "a base that counts": ("merge_method: passthrough\nbase_model: a\nmodels: [{model: b}]", "models: 2, passthrough merges 1 models (base_model a counts as one, as in mergekit)"),
    "too few models": ("merge_method: model_stock\nbase_model: a\nmodels: [{model: b}]", "models: 1, model_stock merges at least 2 models besides the base"),
    "a slice without the base": (SLERP + PAIR.replace("model: a", "model: c"), "slices[0].sources: base_model a is not among them, and slerp needs its layers"),
    "no layer range": (SLERP + PAIR.replace(", layer_range: [0, 2]}]", "}]"), "slices[0].sources[1].layer_range: missing, expected a value"),
    "layers backwards": (SLERP + PAIR.replace("[0, 2]", "[2, 0]"), "slices[0].sources[0].layer_range: [2, 0], expected the first layer and the one after the last"),
    "no layers": (SLERP + PAIR.replace("[0, 2]", "[2, 2]"), "slices[0].sources[0].layer_range: [2, 2], expected"),
    "layers before the first": (SLERP + PAIR.replace("[0, 2]", "[-1, 1]"), "slices[0].sources[0].layer_range: [-1, 1], expected"),
    "half a layer": (SLERP + PAIR.replace("[0, 2]", "[0, 2.5]"), "slices[0].sources[0].layer_range[1]: 2.5 is not valid: input should be a whole number"),
    "three numbers": (SLERP + PAIR.replace("[0, 2]", "[0, 2, 4]"), "slices[0].sources[0].layer_range: [0, 2, 4] is not valid: list should have at most 2 items"),
    "unequal slices": (SLERP + PAIR + PAIR.replace("[0, 2]}]", "[0, 3]}]"), "slices[1].sources[1].layer_range: [0, 3] are 3 layers, expected 2"),
    "no sources": (SLERP + "  - sources: []", "slices[0].sources: [] is not valid: list should have at least 1 item"),
    "residual weight": (SLERP + PAIR + "    residual_weight: 0.5", "slices[0].residual_weight: not supported"),
    "unknown parameter": (TIES + "parameters: {dense: 0.1}", "parameters.dense: ties has no such parameter (did you mean 'density'?)"),
    "another method's parameter for one of our own": (TIES.replace("ties", "wise_ft").replace("weight: 1", "gamma: 1"), "models[0].parameters.gamma: wise_ft has no such parameter, expected one of alpha"),
    "a switch for a number of questions": (SOUP.replace("task: t", "task: t, questions: true"), "parameters.questions: True, expected a whole number"),
    "a name that is no path": (TIES.replace("model: b", "model: {pth: b}"), "models[0].model: unknown key pth (did you mean 'path'?)"),
    "an adapter by another key": (TIES.replace("model: b", "model: {model: b, adapter: {path: c}}"), "models[0].model: unknown key adapter"),
    "another architecture": (TIES.replace("model: b", "model: {model: b, override_architecture: X}"), "models[0].model: unknown key override_architecture"),
    "parameters that are a list": (TIES + "parameters: [1]", "parameters: [1] is not valid: input should be a mapping"),
    "no weight": (TIES.replace("weight: 1", "density: 1"), "parameters.weight: missing for b, ties needs it"),
    "no weight of a base that counts": (LINEAR.replace("\nparameters: {weight: 1}", "\nbase_model: c").replace("a}", "a, parameters: {weight: 1}}").replace("b}", "b, parameters: {weight: 1}}"), "parameters.weight: missing for c (the base_model, merged like the others), linear needs it"),
    "no t": (SLERP.replace("parameters: {t: 0.5}\n", "") + PAIR, "parameters.t: missing, slerp needs it"),
    "no fisher": ("merge_method: fisher\nmodels: [{model: a}, {model: b}]", "parameters.fisher: missing for a, fisher needs it"),
    "a word for a number": (TIES.replace("weight: 1", "weight: heavy"), "models[0].parameters.weight: 'heavy', expected a number"),
    "nothing for a number": (TIES.replace("weight: 1", "weight:"), "models[0].parameters.weight: None, expected a number"),
    "not a number": (TIES.replace("weight: 1", "weight: .nan"), "models[0].parameters.weight: nan, expected a finite number"),
    "a number for a switch": (TIES + "parameters: {normalize: 2}", "parameters.normalize: 2, expected true or false"),
    "half an iteration": ("merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 2.5}", "parameters.max_iter: 2.5, expected a whole number"),
    "half an iteration between": ("merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: [1, x]}", "parameters.max_iter[1]: 'x', expected a whole number"),
    "a number for a file": ("merge_method: fisher\nmodels: [{model: a, parameters: {fisher: 1}}, {model: b}]", "models[0].parameters.fisher: 1, expected a word or a file's path"),
    "an empty gradient": (TIES.replace("weight: 1", "weight: []"), "models[0].parameters.weight: an empty list, expected at least one value"),
    "a gradient with a word": (TIES.replace("weight: 1", "weight: [1, x]"), "models[0].parameters.weight[1]: 'x', expected a number"),
    "a filter without a value": (TIES.replace("weight: 1", "weight: [{filter: mlp}]"), "models[0].parameters.weight[0]: {'filter': 'mlp'} is not valid: expected {filter, value}"),
    "a filter with more": (TIES.replace("weight: 1", "weight: {filter: mlp, value: 1, valu: 2}"), "models[0].parameters.weight: {'filter': 'mlp', 'value': 1, 'valu': 2} is not valid: expected {filter, value}"),
    "a filter that is a number": (TIES.replace("weight: 1", "weight: {filter: 1, value: 1}"), "models[0].parameters.weight.filter: 1, expected a part of tensors' names"),
    "numbers and filters": (TIES.replace("weight: 1", "weight: [{filter: mlp, value: 1}, 2]"), "models[0].parameters.weight[1]: 2 is not valid: expected {filter, value}"),
    "a filtered value of another type": (TIES.replace("weight: 1", "weight: [{filter: mlp, value: [0, x]}]"), "models[0].parameters.weight[0].value[1]: 'x', expected a number"),
    "density above 1": (TIES + "parameters: {density: 1.5}", "parameters.density: 1.5, expected at least 0 and at most 1"),
    "density below 0": (TIES + "parameters: {density: [0.5, -0.1]}", "parameters.density[1]: -0.1, expected at least 0 and at most 1"),
    "gamma above 1": (TIES.replace("ties", "breadcrumbs") + "parameters: {gamma: 2}", "parameters.gamma: 2, expected at least 0 and at most 1"),
    "select_topk above 1": ("merge_method: sce\nbase_model: a\nmodels: [{model: b}]\nparameters: {select_topk: 2}", "parameters.select_topk: 2, expected at least 0 and at most 1"),
    "epsilon below 0": (della(0.5, -0.1), "parameters.epsilon: -0.1, expected at least 0"),
    "epsilon too wide": (della(0.9, 0.2), "parameters.epsilon: 0.2 with density 0.9 for all tensors, expected density - epsilon above 0 and density + epsilon below 1"),
    "epsilon too wide in the last layer": (della("[0.5, 0.1]", 0.2), "parameters.epsilon: 0.2 with density 0.1"),
    "weights that sum to 0": (LINEAR.replace("b}", "b, parameters: {weight: -1}}"), "parameters.weight: [1.0, -1.0] sum to 0 for all tensors, expected another sum or normalize: false"),
    "weights that sum to 0 in the last layer": (LINEAR.replace("b}", "b, parameters: {weight: [1, -1]}}"), "parameters.weight: [1.0, -1.0] sum to 0"),
    "float64": (TIES + "dtype: float64", "dtype: 'float64', expected bfloat16, float16 or float32"),
    "int8": (TIES + "out_dtype: int8", "out_dtype: 'int8', expected bfloat16, float16 or float32"),
    "two tokenizers": (TIES + "tokenizer: {source: base}\ntokenizer_source: base", "tokenizer_source: expected either it or tokenizer, found both"),
    "unknown key of the tokenizer": (TIES + "tokenizer: {sorce: base}", "tokenizer: unknown key sorce (did you mean 'source'?)"),
    "padding to nothing": (TIES + "tokenizer: {pad_to_multiple_of: 0}", "tokenizer.pad_to_multiple_of: 0 is not valid: input should be greater than or equal to 1"),
    "a token without a source": (TIES + "tokenizer: {tokens: {<x>: {force: true}}}", "tokenizer.tokens.<x>.source: missing, expected a value"),
    "a token of another kind": (TIES + "tokenizer: {tokens: {<x>: {source: {kind: one}}}}", "tokenizer.tokens.<x>.source.kind: 'one' is not valid: input should be 'zero' or 'model_token'"),
    "a token of no token": (TIES + "tokenizer: {tokens: {<x>: {source: {kind: model_token, model: b}}}}", "tokenizer.tokens.<x>.source: expected one of token and token_id"),
    "a token of no model": (TIES + "tokenizer: {tokens: {<x>: {source: {kind: model_token, token: y}}}}", "tokenizer.tokens.<x>.source.model: missing"),
    "a zero of a model": (TIES + "tokenizer: {tokens: {<x>: {source: {kind: zero, model: b}}}}", "tokenizer.tokens.<x>.source: a zero embedding has no model and no token"),
    "a token of a model that is not merged": (TIES + "tokenizer: {tokens: {<x>: {source: c}}}", "tokenizer.tokens.<x>.source: c is none of the merged models"),
    "a template of mergekit's": (TIES + "chat_template: chatml", "chat_template: mergekit's own template 'chatml' is not included"),
    "a template that is none": (TIES + "chat_template: atuo", "chat_template: 'atuo', expected a Jinja template, or auto (did you mean 'auto'?)"),
    "not a mapping": ("- ties", "expected a mapping of keys, found list"),
    "not YAML": ("merge_method: [ties", "not valid YAML at line 1"),
}  # fmt: skip


@pytest.fixture
def refused(tmp_path):
    """``refused(text)`` gives the message, once what holds of every message is checked."""

    def check(text: str) -> str:
        path = tmp_path / "merge.yaml"
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            load_recipe(path)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 400
        assert message.count(str(path)) == 1
        return message.removeprefix(f"{path}: ")

    return check


@pytest.mark.parametrize("name", CASES)
def test_wrong_recipe(name, refused):
    text, begins = CASES[name]
    assert refused(text).startswith(begins)


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "none.yaml"
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(path)


# Which tensors there are shows only later: the same checks for each of them.
LATER = {
    "no weight for some tensors": (
        TIES.replace("weight: 1", "weight: [{filter: mlp, value: 1}]"),
        "parameters.weight: missing for b for model.norm.weight, ties needs it",
    ),
    "no t for some tensors": (
        SLERP.replace("0.5", "{filter: mlp, value: 1}") + PAIR,
        "parameters.t: missing for model.norm.weight, slerp needs it",
    ),
    "epsilon too wide for some tensors": (
        della("[{filter: norm, value: 0.9}, {value: 0.5}]", 0.2),
        "parameters.epsilon: 0.2 with density 0.9 for model.norm.weight",
    ),
    "weights that sum to 0 for some tensors": (
        LINEAR.replace("b}", "b, parameters: {weight: [{filter: norm, value: -1}, {value: 1}]}}"),
        "parameters.weight: [1.0, -1.0] sum to 0 for model.norm.weight",
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_wrong_for_a_tensor(name, tmp_path):
    text, begins = LATER[name]
    path = tmp_path / "merge.yaml"
    path.write_text(text)
    recipe = load_recipe(path)
    names = ["model.layers.0.mlp.up_proj.weight"] * 2
    assert resolve(recipe, recipe.slices[0], names[0], names, 0.5)
    with pytest.raises(InputError) as caught:
        resolve(recipe, recipe.slices[0], "model.norm.weight", ["model.norm.weight"] * 2, 0.5)
    assert str(caught.value).startswith(f"{path}: {begins}")


def test_a_gradient_of_whole_numbers_that_gives_none(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("merge_method: karcher\nmodels: [{model: a}, {model: b}]\n"
                    "parameters: {max_iter: [1, 2]}")  # fmt: skip
    recipe = load_recipe(path)
    assert resolve(recipe, recipe.slices[0], "x", "xx", 1).shared["max_iter"] == 2
    with pytest.raises(
        InputError, match=r"parameters.max_iter: 1.5 for x, expected a whole number"
    ):
        resolve(recipe, recipe.slices[0], "x", "xx", 0.5)


def test_a_layer_alone_has_the_last_depth_only(tmp_path):
    """Weights that would sum to 0 at a depth that does not occur are no mistake."""
    one = "sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]"
    inner = one.replace("b, ", "b, parameters: {weight: [-1, 1]}, ")
    text = "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
    path = tmp_path / "merge.yaml"
    path.write_text(text + "".join(f"  - {{{s}}}\n" for s in (one, inner, one)))
    assert len(load_recipe(path).slices) == 3
    path.write_text(text + "".join(f"  - {{{s}}}\n" for s in (one, one, inner)))
    with pytest.raises(InputError, match="sum to 0"):
        load_recipe(path)
