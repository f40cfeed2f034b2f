"""Merges of recipes that ask: what is written, and that nothing is left where they are stopped."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imm_jax import asking_methods, merge_files
from imm_jax.asking_methods import ASKED, Found
from imm_jax.cli import main
from imm_jax.errors import InputError, Interrupted
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from imm_jax.recipes import whole
from imm_jax.recipes.run import merge_files as merge_blocks
from tests.answering import snapshot
from tests.conftest import TINY_FAMILIES
from tests.recipes.adapter_files import added, save_adapter
from tests.recipes.model_folders import assert_same, read_config, read_tensors
from tests.recipes.test_bad_merges import FullDisk


def test_beside_the_weights_lies_what_lies_beside_every_merge(recipe, models, tmp_path):
    path = recipe("regmean", "near", "good", parameters={"task": "test.jsonl"}, out_dtype="float16")
    merge_files(path, tmp_path / "my-merge", max_shard_bytes=20_000)
    out = tmp_path / "my-merge"
    card = (out / "README.md").read_text()
    assert card.split("---\n", 2)[2].startswith("\n# my-merge\n") and "- near\n- good\n" in card
    assert path.read_text() in card and "--seed" not in card
    assert (out / "mergekit_config.yml").read_text() == path.read_text()
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / file).read_bytes() == (models / "near" / file).read_bytes()
    assert read_config(out) == read_config("near") | {"torch_dtype": "float16", "dtype": "float16"}
    assert len(list(out.glob("*.safetensors"))) > 2
    assert {x.dtype for x in read_tensors(out).values()} == {np.dtype(np.float16)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my-merge", "recipe.yaml"]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_comes_out_as_it_went_in(
    family, tiny_config, random_params, tiny_tokenizer, recipe, tmp_path, monkeypatch
):
    config = tiny_config(family)
    for seed, name in enumerate(("one", "two")):
        params = random_params(config, seed)
        save_model(tmp_path / name, Decoder(config), params, tokenizer=tiny_tokenizer)
    monkeypatch.setitem(ASKED, "regmean", lambda job: Found(job.tuned[1]))
    names = [str(tmp_path / name) for name in ("one", "two")]
    merge_files(recipe("regmean", *names, parameters={"task": "few.jsonl"}), tmp_path / "out")
    assert_same(read_tensors(tmp_path / "out"), read_tensors(tmp_path / "two"))
    assert read_config(tmp_path / "out") == read_config(tmp_path / "two")


def test_an_adapter_is_added_before_a_model_is_asked(recipe, models, tmp_path):
    weights = read_tensors(models / "good")
    updates = save_adapter(tmp_path / "adapter", weights, 1)
    shutil.copytree(models / "good", tmp_path / "added")
    save_file(added(weights, updates), tmp_path / "added/model.safetensors")
    adapted = {"model": {"model": "good", "lora": str(tmp_path / "adapter")}}
    for name, second in (("whole", str(tmp_path / "added")), ("adapted", adapted)):
        path = recipe("regmean", "near", second, parameters={"task": "few.jsonl"})
        merge_files(path, tmp_path / name)
    assert_same(read_tensors(tmp_path / "adapted"), read_tensors(tmp_path / "whole"))


def test_an_adapter_that_is_not_finite_is_named(recipe, models, tmp_path):
    save_adapter(tmp_path / "adapter", read_tensors(models / "good"), 1)
    file = tmp_path / "adapter/adapter_model.safetensors"
    factors = load_file(file)
    next(iter(factors.values())).fill(np.nan)
    save_file(factors, file)
    adapted = {"model": {"model": "good", "lora": str(tmp_path / "adapter")}}
    path = recipe("regmean", "near", adapted, parameters={"task": "few.jsonl"})
    with pytest.raises(InputError, match=r"adapter_model.safetensors: tensor .* has NaN"):
        merge_files(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(ASKED, "regmean", lambda job: Found(job.tuned[0]))
    path = recipe("regmean", "near", "good", parameters={"task": "few.jsonl"})
    before = snapshot(tmp_path)
    with (
        FullDisk(50_000),
        pytest.raises(InputError, match=r"out: cannot be written \(File too large"),
    ):
        merge_files(path, tmp_path / "deep/out")
    assert snapshot(tmp_path) == before


STOPPED = {
    "regmean": ("_add_grams", {}),
    "greedy_soup": ("score", {"style": "plain", "shots": 0, "max_new_tokens": 2}),
    "fisher": ("_add_fisher", {}),
    "adamerging": ("_numbers", {"steps": 2}),  # after the last step
}


@pytest.mark.parametrize("method", STOPPED)
def test_a_signal_leaves_nothing(method, recipe, tmp_path, monkeypatch, capsys):
    name, more = STOPPED[method]
    real = getattr(asking_methods, name)

    def signalled(*args, **kwargs):
        if not signalled.sent:
            signalled.sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    signalled.sent = False
    base = {"base_model": "bad"} if method == "adamerging" else {}
    parameters = {"task": "test.jsonl", "questions": 2, "batch_size": 1} | more
    if method == "fisher":
        del parameters["batch_size"]
    path = recipe(method, "near", "good", parameters=parameters, **base)
    before = snapshot(tmp_path)
    monkeypatch.setattr(asking_methods, name, signalled)
    assert main(["merge", str(path), str(tmp_path / "deep/out")]) == 128 + signal.SIGTERM
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith(": stopped; the same command begins anew")
    )
    assert snapshot(tmp_path) == before


def test_stopped_while_it_is_written(recipe, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    path = recipe("regmean", "near", "good", parameters={"task": "test.jsonl"})
    before, asked = snapshot(tmp_path), []
    monkeypatch.setitem(ASKED, "regmean", lambda job: Found(job.tuned[0]))
    stop = lambda: asked.append((tmp_path / "deep").exists()) or sum(asked) > 3
    with pytest.raises(Interrupted):
        merge_files(path, tmp_path / "deep/out", should_stop=stop)
    assert snapshot(tmp_path) == before and sum(asked) == 4
    monkeypatch.setattr(whole, "write_beside", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge_files(path, tmp_path / "deep/out")
    assert snapshot(tmp_path) == before


def test_a_value_that_its_type_cannot_hold(recipe, tmp_path, monkeypatch):
    huge = lambda job: Found(jax.tree.map(lambda x: x + 1e6, job.tuned[0]))
    monkeypatch.setitem(ASKED, "regmean", huge)
    path = recipe("regmean", "near", "good", parameters={"task": "test.jsonl"}, dtype="float16")
    with pytest.raises(InputError, match="would have values that float16 cannot hold"):
        merge_files(path, tmp_path / "deep/out")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_merge_of_blocks_says_where_to_go(recipe, tmp_path):
    path = recipe("greedy_soup", "near", "good", parameters={"task": "test.jsonl"})
    with pytest.raises(InputError, match="asks the models questions"):
        merge_blocks(path, tmp_path / "out")
