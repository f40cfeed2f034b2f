"""Files merged into files: tensors against float64 and ``merge_params``, and all that lies beside.

Models are tiny Llamas of three layers; see ``conftest.py``.
"""

import itertools
import json
import logging
import os
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml

import imm_jax
from imm_jax import merge_files, merging
from imm_jax.cli import main
from imm_jax.errors import InputError, Interrupted
from tests.answering import snapshot
from tests.recipes.model_folders import (
    BESIDE,
    EMBED,
    LINEAR,
    Q,
    assert_same,
    cast,
    mean,
    read_config,
    read_tensors,
    wide,
)

BFLOAT16 = ml_dtypes.bfloat16


def test_a_mean_of_models_is_rounded_once(recipe, tmp_path):
    merge_files(recipe(LINEAR), tmp_path / "out")
    expected = cast(mean(read_tensors("base"), read_tensors("one")))
    assert_same(read_tensors(tmp_path / "out"), expected)


def test_parameters_by_tensor_and_depth_reach_the_merge(recipe, tmp_path):
    text = """
merge_method: dare_ties
base_model: base
models:
  - {model: one, parameters: {weight: [0.2, 0.8], density: 0.6}}
  - model: two
    parameters: {weight: [{filter: mlp, value: 0.5}, {value: 0.25}], density: 0.7}
parameters: {lambda: 0.9, normalize: true}
"""
    merge_files(recipe(text), tmp_path / "out", seed=11)
    base, one, two = (read_tensors(name) for name in ("base", "one", "two"))

    def by_depth(path):
        layer = re.search(r"layers\.(\d)", path)
        return float(np.interp(int(layer[1]) / 2, [0, 1], [0.2, 0.8])) if layer else 0.2

    expected = merging.merge_params(
        base,
        [one, two],
        weight=[by_depth, lambda path: 0.5 if "mlp" in path else 0.25],
        transform=merging.dare_ties((0.6, 0.7), normalize=True, lambda_=0.9),
        key=jax.random.key(11),
    )
    assert_same(read_tensors(tmp_path / "out"), expected)


def test_types_as_stored_and_as_asked_for(recipe, tmp_path):
    """Without a type the widest of those stored; the sum is exact, and rounded once."""
    text = LINEAR.replace("dtype: float32", "").replace("one", "half")
    exact = mean(read_tensors("base"), read_tensors("half"))
    for asked, dtype in (("", np.float32), ("out_dtype: float16", np.float16),
                         ("dtype: float32\nout_dtype: bfloat16", BFLOAT16)):  # fmt: skip
        out = tmp_path / np.dtype(dtype).name
        merge_files(recipe(text + asked), out)
        assert_same(read_tensors(out), cast(exact, dtype))
        assert read_config(out)["dtype"] == np.dtype(dtype).name


