"""Recipes: what a file says, and the parameters of each tensor, against mergekit's planner.

The golden file is mergekit 0.1.5's: ``python tests/recipes/mergekit_recipes.py`` writes it where
mergekit is installed; the parity test makes it again.
"""

import json
import re

import pytest

from imm_jax.errors import InputError
from imm_jax.merging import METHODS
from imm_jax.recipes import load_recipe, notes, resolve
from imm_jax.recipes.asking import ASKING, asks
from imm_jax.recipes.parameters import REQUIRED, parameters_of
from imm_jax.recipes.resolve import depth
from imm_jax.recipes.types import Model, TokenizerSettings, TokenRule
from tests.recipes.mergekit_recipes import GOLDEN, LAYERS, RECIPES, generate

MERGEKITS = json.loads(GOLDEN.read_text())
OURS = {("ties", "scope")}  # parameters that mergekit does not have


@pytest.fixture
def load(tmp_path):
    """``load(text)`` gives the recipe of a file with that text."""

    def build(text: str):
        path = tmp_path / "merge.yaml"
        path.write_text(text)
        return load_recipe(path)

    return build


def method_of(text: str) -> str:
    return text.split("merge_method: ")[1].split()[0]


def test_every_method_of_mergekit_has_its_recipe():
    assert {method_of(text) for text in RECIPES.values()} == set(MERGEKITS["specs"])


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_equal_mergekits(name, load):
    text = RECIPES[name]
    method = method_of(text)
    if method not in METHODS:
        pytest.skip(f"{method} is not in the table of methods")
    recipe = load(text)
    passed = {n: p for n, p in parameters_of(method).items() if p.use == "passed"}
    slices = set()
    for index, t, output, models, names, shared, own in MERGEKITS["recipes"][name]:
        part = recipe.slices[index]
        slices.add(index)
        assert [str(source.model) for source in part.sources] == models
        found = resolve(recipe, part, output, names or [output] * len(models), t)
        mergekits = {n: v for n, v in found.shared.items() if (recipe.merge_method, n) not in OURS}
        assert mergekits == {n: shared[n] for n in passed if n in shared}
        theirs = [values for model, values in zip(models, own) if model != str(part.base)]
        expected = [{n: v for n, v in values.items() if n in passed} for values in theirs]
        if method == "passthrough":  # no scale is a scale of 1
            expected = [{"scale": 1.0 if e["scale"] is None else e["scale"]} for e in expected]
        assert list(found.each) == expected
    assert slices == set(range(len(recipe.slices)))


@pytest.mark.parametrize("name", RECIPES)
def test_depths_equal_mergekits(name):
    """A layer's depth follows from its place in the slice; all other tensors stand at 0."""
    for _, t, output, _, _, _, _ in MERGEKITS["recipes"][name]:
        if ".layers." not in output:
            assert t == 0
    layers = [r for r in MERGEKITS["recipes"][name] if "self_attn" in r[2]]
    for index in {r[0] for r in layers}:
        depths = [r[1] for r in layers if r[0] == index]
        assert depths == [depth(i, len(depths)) for i in range(len(depths))]


@pytest.mark.parametrize("method", MERGEKITS["specs"])
def test_parameters_and_defaults_equal_mergekits(method):
    spec = MERGEKITS["specs"][method]
    ours, theirs = parameters_of(method), spec["parameters"]
    # int8_mask is accepted everywhere: it changes how mergekit computes, not what.
    own = {name for other, name in OURS if other == method}
    assert set(ours) == {*theirs, "int8_mask"} | own
    for name, (kind, scope, default) in theirs.items():
        parameter = ours[name]
        if (method, name) == ("passthrough", "scale"):  # no scale is a scale of 1
            kind, default = "float", 1.0
        assert parameter.kind.__name__ == kind
        assert parameter.each == (scope != "shared")
        assert parameter.default is REQUIRED if default == "required" else (
            parameter.default == default and type(parameter.default).__name__ == kind
        )  # fmt: skip


