"""Checkpoints of other programs, written with Orbax's own calls, and what does not fit."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from imm_jax import checkpoints
from imm_jax.cli import main
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from imm_jax.tree import unstack_layers
from tests.recipes.model_folders import assert_same, cast, mean, read_tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A model, one of its kin, and the latter's parameters as checkpoints."""
    folder, config = tmp_path_factory.mktemp("whole") / "whole", tiny_config("llama")
    base, tuned = random_params(config), random_params(config, 1)
    for name, params in (("base", base), ("tuned", tuned)):
        save_model(folder / name, Decoder(config), params, tokenizer=tiny_tokenizer)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "plain", tuned)
        moments = {"mu": jax.tree.map(np.zeros_like, tuned), "step": 3}
        listed = unstack_layers(tuned)
        numbered = {f"layers_{i}": layer for i, layer in enumerate(listed.pop("layers"))}
        checkpointer.save(folder / "listed", unstack_layers(tuned))
        checkpoints.save(folder / "own", tuned)
        checkpoints.save(folder / "own-listed", {"params": unstack_layers(tuned)})
        checkpointer.save(folder / "numbered", {"params": listed | numbered})
        checkpointer.save(folder / "state", {"params": tuned, "opt_state": moments})
    with ocp.CheckpointManager(folder / "steps") as manager:
        for step in (5, 10):
            manager.save(step, args=ocp.args.StandardSave(tuned))
    with ocp.CheckpointManager(folder / "items") as manager:
        items = {"params": ocp.args.StandardSave(tuned), "more": ocp.args.JsonSave({"a": 1})}
        manager.save(7, args=ocp.args.Composite(**items))
    return folder


PLACES = [
    "plain", "listed", "numbered", "own", "own-listed", "state", "steps/10", "steps/10/default",
    "items/7",
]  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_a_checkpoint_is_merged_into_its_base(name, place):
    assert main(["merge", "base", "--from", name, "--output", "out", "--weight", "0.25"]) == 0
    expected = cast(mean(read_tensors("base"), read_tensors("tuned"), (3, 1)))
    assert_same(read_tensors("out"), expected)


def save(folder, change, name="plain"):
    """A checkpoint anew, as ``plain``, with a change of its tree."""
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore((folder / name).absolute())
        change(params)
        shutil.rmtree(folder / "plain")
        checkpointer.save((folder / "plain").absolute(), params)


def unfinished(folder):
    path = folder / "plain/_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit_timestamp_nsecs": None}))


def renamed(params):
    params["embed"]["embedding_"] = params["embed"].pop("embedding")


def narrow(params):
    params["final_norm"]["scale"] = params["final_norm"]["scale"][1:]


def short(params):
    params["layers"].pop()


def twice(params):
    params["layers_1"] = params["layers"][1]


def not_a_number(params):
    params["layers"]["mlp"]["up"]["kernel"][1, 0, 0] = np.nan


def whole_numbers(params):
    params["final_norm"]["scale"] = np.ones(32, np.int32)


def infinite(folder):
    params = checkpoints.restore(folder / "own")
    params["embed"]["embedding"][-1, -1] = -np.inf
    checkpoints.save(folder / "plain-own", params)
    shutil.rmtree(folder / "plain")
    (folder / "plain-own").rename(folder / "plain")


def without_data(folder):
    for data in (folder / "plain").rglob("d/*"):
        data.unlink()


WRONG = {
    "another path": (lambda f: save(f, renamed),
                     "plain: embed/embedding is missing, which the model has with shape [320, 32] "
                     "(did you mean 'embed/embedding_'?)"),
    "another shape": (lambda f: save(f, narrow),
                      "plain: final_norm/scale has shape [31], but [32] in the model"),
    "one too many": (lambda f: save(f, lambda p: p.update(head=np.ones(3))),
                     "plain: head is there, which the model does not have"),
    "a layer too few": (lambda f: save(f, short, "listed"),
                        "plain: layers/2/attn_norm/scale is missing, which the model has with "
                        "shape [32]"),
    "a layer by two names": (lambda f: save(f, twice, "listed"),
                             "plain: layers/1/attn/k/kernel is there twice"),
    "NaN": (lambda f: save(f, not_a_number),
            "plain: layers/mlp/up/kernel has NaN or infinite values"),
    "infinity in one of ours": (infinite, "plain: embed/embedding has NaN or infinite values"),
    "whole numbers": (lambda f: save(f, whole_numbers),
                      "plain: final_norm/scale is int32, expected floating numbers"),
    "not finished": (unfinished, "plain: a checkpoint that Orbax did not finish"),
    "damaged": (without_data, "plain: Orbax cannot read it ("),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line(name, place, refused):
    spoil, says = WRONG[name]
    spoil(place)
    assert says in refused(("merge", "base", "--from", "plain", "--output", "out"))


def test_a_step_must_be_named(place, refused):
    says = refused(("merge", "base", "--from", "steps", "--output", "out"))
    assert says == "steps: holds the steps 5, 10, expected one such as steps/10"


def test_a_merge_too_large_for_its_type_is_not_written(place, refused, capsys):
    assert main(["convert", "base", "half", "--dtype", "float16"]) == 0
    capsys.readouterr()
    for tuned in (("tuned",), ("--from", "plain")):
        says = refused(("merge", "half", *tuned, "--output", "out", "--weight", "1e6"))
        assert says == "merge: embed/embedding would have values that float16 cannot hold"
