"""A table of wrong merges of files: one case a line where it fits."""

# ruff: noqa: E501

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.recipes.model_folders import EMBED, HEAD, LINEAR, Q
from tests.wrong_inputs import Case, case, delete, edit_bytes, edit_json, write

MERGE = ("merge", "recipe.yaml", "out")
FROM = ("merge", "base", "--output", "out", "--from", "checkpoint")
PLACE = Q.format(1)
SHARD = "one/model-00002-of-00003.safetensors"
TWO = LINEAR.replace("model: one", "model: two")
FISHER = """
merge_method: fisher
models:
  - {model: base, parameters: {fisher: f.safetensors}}
  - {model: two, parameters: {fisher: f.safetensors}}
"""
SOUP = """
merge_method: greedy_soup
models: [{model: base}, {model: two}]
parameters: {task: "builtin:one_step", questions: 2, style: plain, max_new_tokens: 8}
"""
REGMEAN = SOUP.replace("greedy_soup", "regmean").replace(", max_new_tokens: 8", "")
FISHER_OF_TASK = REGMEAN.replace("regmean", "fisher")
SLICES = """
merge_method: linear
slices:
  - sources:
    - {model: base, layer_range: [0, 2], parameters: {weight: 1}}
    - {model: two, layer_range: [0, 2], parameters: {weight: 1}}
"""


def recipe(text: str, *more):
    """Another recipe, and further mistakes."""

    def spoil(folder: Path) -> None:
        (folder / "recipe.yaml").write_text(text)
        for also in more:
            also(folder)

    return spoil


def tensors_of(file: str, change):
    """Changes the dictionary of tensors of a file."""

    def spoil(folder: Path) -> None:
        tensors = {n: np.array(x) for n, x in load_file(folder / file).items()}
        change(tensors)
        save_file(tensors, folder / file)

    return spoil


def two(change):
    """Changes the model that lies in one file, and merges it."""
    return recipe(TWO, tensors_of("two/model.safetensors", change))


def stored_as(dtype):
    return two(lambda t: t.update({PLACE: t[PLACE].astype(dtype)}))


def config(model: str, **changes):
    return edit_json(f"{model}/config.json", lambda data: data.update(changes))


def number(value):
    return lambda t: t[PLACE].__setitem__((5, 7), value)