@pytest.mark.parametrize("method", [m for m in MERGEKITS["specs"] if m in METHODS])
def test_the_table_of_methods_counts_models_as_mergekit_does(method):
    spec, row = MERGEKITS["specs"][method], METHODS[method]
    names = {"ignored": "unused", "required": "required", "optional": "optional"}
    assert row.base == names[spec["base"]]
    least, most = spec["inputs"]
    if row.base == "required":
        # mergekit gives back a base that is merged with nothing.
        least, most = max(1, least - 1), None if most is None else most - 1
    if spec["non_base"] != [None, None]:
        least, most = spec["non_base"]
    assert row.models == (least, most)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_a_recipe(method, load):
    """With the fewest models and what is required, everything else has a value."""
    needed = {n: p for n, p in parameters_of(method).items() if p.default is REQUIRED}
    given = {n: "f.safetensors" if p.kind is str else 0.5 for n, p in needed.items()}
    row = METHODS[method]
    data = {"merge_method": method, "parameters": given}
    data["models"] = [{"model": f"m{i}"} for i in range(row.models[0])]
    if row.base == "required":
        data["base_model"] = "base"
    recipe = load(json.dumps(data))
    (part,) = recipe.slices
    shared, each = resolve(recipe, part, "x", ["x"] * len(part.sources), 0)
    assert len(each) == row.models[0]
    for name, value in given.items():
        assert all(own[name] == value for own in each) if needed[name].each else (
            shared[name] == value
        )  # fmt: skip
    assert not asks(recipe)


@pytest.mark.parametrize("method", ASKING)
def test_every_method_that_asks_can_be_a_recipe(method, load):
    row = ASKING[method]
    needed = {n: p for n, p in row.parameters.items() if p.default is REQUIRED}
    given = {n: "a.jsonl" if p.kind is str else 7 for n, p in needed.items()}
    data = {"merge_method": method, "parameters": given | {"seed": 3}}
    own = {"parameters": {"task": "b.jsonl"}} if row.parameters["task"].each else {}
    data["models"] = [{"model": "m0", **own}, {"model": "m1"}]
    if row.base == "required":
        data["base_model"] = "base"
    recipe = load(json.dumps(data))
    (part,) = recipe.slices
    shared, each = resolve(recipe, part, "x", ["x"] * len(part.sources), 0)
    assert asks(recipe) and len(each) == 2
    tasks = [values.get("task", shared.get("task")) for values in each]
    assert tasks == (["b.jsonl", "a.jsonl"] if own else ["a.jsonl"] * 2)
    expected = {n: p.default for n, p in row.parameters.items()} | given | {"seed": 3}
    assert shared == {n: v for n, v in expected.items() if not (own and n == "task")}


@pytest.mark.parity
def test_golden_file_is_mergekits():
    pytest.importorskip("mergekit")
    assert generate() == MERGEKITS


def test_models_become_one_slice(load):
    recipe = load(
        "merge_method: ties\nbase_model: dir/base\nout_dtype: torch.float16\ndtype: float32\n"
        "models: [{model: org/name@v1, parameters: {weight: 1}}]\n"
    )
    (part,) = recipe.slices
    assert [s.model for s in part.sources] == [Model("org/name", "v1"), Model("dir/base")]
    assert [s.layer_range for s in part.sources] == [None, None]
    assert part.base == part.base_model == recipe.base_model == Model("dir/base")
    assert [str(s.model) for s in part.models] == ["org/name@v1"]
    assert [str(m) for m in recipe.models] == ["dir/base", "org/name@v1"]
    assert (recipe.dtype, recipe.out_dtype) == ("float32", "float16")
    assert recipe.text.startswith("merge_method: ties\n") and recipe.path.endswith("merge.yaml")
    assert recipe.tokenizer is None and recipe.chat_template is None