def test_a_result_that_its_type_cannot_hold_is_refused(recipe, tmp_path):
    text = LINEAR.replace("weight: 3", "weight: 1e9") + "parameters: {normalize: false}\n"
    with pytest.raises(InputError, match=f"tensor {EMBED} would have values that float16 cannot"):
        merge_files(recipe(text + "out_dtype: float16"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_shards_and_their_index(recipe, tmp_path):
    assert len(list(Path("base").glob("*.safetensors"))) > 2  # sharded in
    merge_files(recipe(LINEAR), tmp_path / "whole")
    out = tmp_path / "out"
    assert main(["merge", str(recipe(LINEAR)), "--out-shard-size", "30K", str(out)]) == 0
    assert_same(read_tensors(out), read_tensors(tmp_path / "whole"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    count = len(files)
    assert files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    sizes = []
    for file in files:
        alone = read_tensors(out, file)
        assert {n for n, f in index["weight_map"].items() if f == file} == set(alone)
        sizes.append(sum(x.nbytes for x in alone.values()))
        assert sizes[-1] <= 30_000 or len(alone) == 1
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"].keys() == read_tensors(out).keys()
    # As few files as that: no two neighbours would have fitted into one.
    assert all(a + b > 30_000 for a, b in itertools.pairwise(sizes))


def test_it_is_a_model(recipe, tmp_path):
    """Our own loader, which reads what transformers writes, checks every name and shape."""
    merge_files(recipe(LINEAR), tmp_path / "out")
    decoder, params = imm_jax.load_model(tmp_path / "out")
    assert decoder.config == imm_jax.load_model("base")[0].config
    q = cast(mean(read_tensors("base"), read_tensors("one")))[Q.format(1)]
    np.testing.assert_array_equal(params["layers"]["attn"]["q"]["kernel"][1], q.T)
    for file in BESIDE:
        assert (tmp_path / "out" / file).read_bytes() == Path("base", file).read_bytes()
    assert read_config(tmp_path / "out") == read_config("base")


def test_the_card_names_the_recipe(recipe, tmp_path):
    text = LINEAR + "# läuft\n"
    merge_files(recipe(text), tmp_path / "my-merge", seed=3)
    assert (tmp_path / "my-merge/mergekit_config.yml").read_text() == text
    _, head, body = (tmp_path / "my-merge/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["tags"] == ["merge", "imm_jax", "linear"]
    assert body.startswith("\n# my-merge\n") and text.strip() in body
    assert "- base\n- one\n" in body and "--seed 3" in body


def test_a_base_among_the_models_in_other_words_is_the_base(recipe, tmp_path):
    """It has no weight in the mean of task vectors, and the card calls it what the file does."""
    text = (
        "merge_method: task_arithmetic\nbase_model: ./base\nmodels: [{model: base}, {model: one}]\n"
    )
    merge_files(recipe(text + "parameters: {weight: 0.5, normalize: true}"), tmp_path / "out")
    assert_same(read_tensors(tmp_path / "out"), read_tensors("one"))
    card = (tmp_path / "out/README.md").read_text()
    assert "\n- ./base\n- one\n\n" in card and "in which `./base`, `one` lead" in card


@pytest.mark.parametrize("relative", [True, False])
def test_the_command_of_the_card_makes_the_same_model(relative, models, recipe, tmp_path, capsys):
    """One model ties its head, and the command is given again where the card says."""
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: base}, {model: tied}]\n"
    text = text if relative else text.replace("model: ", f"model: {models}/")
    out, again = tmp_path / "out", tmp_path / "again"
    merge_files(recipe(text), out, seed=3, untie=True, truncate_vocabulary=True)
    card = (out / "README.md").read_text()
    command = next(line for line in card.splitlines() if line.startswith("    imm-jax merge "))
    assert ("in which `base`, `tied` lead to the models" in card) == relative
    words = command.replace("PATH", str(out)).replace("FOLDER", str(again)).split()[1:]
    assert words[3:] == ["--seed", "3", "--untie", "--truncate-vocabulary"]
    os.chdir(models if relative else out)
    assert main(words) == 0, capsys.readouterr().err
    assert snapshot(again) == snapshot(out) | {"README.md": (again / "README.md").read_bytes()}


def test_a_seed_decides_and_nothing_else_does(recipe, tmp_path):
    text = LINEAR.replace("merge_method: linear", "merge_method: dare_linear\nbase_model: base")
    path = recipe(text + "parameters: {density: 0.5}")
    for name, seed in (("out", 4), ("other/out", 4), ("third/out", 5)):
        merge_files(path, tmp_path / name, seed=seed)
    first, second, third = (snapshot(tmp_path / name) for name in ("out", "other/out", "third/out"))
    assert first == second
    differing = {name for name in first if first[name] != third[name]}
    assert differing == {"model.safetensors", "README.md"}
    assert first.keys() == third.keys()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_a_density_of_0_drops_everything(method, recipe, tmp_path):
    """Of both models, at the first layer of one, and of one model beside another."""
    text = f"""
merge_method: {method}
base_model: base
models:
  - {{model: one, parameters: {{density: ONE}}}}
  - {{model: two, parameters: {{density: TWO}}}}
parameters: {{weight: 0.5, normalize: true}}
"""
    base = read_tensors("base")
    merged = {}
    for one, two in (("0", "0"), ("[0, 1]", "0"), ("0", "0.5"), ("0.5", "0")):
        out = tmp_path / f"{one}-{two}"
        merge_files(recipe(text.replace("ONE", one).replace("TWO", two)), out, seed=2)
        merged[one, two] = read_tensors(out)
    assert_same(merged["0", "0"], base)
    first, last = Q.format(0), Q.format(2)
    np.testing.assert_array_equal(merged["[0, 1]", "0"][first], base[first])
    share = 0.5 if method == "dare_linear" else 1.0  # of the models that agree
    whole = wide(base[last]) + share * (wide(read_tensors("one")[last]) - base[last])
    np.testing.assert_allclose(merged["[0, 1]", "0"][last], whole, rtol=0, atol=1e-7)
    for (one, two), name in ((("0", "0.5"), "two"), (("0.5", "0"), "one")):
        delta = wide(read_tensors(name)[last]) - base[last]
        found = merged[one, two][last] - wide(base[last])
        assert 0.3 < np.mean(found == 0) < 0.7
        kept = found != 0
        np.testing.assert_allclose(found[kept], 2 * share * delta[kept], rtol=1e-4, atol=1e-7)


def test_an_empty_folder_is_taken_and_another_is_not(models, recipe, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    path = recipe(LINEAR.replace("model: ", f"model: {models}/"))
    monkeypatch.chdir(tmp_path / "here")
    merge_files(path, ".")
    assert "# here\n" in (tmp_path / "here/README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "recipe.yaml"]
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="here: exists, expected a new folder"):
        merge_files(path, tmp_path / "here")
    assert snapshot(tmp_path) == before


def test_a_filter_that_no_tensor_has_is_said(recipe, tmp_path, caplog):
    """mergekit takes one without a word, and the merge is a copy of the base."""
    path = recipe("""
merge_method: task_arithmetic
base_model: base
models:
  - model: one
    parameters: {weight: [{filter: mpl, value: 1}, {filter: mlp, value: 0}, {value: 0}]}
  - {model: two, parameters: {weight: {filter: layers.2.mlp, value: 1}}}
parameters: {weight: [{filter: "*", value: 0}], lambda: [{filter: norms, value: 2}, {value: 1}]}
""")
    with caplog.at_level(logging.INFO, "imm_jax"):
        merge_files(path, tmp_path / "out")
    notes = [r.getMessage() for r in caplog.records if "filter" in r.getMessage()]
    assert notes == [
        f"{path}: models[0].parameters.weight[0].filter: 'mpl' is in no tensor's name",
        f"{path}: parameters.lambda[0].filter: 'norms' is in no tensor's name",
    ]


def test_a_filter_is_looked_for_in_its_own_models_tensors(recipe, tmp_path, caplog):
    """Layer 2 of ``one`` is layer 0 of the result, and the others are not merged."""
    weight = "parameters: {weight: [{filter: layers.2, value: 2}, {value: 1}]}"
    path = recipe(f"""
merge_method: linear
slices:
  - sources:
      - {{model: one, layer_range: [2, 3], {weight}}}
      - {{model: two, layer_range: [0, 1], {weight}}}
parameters: {{normalize: [{{filter: layers.0, value: true}}, {{filter: layers.2, value: false}}]}}
""")
    with caplog.at_level(logging.INFO, "imm_jax"):
        merge_files(path, tmp_path / "out")
    notes = [r.getMessage() for r in caplog.records if "filter" in r.getMessage()]
    assert notes == [
        f"{path}: slices[0].sources[1].parameters.weight[0].filter: 'layers.2' is in no tensor's "
        "name",
        f"{path}: parameters.normalize[1].filter: 'layers.2' is in no tensor's name",
    ]


@pytest.mark.parametrize("name", ["R.YAML", "recipe"])
def test_a_recipe_may_have_another_name(name, recipe, tmp_path):
    path = Path(recipe(LINEAR))
    named = path.with_name(name)
    named.write_bytes(path.read_bytes())
    assert main(["merge", str(named), str(tmp_path / "other")]) == 0
    merge_files(path, tmp_path / "out")
    found, expected = (read_tensors(tmp_path / folder) for folder in ("other", "out"))
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        assert np.array_equal(found[tensor], value)


def test_progress_is_logged(recipe, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("imm_jax.progress.LOG_EVERY_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "imm_jax"):
        merge_files(recipe(LINEAR), tmp_path / "out", max_shard_bytes=30_000)
    size = sum(x.nbytes for x in read_tensors(tmp_path / "out").values())
    lines = [r.getMessage() for r in caplog.records]
    for label, total in (("check", 2 * size), ("merge", size)):
        own = [line for line in lines if line.startswith(f"{label}: ")]
        done = [float(re.match(rf"\w+: ([\d.]+) kB/{total / 1000:.2f} kB in ", x)[1]) for x in own]
        assert done == sorted(done) and len(done) > 5
        assert done[-1] == round(total / 1000, 2)


def test_a_stop_is_asked_for_before_each_tensor(recipe, tmp_path):
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) > 5

    with pytest.raises(Interrupted, match="out: stopped"):
        merge_files(recipe(LINEAR), tmp_path / "out", max_shard_bytes=1, should_stop=should_stop)
    assert len(asked) == 6 and not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.part").glob("*.safetensors"))) == 5
    merge_files(recipe(LINEAR), tmp_path / "out", max_shard_bytes=1)
    merge_files(recipe(LINEAR), tmp_path / "a/b/out", max_shard_bytes=1)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "a/b/out")
