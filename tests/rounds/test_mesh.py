"""A whole run on 8 devices is that of one device."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from imm_jax import checkpoints
from imm_jax.files import read_jsonl
from imm_jax.models.load import load_model
from imm_jax.rounds.run import run
from tests.devices import ask

pytestmark = pytest.mark.slow

RUN = """
from pathlib import Path
from imm_jax.cli import main
from imm_jax.config import load_config
from imm_jax.errors import Interrupted
from imm_jax.rounds.run import run

config, place = sys.argv[1], Path(sys.argv[2])
argv = ["run", config, "--mesh", "data=2,fsdp=4", "--output", str(place / "many")]
assert main(argv) == 0

# Cut off on the mesh in the second fine-tune.
def cut():
    return (place / "moved/seed-0/round-2/vanilla/fit/step_00000002").exists()
try:
    run(load_config(config, ["mesh=data=2,fsdp=4"]), place / "moved", should_stop=cut)
except Interrupted:
    answers["cut"] = str(sorted((place / "moved").rglob("step_*"))[-1].relative_to(place))
"""


@pytest.fixture(scope="module")
def runs(settings, whole, tmp_path_factory):
    """The folders of both runs on the mesh, of which ``moved`` was taken up on one device."""
    place = tmp_path_factory.mktemp("mesh")
    (place / "run.yaml").write_text(yaml.safe_dump(settings.plain))
    found = ask(RUN, place / "run.yaml", place)
    assert "round-2/vanilla/fit/step_0000000" in found["cut"]
    run(settings(), place / "moved")
    return {name: place / name for name in ("many", "moved")}


def texts(folder: Path) -> dict[str, list]:
    names = [*folder.rglob("samples/*.jsonl"), *folder.rglob("selected.jsonl")]
    return {
        str(name.relative_to(folder)): [
            (row["id"], row["sample"], row["text"]) for row in read_jsonl(name)
        ]
        for name in names
    }


def figures(folder: Path) -> list[list]:
    keys = ("round", "arm", "in_domain", "out_of_domain", "kept", "distance")
    rows = read_jsonl(folder / "metrics.jsonl")
    return [[row[key] for key in keys if key in row] for row in rows]


def furthest(one, other) -> float:
    gaps = jax.tree.map(lambda a, b: np.abs(np.float64(a) - np.float64(b)).max(), one, other)
    return max(jax.tree.leaves(gaps))


@pytest.mark.parametrize("name", ["many", "moved"])
def test_the_samples_and_the_selection_are_the_same(runs, whole, name):
    expected = texts(whole[0])
    assert texts(runs[name]) == expected and len(expected) > 6


@pytest.mark.parametrize("name", ["many", "moved"])
def test_the_weights_and_figures_are_the_same(runs, whole, taught, name):
    base, expected, found = (
        load_model(folder)[1] for folder in (taught, whole[0] / "model", runs[name] / "model")
    )
    assert furthest(expected, found) < 1e-5 < 1e-3 < furthest(expected, base)
    for row, other in zip(figures(whole[0]), figures(runs[name]), strict=True):
        assert row[:-1] == other[:-1] and row[-1] == pytest.approx(other[-1], abs=1e-5)


def test_what_lies_in_the_folder_of_a_run_on_a_mesh(runs, taught):
    record = json.loads((runs["many"] / "run.json").read_text())
    assert record["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    merged = checkpoints.restore(runs["many"] / "seed-0/round-2/imm/model", load_model(taught)[1])
    assert furthest(merged, load_model(runs["many"] / "model")[1]) == 0