def test_slices_keep_their_layers_and_bases(load):
    recipe = load(RECIPES["slices have parameters"])
    ranges = [[(str(s.model), s.layer_range) for s in part.sources] for part in recipe.slices]
    assert ranges == [[("a", (0, 2)), ("d", (3, 5))], [("c", (2, 3)), ("b", (3, 4))]]
    assert [str(part.base) for part in recipe.slices] == ["a", "b"]
    assert [str(m) for m in recipe.models] == ["a", "d", "b", "c"]
    assert set(map(str, recipe.models)) == set(LAYERS)


def test_a_base_that_the_method_does_not_take_is_a_model(load):
    recipe = load(RECIPES["linear counts a base"])
    (part,) = recipe.slices
    assert part.base is None and part.base_model == recipe.base_model == Model("c")
    assert [str(s.model) for s in part.models] == ["a", "c"]


TIES = "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 1}\n"
LINEAR = "merge_method: linear\nparameters: {weight: 1}\n"


def test_tokenizer_settings(load):
    def settings(text):
        return load(TIES + text).tokenizer

    assert settings("tokenizer_source: union") == TokenizerSettings(source="union")
    assert settings("tokenizer_source: b@v2") == TokenizerSettings(source=Model("b", "v2"))
    assert settings("tokenizer: {pad_to_multiple_of: 8}") == TokenizerSettings(
        source="union", pad_to_multiple_of=8
    )
    found = settings("""
tokenizer:
  source: base
  tokens:
    <a>: {source: b}
    <b>: {source: {kind: zero}, force: true}
    <c>: {source: {kind: model_token, model: b, token: x}}
    <d>: {source: {kind: model_token, model: a, token_id: 0}}
""")
    assert found == TokenizerSettings(
        source="base",
        tokens=(
            TokenRule(token="<a>", model=Model("b")),
            TokenRule(token="<b>", force=True),
            TokenRule(token="<c>", model=Model("b"), donor="x"),
            TokenRule(token="<d>", model=Model("a"), donor=0),
        ),
    )


def test_chat_template(load):
    assert load(TIES + "chat_template: auto").chat_template == "auto"
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert load(TIES + f"chat_template: '{text}'").chat_template == text
    assert load(TIES + "chat_template: ''").chat_template is None


def test_notes_say_what_has_no_effect(load):
    assert notes(load(TIES)) == ()
    text = TIES.replace("[{model: b}]", "[{model: a, parameters: {weight: 1}}, {model: b}]")
    recipe = load(text.replace("{weight: 1}\n", "{weight: 1, int8_mask: true}\n"))
    masks, base = notes(recipe)
    assert masks == f"{recipe.path}: int8_mask has no effect on ties, here as in mergekit"
    assert base == f"{recipe.path}: the base model's weight has no effect on ties"


IGNORED = {
    "slerp": (
        "base_model: a\nmodels: [{model: b}]",
        "t: 0.5",
        "normalize: true, embed_slerp: true",
    ),
    "model_stock": ("base_model: a\nmodels: [{model: b}, {model: c}]", "", "normalize: false"),
    "linear": ("models: [{model: a}, {model: b}]", "weight: 1", "density: [0.5, x], gamma: 7"),
    "arcee_fusion": ("base_model: a\nmodels: [{model: b}]", "", "t: 1"),
    "ties": ("base_model: a\nmodels: [{model: b}]", "weight: 1", "epsilon: 2, select_topk: 3"),
}


@pytest.mark.parametrize("method", IGNORED)
def test_what_only_other_methods_have_is_said_to_have_no_effect(method, load):
    """mergekit takes these recipes without a word, and does not look at the values."""
    models, own, more = IGNORED[method]
    text = f"merge_method: {method}\n{models}\nparameters: "
    plain, recipe = load(f"{text}{{{own}}}"), load(f"{text}{{{own}{', ' if own else ''}{more}}}")
    assert notes(plain) == ()
    names = re.findall(r"(\w+): ", more)
    assert [re.search(r": (\w+) has no effect on (\w+), ", note).groups() for note in notes(recipe)
            ] == [(name, method) for name in names]  # fmt: skip
    (part,) = recipe.slices
    args = ("x", ["x"] * len(part.sources), 0.5)
    assert resolve(recipe, part, *args) == resolve(plain, plain.slices[0], *args)