def fisher(change=lambda t: None):
    """Fisher information of the models, but for a mistake."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "two/model.safetensors")
        tensors = {n: np.ones_like(x) for n, x in tensors.items()}
        change(tensors)
        save_file(tensors, folder / "f.safetensors")

    return recipe(FISHER, spoil)


def no_tokenizer(model: str):
    def spoil(folder: Path) -> None:
        for path in (folder / model).glob("*token*"):
            path.unlink()

    return spoil


def one_more_token(folder: Path) -> None:
    token = {"id": 320, "content": "<|more|>", "special": True, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    edit_json("base/tokenizer.json", lambda data: data["added_tokens"].append(token))(folder)


def longer(folder: Path) -> None:
    """A model with ten more tokens."""
    add = lambda x: np.concatenate([x, x[:10]])
    tensors_of("two/model.safetensors", lambda t: t.update({n: add(t[n]) for n in (EMBED, HEAD)}))(
        folder
    )
    config("two", vocab_size=330)(folder)


def asked_two(change):
    """Changes the model that lies in one file, and merges it after questions."""
    return recipe(SOUP, tensors_of("two/model.safetensors", change))


def only_bin(folder: Path) -> None:
    (folder / "two/model.safetensors").rename(folder / "two/pytorch_model.bin")


def no_tensors(folder: Path) -> None:
    save_file({}, folder / "two/model.safetensors")


def damaged(folder: Path) -> None:
    data = max((folder / "checkpoint").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    *rest, last = data.read_bytes()
    data.write_bytes(bytes([*rest, last ^ 1]))


def of_others(folder: Path) -> None:
    """A checkpoint of a model with other layers."""
    shutil.rmtree(folder / "checkpoint")
    shutil.copytree(folder / "another", folder / "checkpoint")


def foreign_files(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/thesis.tex").write_text("years of work")


COMMANDS = {
    "no output": case(MERGE[:2], "merge: no output folder, expected imm-jax merge RECIPE.yaml FOLDER"),
    "two outputs": case((*MERGE, "--output", "other"), "out and --output other: expected one output folder"),
    "output and tuned": case((*MERGE, "more"), "unrecognized arguments: more"),
    "weight": case((*MERGE, "--weight", "0.5"), "--weight: not for a recipe, expected it in recipe.yaml"),
    "drop rate": case((*MERGE, "--drop-rate", "0"), "--drop-rate: not for a recipe"),
    "from": case((*MERGE, "--from", "checkpoint"), "--from: not for a recipe"),
    "no size": case((*MERGE, "--out-shard-size", "0"), "--out-shard-size: '0', expected a size such as 500M or 5B"),
    "size of an unknown unit": case((*MERGE, "--out-shard-size", "5Q"), "--out-shard-size: '5Q', expected a size"),
    "negative size": case((*MERGE, "--out-shard-size", "-5M"), "--out-shard-size"),
    "size of a part": case((*MERGE, "--out-shard-size", "1.5B"), "'1.5B', expected a size"),
    "seed": case((*MERGE, "--seed", "x"), "--seed: 'x', expected a whole number"),
    "untie of a pair": case(("merge", "base", "one", "--output", "out", "--untie"), "--untie, --truncate-vocabulary: for a recipe"),
    "tuned twice": case((*FROM, "one"), "expected one tuned model: a second model, or --from CHECKPOINT"),
}  # fmt: skip

RECIPES = {
    "no such file": case(("merge", "nowhere.yaml", "out"), "nowhere.yaml: cannot be read (No such file"),
    "a folder": case(("merge", "a.yaml", "out"), "a.yaml: cannot be read (Is a directory", spoil=lambda f: (f / "a.yaml").mkdir()),
    "bad YAML": case(MERGE, "recipe.yaml: not valid YAML at line 2", spoil=recipe("models:\n\t- model: base\n")),
    "not UTF-8": case(MERGE, "recipe.yaml: not UTF-8 text", spoil=write("recipe.yaml", b"merge_method: \xff")),
    "unknown key": case(MERGE, "recipe.yaml: unknown key dtpye (did you mean 'dtype'?)", spoil=recipe(LINEAR.replace("dtype", "dtpye"))),
    "unknown method": case(MERGE, "merge_method: unknown method 'linaer' (did you mean 'linear'?)", spoil=recipe(LINEAR.replace("linear", "linaer"))),
    "unknown parameter": case(MERGE, "models[1].parameters.wieght: linear has no such parameter (did you mean 'weight'?)", spoil=recipe(LINEAR.replace("weight: 3", "wieght: 3"))),
    "weights that cancel": case(MERGE, "sum to 0", spoil=recipe(LINEAR.replace("weight: 3", "weight: -1"))),
    "weights that cancel in one tensor": case(MERGE, f"parameters.weight: [1.0, -1.0] sum to 0 for {PLACE}", spoil=recipe(LINEAR.replace("weight: 3", f"weight: [{{filter: {PLACE}, value: -1}}, {{value: 1}}]"))),
    "weight missing for some tensors": case(MERGE, "parameters.weight: missing for one for model.embed_tokens", spoil=recipe(LINEAR.replace("weight: 3", "weight: {filter: mlp, value: 1}"))),
    "past the last layer": case(MERGE, "recipe.yaml: layer_range [2, 4] of base: it has 3 layers", spoil=recipe(SLICES.replace("[0, 2]", "[2, 4]"))),
    "slices of different lengths": case(MERGE, "sources[1].layer_range: [1, 2] are 1 layers, expected 2", spoil=recipe(SLICES.replace("two, layer_range: [0, 2]", "two, layer_range: [1, 2]"))),
}  # fmt: skip

MODELS = {
    "no such model": case(MERGE, "nowhere: no such folder or file", spoil=recipe(LINEAR.replace("one", "nowhere"))),
    "revision of a folder": case(MERGE, "one: revision 'main' is for hub ids only", spoil=recipe(LINEAR.replace("model: one", "model: one@main"))),
    "GGUF": case(MERGE, "model.gguf: a GGUF file, expected a model folder", "imm-jax convert", spoil=recipe(LINEAR.replace("model: one", "model: model.gguf"), write("model.gguf", b"GGUF"))),
    "no config": case(MERGE, "one: a model folder needs a config.json", spoil=delete("one/config.json")),
    "config is no JSON": case(MERGE, "one/config.json: not valid JSON", spoil=write("one/config.json", "{")),
    "only a pickle": case(MERGE, "two: no model.safetensors", "pickled weights are never read", spoil=recipe(TWO, only_bin)),
    "missing shard": case(MERGE, "one/model.safetensors.index.json: ", "but there is no such file", spoil=delete(SHARD)),
    "truncated": case(MERGE, f"{SHARD}: truncated", spoil=edit_bytes(SHARD, lambda b: b[:-9])),
    "cut in the header": case(MERGE, f"{SHARD}: its first bytes announce", spoil=edit_bytes(SHARD, lambda b: b[:99])),
    "empty file": case(MERGE, f"{SHARD}: 0 bytes", spoil=write(SHARD, b"")),
    "no tensors": case(MERGE, "two: its weight files hold no tensors", spoil=recipe(TWO, no_tensors)),
    "missing tensor": case(MERGE, f"two: tensors are missing: {PLACE}", spoil=two(lambda t: t.pop(PLACE))),
    "missing everywhere": case(MERGE, "two: tensors are missing that ", "layers.*.mlp.up_proj.weight", spoil=two(lambda t: [t.pop(n) for n in list(t) if "up_proj" in n])),
    "missing layer": case(MERGE, "two: has tensors of layer 2, but none of layer 1", spoil=two(lambda t: [t.pop(n) for n in list(t) if "layers.1." in n])),
    "layer far away": case(MERGE, "two: has tensors of layer 999999999999, but none of layer 3", spoil=two(lambda t: t.update({"model.layers.999999999999.x": np.ones(2, np.float32)}))),
    "fewer layers": case(MERGE, "two has 2 layers, but base 3", spoil=two(lambda t: [t.pop(n) for n in list(t) if "layers.2." in n])),
    "extra tensor": case(MERGE, "two: tensors that ", "does not have: model.extra", spoil=two(lambda t: t.update({"model.extra": np.ones(3, np.float32)}))),
    "extra bias": case(MERGE, "does not have: model.layers.*.self_attn.q_proj.bias", spoil=two(lambda t: t.update({PLACE.replace("weight", "bias"): np.ones(32, np.float32)}))),
    "shape": case(MERGE, f"model.safetensors: tensor {PLACE} has shape [32, 31], but {PLACE} in ", "[32, 32]", spoil=two(lambda t: t.update({PLACE: t[PLACE][:, 1:].copy()}))),
    "architecture": case(MERGE, "one/config.json: hidden_act is 'gelu', but 'silu' in ", "different architectures", spoil=config("one", hidden_act="gelu")),
    "family": case(MERGE, "one/config.json: model_type is 'mistral', but 'llama'", spoil=config("one", model_type="mistral")),
    "rope": case(MERGE, "one/config.json: rope_parameters is {'rope_theta': 7.0", spoil=config("one", rope_parameters={"rope_theta": 7.0, "rope_type": "default"})),
    "one is tied": case(MERGE, "tied ties its head to the embedding (tie_word_embeddings) and ", "--untie", spoil=recipe(LINEAR.replace("one", "tied"))),
    "tied with another head": case(MERGE, f"tensor {HEAD} differs from {EMBED}, but the config says tie_word_embeddings", spoil=recipe(LINEAR.replace("base", "tied").replace("model: one", "model: two"), config("two", tie_word_embeddings=True))),
    "vocabularies": case(MERGE, f"{EMBED}: vocabularies of different sizes: 320 in ", "330 in ", "tokenizer_source", "--truncate-vocabulary", spoil=recipe(TWO, longer)),
    "NaN": case(MERGE, f"two/model.safetensors: tensor {PLACE} has NaN or infinite values", spoil=two(number(np.nan)), reads_weights=True),
    "infinity": case(MERGE, f"tensor {PLACE} has NaN or infinite values", spoil=two(number(-np.inf)), reads_weights=True),
    "NaN in float16": case(MERGE, f"tensor {PLACE} has NaN", spoil=two(lambda t: (t.update({PLACE: t[PLACE].astype(np.float16)}), number(np.nan)(t))), reads_weights=True),
    "infinity in bfloat16": case(MERGE, f"tensor {PLACE} has NaN", spoil=two(lambda t: (t.update({PLACE: t[PLACE].astype(ml_dtypes.bfloat16)}), number(np.inf)(t))), reads_weights=True),
    "too large for the type": case(MERGE, "recipe.yaml: tensor ", "would have values that float16 cannot hold", spoil=recipe(LINEAR.replace("dtype: float32", "out_dtype: float16\nparameters: {normalize: false}").replace("weight: 3", "weight: 1e30")), reads_weights=True),
    "doubles": case(MERGE, f"tensor {PLACE} is stored as F64", "expected one of F32, F16, BF16", spoil=stored_as(np.float64)),
    "integers": case(MERGE, f"tensor {PLACE} is stored as I64, which cannot be merged", spoil=stored_as(np.int64)),
    "bytes": case(MERGE, f"tensor {PLACE} is stored as I8", spoil=stored_as(np.int8)),
    "fp8": case(MERGE, f"tensor {PLACE} is stored as F8_E4M3", spoil=stored_as(ml_dtypes.float8_e4m3fn)),
}  # fmt: skip

TOKENIZERS = {
    "more tokens than rows": case(MERGE, "base: its token '<|more|>' has id 320, but the merged model has 320 rows", spoil=one_more_token),
    "cut below the tokenizer": case((*MERGE, "--truncate-vocabulary"), "base: its token ", " has id 319, but the merged model has 310 rows", spoil=two(lambda t: t.update({n: t[n][:310].copy() for n in (EMBED, HEAD)}))),
    "unreadable": case(MERGE, "base: its tokenizer cannot be read", spoil=write("base/tokenizer.json", "{}")),
    "union without one": case(MERGE, "one: has no tokenizer files", spoil=recipe(LINEAR + "tokenizer_source: union", no_tokenizer("one"))),
    "a source that is none": case(MERGE, "nowhere: no such folder or file", spoil=recipe(LINEAR + "tokenizer_source: nowhere")),
    "template without one": case(MERGE, "base: has no tokenizer to hold the chat_template", spoil=recipe(LINEAR + "chat_template: '{{ messages }}'", no_tokenizer("base"))),
    "templates of all without one": case(MERGE, "one: has no tokenizer files", spoil=recipe(LINEAR + "chat_template: auto", no_tokenizer("one"))),
    "named template": case(MERGE, "chat_template: mergekit's own template 'chatml' is not included", spoil=recipe(LINEAR + "chat_template: chatml")),
    "fewer rows than the config says": case(MERGE, f"tensor {EMBED} has 320 rows, but the config says vocab_size 330", spoil=recipe(TWO + "tokenizer_source: base", config("two", vocab_size=330))),
}  # fmt: skip

FISHERS = {
    "no file": case(MERGE, "f.safetensors: cannot be read (No such file", spoil=recipe(FISHER)),
    "none given": case(MERGE, "parameters.fisher: missing for two, fisher needs it", spoil=recipe(FISHER.replace("two, parameters: {fisher: f.safetensors}", "two"))),
    "truncated": case(MERGE, "f.safetensors: truncated", spoil=lambda f: (fisher()(f), edit_bytes("f.safetensors", lambda b: b[:-1])(f))),
    "tensor missing": case(MERGE, f"f.safetensors: tensor {PLACE}: found nothing, expected floating numbers [32, 32]", spoil=fisher(lambda t: t.pop(PLACE))),
    "shape": case(MERGE, f"f.safetensors: tensor {PLACE}: found F32 [32, 31]", spoil=fisher(lambda t: t.update({PLACE: t[PLACE][:, 1:].copy()}))),
    "integers": case(MERGE, f"f.safetensors: tensor {PLACE}: found I32 [32, 32]", spoil=fisher(lambda t: t.update({PLACE: t[PLACE].astype(np.int32)}))),
    "NaN": case(MERGE, f"f.safetensors: tensor {PLACE} has NaN or infinite values", spoil=fisher(number(np.nan)), reads_weights=True),
}  # fmt: skip

ASKING = {
    "no task": case(MERGE, "recipe.yaml: parameters.task: missing, greedy_soup needs it", spoil=recipe(SOUP.replace('task: "builtin:one_step", ', ""))),
    "unknown key": case(MERGE, "parameters.splt: greedy_soup has no such parameter (did you mean 'split'?)", spoil=recipe(SOUP.replace("style: plain", "splt: test"))),
    "unknown task": case(MERGE, "recipe.yaml: parameters.task: ", "one_stp", "did you mean 'one_step'?", spoil=recipe(SOUP.replace("one_step", "one_stp"))),
    "a suite": case(MERGE, "recipe.yaml: parameters.task: suite:arithmetic: a suite is several tasks", spoil=recipe(SOUP.replace("builtin:one_step", "suite:arithmetic"))),
    "no such file": case(MERGE, "recipe.yaml: parameters.task: ", "none.jsonl", spoil=recipe(SOUP.replace("builtin:one_step", "none.jsonl"))),
    "no training questions": case(MERGE, "recipe.yaml: parameters.task: q.jsonl has no train questions", spoil=recipe(SOUP.replace("builtin:one_step", "q.jsonl").replace("style", "split: train, style"), write("q.jsonl", '{"question": "1 + 1?", "answer": 2}\n'))),
    "unknown style": case(MERGE, "recipe.yaml: parameters.style: unknown prompt style 'plan' (did you mean 'plain'?)", spoil=recipe(SOUP.replace("plain", "plan"))),
    "no worked examples": case(MERGE, "recipe.yaml: parameters.style: prompt style 'few_shot' needs worked examples", spoil=recipe(SOUP.replace("plain", "few_shot, shots: 0"))),
    "no chat template": case(MERGE, "recipe.yaml: parameters.style: prompt style 'chat' needs a tokenizer with a chat template", spoil=recipe(SOUP.replace("plain", "chat"))),
    "no room for the answer": case(MERGE, "recipe.yaml: parameters.task: prompt 0: ", "max_new_tokens=250 exceed the model's context of 256", spoil=recipe(SOUP.replace("8", "250"))),
    "no room for the prompt": case(MERGE, "recipe.yaml: parameters.task: prompt 0: ", "context of 256", spoil=recipe(REGMEAN.replace("builtin:one_step", "jsonl:train=q.jsonl"), write("q.jsonl", '{"question": "' + 300 * "1 + " + '1?", "answer": 301}\n'))),
    "no room for the solution": case(MERGE, "recipe.yaml: parameters.task: prompt 0: ", "context of 256", spoil=recipe(FISHER_OF_TASK.replace("builtin:one_step", "jsonl:train=q.jsonl"), write("q.jsonl", '{"question": "1 + 1?", "answer": "' + 300 * "10 " + '"}\n'))),
    "no tokenizer": case(MERGE, "base: has no tokenizer files", spoil=recipe(SOUP, no_tokenizer("base"))),
    "more tokens than rows": case(MERGE, "base: its token '<|more|>' has id 320", spoil=recipe(SOUP, one_more_token)),
    "architecture": case(MERGE, "two/config.json: hidden_act is 'gelu', but 'silu'", spoil=recipe(SOUP, config("two", hidden_act="gelu"))),
    "a difference that counts": case(MERGE, "different architectures, in rms_norm_eps (1e-06 and 0.1)", spoil=recipe(SOUP, config("two", rms_norm_eps=0.1))),
    "one is tied": case(MERGE, "tied ties its head to the embedding", spoil=recipe(SOUP.replace("two", "tied"))),
    "vocabularies": case(MERGE, "vocabularies of different sizes", spoil=recipe(SOUP, longer)),
    "shape": case(MERGE, f"tensor {PLACE} has shape [32, 31]", spoil=asked_two(lambda t: t.update({PLACE: t[PLACE][:, 1:].copy()}))),
    "missing tensor": case(MERGE, f"two: tensors are missing: {PLACE}", spoil=asked_two(lambda t: t.pop(PLACE))),
    "extra tensor": case(MERGE, "does not have: model.extra", spoil=asked_two(lambda t: t.update({"model.extra": np.ones(3, np.float32)}))),
    "a family that cannot be run": case(MERGE, "model_type", "'mamba'", spoil=recipe(SOUP, config("base", model_type="mamba"), config("two", model_type="mamba"))),
    "GGUF": case(MERGE, "model.gguf: a GGUF file, expected a model folder", spoil=recipe(SOUP.replace("two", "model.gguf"), write("model.gguf", b"GGUF"))),
    "NaN": case(MERGE, f"tensor {PLACE} has NaN or infinite values", spoil=asked_two(number(np.nan)), reads_weights=True),
    "seed": case((*MERGE, "--seed", "3"), "--seed: 3, expected it as parameters.seed of recipe.yaml", spoil=recipe(SOUP)),
    "untie": case((*MERGE, "--untie"), "--untie, --truncate-vocabulary: not for greedy_soup, which runs the models", spoil=recipe(SOUP)),
    "truncate": case((*MERGE, "--truncate-vocabulary"), "not for regmean", spoil=recipe(REGMEAN)),
    "files there": case(MERGE, "out: exists, expected a new folder", spoil=lambda f: (recipe(SOUP)(f), foreign_files(f))),
    "no Fisher files, no task": case(MERGE, "parameters.fisher: missing for base, fisher needs it", spoil=recipe("merge_method: fisher\nmodels: [{model: base}, {model: two}]\n")),
}  # fmt: skip

CHECKPOINTS = {
    "none": case((*FROM[:-1], "nowhere"), "nowhere: no such checkpoint folder"),
    "a file": case((*FROM[:-1], "recipe.yaml"), "recipe.yaml: no such checkpoint folder"),
    "no checkpoint": case((*FROM[:-1], "one"), "one/manifest.json: missing, the checkpoint was not finished"),
    "damaged": case(FROM, "checkpoint/", "altered since it was written", spoil=damaged),
    "another architecture": case(FROM, "checkpoint: embed/embedding has shape [320, 31], but [320, 32] in the model", spoil=of_others),
}  # fmt: skip

OUTPUTS = {
    "files there": case(MERGE, "out: exists, expected a new folder", spoil=foreign_files),
    "a file": case((*MERGE[:-1], "base/config.json"), "base/config.json: exists, expected a new folder"),
    "below a file": case((*MERGE[:-1], "base/config.json/out"), "base/config.json/out: cannot be written", "is a file"),
    "a file in the way": case(MERGE, ".out.part: File exists", spoil=write(".out.part", "mine"), reads_weights=True),
}  # fmt: skip

GROUPS = {
    "command": COMMANDS,
    "recipe": RECIPES,
    "model": MODELS,
    "tokenizer": TOKENIZERS,
    "fisher": FISHERS,
    "asking": ASKING,
    "checkpoint": CHECKPOINTS,
    "output": OUTPUTS,
}
CASES: dict[str, Case] = {
    f"{group}: {name}": c for group, cases in GROUPS.items() for name, c in cases.items()
}
