"""Wrong merges of files through the command line: one clear line, exit code 2, nothing changed.

Except where a case says otherwise the mistake is found before any weight is looked at.
"""

import json
import os
import resource
import shutil

import jax
import numpy as np
import pytest

from imm_jax import checkpoints, load_model
from imm_jax.cli import main
from tests.answering import snapshot
from tests.recipes.model_folders import LINEAR
from tests.recipes.wrong_merges import CASES, MERGE


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A folder in which everything is right."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    shutil.copytree(models, folder)
    _, params = load_model(folder / "one")
    checkpoints.save(folder / "checkpoint", params)
    narrow = jax.tree.map(lambda x: np.asarray(x)[..., :-1], params)
    checkpoints.save(folder / "another", {"params": narrow})
    (folder / "recipe.yaml").write_text(LINEAR)
    return folder


@pytest.fixture
def no_weights(monkeypatch):
    """Looking at weights is a failure, but for a head that has to be a copy of the embedding."""
    from imm_jax.models.huggingface import weights
    from imm_jax.models.huggingface.tensor_files import TensorReader

    def forbidden(*args, **kwargs):
        pytest.fail("the weights were read before the mistake was found")

    monkeypatch.setattr(TensorReader, "read", forbidden)
    monkeypatch.setattr(weights, "read_params", forbidden)


def test_the_table_is_long_enough():
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_wrong_merge(name, place, refused, request):
    wrong = CASES[name]
    if wrong.spoil is not None:
        wrong.spoil(place)
    if not wrong.reads_weights:
        request.getfixturevalue("no_weights")
    message = refused(wrong.argv)
    for part in wrong.says:
        assert part in message


def test_no_permission(place, refused, no_weights, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    assert f"cannot be written (no permission in {place})" in refused(MERGE)


def test_no_room(place, refused, no_weights, monkeypatch):
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = refused(MERGE)
    assert message.startswith("out: needs ") and message.endswith("bytes, and the disk has 1,000")


class FullDisk:
    """No file can grow past ``size`` bytes, as on a disk that is full."""

    def __init__(self, size: int):
        self.size = size

    def __enter__(self):
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limits[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def large_tokenizer(folder):
    """Its file is larger than any file of weights with one tensor."""
    path = folder / "base/tokenizer.json"
    data = json.loads(path.read_text())
    pattern = {"String": "x" * 100_000}
    data["normalizer"] = {"type": "Replace", "pattern": pattern, "content": ""}
    path.write_text(json.dumps(data))


# At the plan, at the first tensor, and past all weights.
@pytest.mark.parametrize("size", [50, 30_000, 60_000])
@pytest.mark.parametrize("template", ["", "chat_template: '{{ x }}'\n"])
def test_a_full_disk_leaves_nothing(size, template, place, refused, monkeypatch):
    """Copied, or written by the tokenizers library, whose errors are of no class of their own."""
    large_tokenizer(place)
    (place / "recipe.yaml").write_text(LINEAR + template)
    for out in ("out", "deep/down/out"):
        with FullDisk(size):
            message = refused(("merge", "recipe.yaml", out, "--out-shard-size", "1"))
        assert message == f"{out}: cannot be written (File too large)"


def test_in_the_way_of_finished_work(place, capsys, monkeypatch):
    """Somebody makes the folder while the merge runs: it is not touched, and said."""
    from imm_jax.recipes import run

    def write_beside(beside, *args, **kwargs):
        (place / "out").mkdir()
        (place / "out/thesis.tex").write_text("years of work")

    before = snapshot(place)
    monkeypatch.setattr(run, "write_beside", write_beside)
    assert main(list(MERGE)) == 2
    assert "out" in capsys.readouterr().err.splitlines()[-1]
    assert snapshot(place) == before | {"out": None, "out/thesis.tex": b"years of work"}