def test_what_all_models_share_has_no_effect_on_one(load):
    recipe = load(TIES.replace("model: b", "model: b, parameters: {normalize: false}"))
    (note,) = notes(recipe)
    assert note.startswith(
        f"{recipe.path}: b's normalize has no effect on ties, here as in mergekit"
    )
    assert resolve(recipe, recipe.slices[0], "x", "xx", 0).shared["normalize"] is True


def test_other_spellings(load):
    """What mergekit reads as the same."""
    (part,) = load(
        "name: my merge\nmerge_method: ties\nbase_model: {model: {path: a}}\n"
        "models: [{model: {model: {path: b, revision: v}, lora: null}},\n"
        "  {model: {model: c, lora: {path: d, revision: w}}}, {model: a+e}]\n"
        "parameters: {weight: true}\n"
    ).slices
    adapted = [Model("c", None, Model("d", "w")), Model("a", None, Model("e"))]
    assert [s.model for s in part.sources] == [Model("b", "v"), *adapted, Model("a")]
    assert part.base == Model("a")
    recipe = load(
        "merge_method: passthrough\nslices:\n"
        "  - sources: [{model: a, layer_range: ['0', '2'], parameters: {scale: [false, true]}}]\n"
    )
    assert recipe.slices[0].sources[0].layer_range == (0, 2)
    assert resolve(recipe, recipe.slices[0], "x", ["x"], 0.75).each == ({"scale": 0.75},)


@pytest.mark.parametrize("spelling", ["b", "./b", "b/", "a/../b", "link", "{here}/b", "~/b"])
def test_a_folder_is_one_model_however_it_is_spelt(spelling, load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("b")
    spelling = spelling.format(here=tmp_path)
    with pytest.raises(InputError, match=r"models: 0, ties merges at least 1 models besides"):
        load(TIES.replace("base_model: a", f"base_model: {spelling}"))
    recipe = load(
        f"merge_method: ties\nbase_model: {spelling}\nparameters: {{weight: 1}}\n"
        "models: [{model: b}, {model: a}]\n"
        "tokenizer: {source: union, tokens: {<x>: {source: link}}}\n"
    )
    assert [str(source.model) for source in recipe.slices[0].models] == ["a"]
    assert [str(model) for model in recipe.models] == [spelling, "a"]
    assert recipe.tokenizer.tokens[0].model == recipe.base_model
    with pytest.raises(InputError, match=r"models\[1\].model: b is there twice"):
        load(f"{LINEAR}models: [{{model: {spelling}}}, {{model: b}}]\n")
    (part,) = load(f"{LINEAR}models: [{{model: a+{spelling}}}, {{model: a}}]\n").slices
    assert part.sources[0].model == Model("a", None, Model("b")) != part.sources[1].model


def test_methods_of_our_own(load):
    """Not mergekit's: their parameters are what the table of methods says."""
    recipe = load("merge_method: wise_ft\nbase_model: a\nmodels: [{model: b}]\n")
    assert resolve(recipe, recipe.slices[0], "x", ["x", "x"], 0) == ({}, ({"alpha": 0.5},))
    recipe = load("merge_method: expo\nbase_model: a\nmodels: [{model: b}]\n"
                  "parameters: {alpha: [0, 1]}")  # fmt: skip
    assert resolve(recipe, recipe.slices[0], "x", ["x", "x"], 0.25).each == ({"alpha": 0.25},)
    recipe = load(
        "merge_method: fisher\nmodels:\n"
        "  - {model: a, parameters: {fisher: stats/a.safetensors}}\n"
        "  - {model: b, parameters: {fisher: stats/b.safetensors}}\n"
    )
    files = [own["fisher"] for own in resolve(recipe, recipe.slices[0], "x", "xx", 1).each]
    assert files == ["stats/a.safetensors", "stats/b.safetensors"]
