"""A whole run on 8 devices is that of one device."""

import pytest
import yaml

from tests.devices import ask

pytestmark = pytest.mark.slow

RUN = """
from imm_jax import checkpoints
from imm_jax.cli import main
from imm_jax.errors import Interrupted
from imm_jax.files import read_jsonl
from imm_jax.models.load import load_model
from imm_jax.rounds.run import run
from imm_jax.config import load_config
from pathlib import Path

config, place, alone = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[4])
argv = ["run", config, "--mesh", "data=2,fsdp=4", "--output", str(place / "many")]
assert main(argv) == 0

# Cut off on the mesh in the second fine-tune, taken up on one device.
def cut():
    return (place / "moved/seed-0/round-2/vanilla/fit/step_00000002").exists()
try:
    run(load_config(config, ["mesh=data=8"]), place / "moved", should_stop=cut)
except Interrupted:
    answers["cut"] = str(sorted((place / "moved").rglob("step_*"))[-1].relative_to(place))
assert main(["run", config, "--output", str(place / "moved")]) == 0

def texts(folder):
    names = sorted(folder.rglob("samples/*.jsonl")) + sorted(folder.rglob("selected.jsonl"))
    return {str(name.relative_to(folder)): [
        (row["id"], row["sample"], row["text"]) for row in read_jsonl(name)] for name in names}

base, expected = (load_model(folder)[1] for folder in (sys.argv[3], alone / "model"))
models = {name: load_model(place / name / "model")[1] for name in ("many", "moved")}
answers["changed"] = furthest(expected, base)
for name in ("many", "moved"):
    answers[name] = furthest(expected, models[name])
    answers[name + " samples"] = texts(place / name) == texts(alone)
    answers[name + " rows"] = [
        [row[key] for key in ("round", "arm", "in_domain", "out_of_domain", "kept", "distance")
         if key in row] for row in read_jsonl(place / name / "metrics.jsonl")]
answers["rows"] = [
    [row[key] for key in ("round", "arm", "in_domain", "out_of_domain", "kept", "distance")
     if key in row] for row in read_jsonl(alone / "metrics.jsonl")]
answers["files"] = len(texts(alone))
record = json.loads((place / "many/run.json").read_text())
answers["record"] = record["mesh"]
tuned = checkpoints.restore(place / "many/seed-0/round-2/imm/model", base)
answers["merged"] = furthest(tuned, models["many"])
"""


@pytest.fixture(scope="module")
def found(settings, taught, whole, tmp_path_factory):
    place = tmp_path_factory.mktemp("mesh")
    (place / "run.yaml").write_text(yaml.safe_dump(settings.plain))
    return ask(RUN, place / "run.yaml", place, taught, whole[0])


def test_the_samples_and_the_selection_are_the_same(found):
    assert found["many samples"] and found["moved samples"] and found["files"] > 6
    assert found["record"] == {"data": 2, "fsdp": 4, "tensor": 1}


def test_the_weights_and_figures_are_the_same(found):
    assert found["changed"] > 1e-3
    assert found["many"] < 1e-5 and found["moved"] < 1e-5 and found["merged"] == 0
    for name in ("many rows", "moved rows"):
        for row, other in zip(found["rows"], found[name], strict=True):
            assert row[:-1] == other[:-1] and row[-1] == pytest.approx(other[-1], abs=1e-5)


def test_a_run_goes_on_with_another_mesh(found):
    assert "round-2/vanilla/fit/step_0000000" in found["cut"]
