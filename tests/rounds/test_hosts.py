"""A whole run by two processes on one machine is that of one process."""

import json

import jax
import numpy as np
import pytest
import yaml

from imm_jax.files import read_jsonl
from imm_jax.models.load import load_model
from tests.devices import in_two_processes

pytestmark = pytest.mark.slow

CODE = """
import json, os, sys
from pathlib import Path
from imm_jax.cli import main
import imm_jax.choices as choices
import imm_jax.rounds.tools as tools

place, port, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
asked, written = [], []

def counted(*args, _ask=tools.ask, **kwargs):
    asked.append([kwargs["label"], [question.id for question in args[4]]])
    return _ask(*args, **kwargs)

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}

def watch(event, args):
    if event == "open":
        changes = (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        changes = event in CHANGES
    if changes and isinstance(args[0], (str, os.PathLike)) and "/out" in os.fspath(args[0]):
        written.append(os.fspath(args[0]))

tools.ask = choices.ask = counted
sys.addaudithook(watch)
code = main(["run", str(place / "run.yaml"), "--output", str(place / "out"),
             "--mesh", "data=2,fsdp=2", "--coordinator", f"127.0.0.1:{port}",
             "--processes", "2", "--process", number])
(place / f"process-{number}.json").write_text(
    json.dumps({"code": code, "asked": asked, "written": written}))
"""


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """The folder of the two processes' run, and what each of the two did."""
    place = tmp_path_factory.mktemp("hosts")
    (place / "run.yaml").write_text(yaml.safe_dump(settings.plain))
    with in_two_processes(CODE, place) as finish:
        printed = finish()
    did = [json.loads((place / f"process-{number}.json").read_text()) for number in range(2)]
    for one, (out, errors) in zip(did, printed):
        one["out"] = out
        assert one["code"] == 0, errors
    return place, did


def test_each_process_asks_its_share(runs):
    _, did = runs
    first, second = (dict(one["asked"]) for one in did)
    assert first.keys() == second.keys() and len(first) > 10
    for label in first:
        assert not set(first[label]) & set(second[label])
        assert 0 <= len(first[label]) - len(second[label]) <= 1
    block = next(label for label in first if "sample 1/3" in label)
    assert len(first[block]) == 3 and len(second[block]) == 2  # of a block of five


def test_samples_selection_and_figures_are_the_same(runs, whole):
    """As in the run of one process, which keeps more models, but the same results."""
    place, alone_in = runs[0], whole[0]
    names = sorted(p.relative_to(alone_in) for p in alone_in.rglob("*.jsonl"))
    assert len([name for name in names if name.name == "selected.jsonl"]) == 3
    assert len([name for name in names if "samples" in name.parts]) == 9
    for name in names:
        alone, together = (read_jsonl(folder / name) for folder in (alone_in, place / "out"))
        assert len(alone) == len(together) > 0
        for one, other in zip(alone, together):
            for key in one.keys() - {"logprob", "distance", "stages"}:
                assert one[key] == other[key], (name, key)
            for key in one.keys() & {"logprob", "distance"}:
                assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4)


def test_merged_weights_are_the_same(runs, whole, taught):
    place, _ = runs
    base, alone, together = (
        load_model(folder)[1] for folder in (taught, whole[0] / "model", place / "out/model")
    )

    def furthest(one, other):
        gaps = jax.tree.map(lambda x, y: np.abs(np.float64(x) - np.float64(y)).max(), one, other)
        return max(jax.tree.leaves(gaps))

    assert furthest(alone, together) < 1e-5 < 1e-3 < furthest(alone, base)


def test_only_the_primary_writes_files_and_prints(runs):
    place, (first, second) = runs
    record = json.loads((place / "out/run.json").read_text())
    assert record["processes"] == 2 and record["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    # The arrays of a checkpoint are the exception: each process writes its part of them.
    assert [name for name in second["written"] if "/data-" not in name] == []
    for part in (
        ".metrics.jsonl.",
        ".config.yaml.",
        "samples/.00000.jsonl.",
        "/.tuned.part",
        "fit",
    ):
        assert any(part in name for name in first["written"]), part
    assert "Gloo" not in first["out"] + second["out"]
    for word in ("round", "vanilla", "distinct-2"):
        assert word in first["out"] and word not in second["out"]
