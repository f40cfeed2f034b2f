"""``imm-jax analyze`` on a run and on two models, against the run's own files and evaluations."""

import json

import numpy as np
import pytest
import yaml

from imm_jax import analyses, checkpoints, probes
from imm_jax.cli import main
from imm_jax.console import Stop
from imm_jax.files import read_jsonl
from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.load import load_model
from imm_jax.models.tokenizer import load_tokenizer
from tests.answering import run_settings, save_answering, write_questions

EVERYTHING = ("--importance", "taylor", "ablation", "influence", "--path", "3", "--memorisation")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A finished run of two rounds, its model, another one, and questions."""
    folder = tmp_path_factory.mktemp("whole")
    model = save_answering(folder / "model", tiny_config, random_params, tiny_tokenizer)
    settings = run_settings(model, folder) | {"rounds": 2, "keep": "all"}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "set")
        assert main(["run", str(folder / "run.yaml"), "--output", str(folder / "run")]) == 0
    decoder, params = load_model(model)
    params["layers"]["mlp"]["up"]["kernel"] = params["layers"]["mlp"]["up"]["kernel"] * 1.5
    save_model(folder / "tuned", decoder, params, tokenizer=load_tokenizer(model))
    more = write_questions(folder / "more.jsonl", 4).read_text()
    varied = more.replace('"more-', '"train-').replace("What is", "How much is")
    (folder / "varied.jsonl").write_text(varied)
    return folder


@pytest.fixture
def analyze(place, capsys):
    """``analyze(*argv)``: runs it, which must succeed, and gives what it printed."""

    def call(*argv) -> str:
        code = main(["analyze", *map(str, argv)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return call


def read(folder) -> dict:
    return json.loads((folder / "analysis.json").read_text())


def layers_of(tree) -> list[np.ndarray]:
    """Every layer's weights in a row, float64."""
    leaves = [np.asarray(x, np.float64) for x in _leaves(tree["layers"])]
    return [np.concatenate([x[i].ravel() for x in leaves]) for i in range(leaves[0].shape[0])]


def _leaves(tree):
    return [
        x for _, v in sorted(tree.items()) for x in (_leaves(v) if isinstance(v, dict) else [v])
    ]


def test_a_run(place, analyze, monkeypatch):
    printed = analyze("run", *EVERYTHING, "--variations", "varied.jsonl")
    found = read(place / "run")
    assert {path.name for path in (place / "run/analysis").iterdir()} == {
        "diversity.png", "importance.png", "path.png",
    }  # fmt: skip
    assert "collapsed: " in printed and "memorisation, seed 0, round 2, vanilla" in printed

    # The samples' figures, from the files of the run.
    rows = found["diversity"]["rows"]
    assert [(row["round"], row["arm"]) for row in rows] == [
        (1, "vanilla"), (1, "imm"), (2, "vanilla"), (2, "imm"),
    ]  # fmt: skip
    drawn = read_jsonl(place / "run/seed-0/round-2/imm/samples/00000.jsonl")
    assert rows[3]["samples"] == len(drawn) == 16
    assert rows[3]["correct"] == sum(row["correct"] for row in drawn)
    assert rows[3]["distinct_2"] == read_jsonl(place / "run/metrics.jsonl")[4]["distinct_2"]

    # Distances, from the checkpoints.
    base = layers_of(load_model(place / "model")[1])
    changes = {(r["round"], r["arm"], r["model"]): r for r in found["change"]["rows"]}
    assert set(changes) == {
        (t, arm, name)
        for t in (1, 2)
        for arm, name in (("vanilla", "model"), ("imm", "model"), ("imm", "tuned"))
    }
    for (t, arm, name), row in changes.items():
        part = "shared" if (name, t) == ("tuned", 1) else arm
        tuned = layers_of(checkpoints.restore(place / f"run/seed-0/round-{t}/{part}/{name}"))
        moved = [np.linalg.norm(y - x) for x, y in zip(base, tuned)]
        np.testing.assert_allclose(row["layers"], moved, rtol=1e-4)
        sizes = [np.linalg.norm(x) for x in base]
        np.testing.assert_allclose(row["layers_relative"], np.divide(moved, sizes), rtol=1e-4)

    # The ends of the path are the models that the run itself has evaluated.
    for weight, scores in (("0", "base"), ("1", "seed-0/round-2/vanilla")):
        known = json.loads((place / f"run/{scores}/scores.json").read_text())["tasks"]
        for task, score in found["path"][weight]["tasks"].items():
            assert score["accuracy"] == known[task]["accuracy"]
            assert (score["low"], score["high"]) == (known[task]["low"], known[task]["high"])
    losses = [found["path"][weight]["loss"] for weight in ("0", "0.5", "1")]
    assert losses[0] == pytest.approx(found["importance"]["taylor"]["loss"], rel=1e-4)
    assert losses[2] < losses[1] < losses[0]  # what was practised

    # The blocks of this model add nothing, so leaving one out changes nothing.
    assert found["importance"]["ablation"]["layers"] == [0, 0, 0]
    np.testing.assert_allclose(found["importance"]["influence"]["layers"], 0, atol=1e-6)
    kept = {row["id"] for row in read_jsonl(place / "run/seed-0/round-1/shared/selected.jsonl")}
    kept |= {row["id"] for row in read_jsonl(place / "run/seed-0/round-2/vanilla/selected.jsonl")}
    scores = found["memorisation"]["tuned"]["scores"]
    assert scores["trained"]["questions"] == len(kept)
    assert found["memorisation"]["base"]["scores"]["new"]["accuracy"] == 0.75
    again = {f"train/train-{i}" for i in range(4)} & kept  # right ones alone are trained on
    assert scores["varied"]["questions"] == len(again) > 0
    assert scores["varied"]["accuracy"] == 1.0
    assert found["memorisation"]["tuned"]["varied"]["both"] == len(again)

    # Once more: nothing is asked or measured again.
    def again(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(probes, "examine", again)
    monkeypatch.setattr(probes, "ask", again)
    monkeypatch.setattr(analyses, "MEASURES", dict.fromkeys(analyses.MEASURES, again))
    assert analyze("run", *EVERYTHING, "--variations", "varied.jsonl") == printed
    assert read(place / "run") == found


def test_two_models(place, analyze):
    analyze("model", "tuned", "--output", "out")
    assert set(read(place / "out")) == {"change", "correlation"}
    [row] = read(place / "out")["change"]["rows"]
    assert row["modules_relative"]["mlp/up"] == pytest.approx([0.5] * 3)
    assert row["modules"]["attn/q"] == [0] * 3 and row["outside"]["embed"] == 0
    questions = f"jsonl:train={place}/train.jsonl,test={place}/test.jsonl"
    asked = ("--tasks", questions, "more.jsonl", "--style", "plain", "--path", "2")
    asked += ("--max-new-tokens", "16")
    printed = analyze("model", "tuned", "--output", "out", *asked, "--importance", "taylor")
    found = read(place / "out")
    # down is 0, so what up gives does not matter: both ends answer alike.
    for weight in ("0", "1"):
        shares = {name: s["accuracy"] for name, s in found["path"][weight]["tasks"].items()}
        assert shares == {"test": 0.75, "more": 0.75}
    assert found["importance"]["settings"]["solutions"] == 6  # right: 6 of 8 training questions
    assert "path to tuned" in printed
    # Blocks add nothing here, so the model answers as well without one.
    analyze("model", "tuned", "--output", "out", *asked, "--ablation-questions", "3")
    found = read(place / "out")
    scores = {name: s["accuracy"] for name, s in found["skipped"].items() if name != "settings"}
    assert scores == dict.fromkeys(("whole", "1", "2", "3"), 1.0)
    assert "path" in found  # what was made before stays


def test_stopped_and_taken_up_again(place, capsys, monkeypatch):
    merge, calls = probes.merge_params, []

    def stop_at_second(*args, **kwargs):
        calls.append(kwargs["weight"])
        Stop.signal = 15 if len(calls) == 2 else None
        return merge(*args, **kwargs)

    monkeypatch.setattr(probes, "merge_params", stop_at_second)
    argv = ["analyze", "run", "--importance", "--path", "3"]
    assert main(argv) == 128 + 15
    assert "the same command goes on from here" in capsys.readouterr().err
    assert set(read(place / "run")["path"]) == {"settings", "0"}
    assert main(argv) == 0
    assert calls == [0.0, 0.5, 0.5, 1.0]  # the first point is not made again
    assert set(read(place / "run")["path"]) == {"settings", "0", "0.5", "1"}
    assert "importance" not in read(place / "run")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("model",), "model: holds no config.yaml, expected the folder of a run"),
        (("nowhere",), "nowhere: is not a folder"),
        (("model", "tuned"), "no --output, expected a folder"),
        (("model", "tuned", "run"), "3 models, expected a run's folder or two models"),
        (("model", "tuned", "--output", "o", "--path", "3"), "--path: needs questions"),
        (("model", "tuned", "--output", "o", "--importance", "taylor"), "--importance: needs"),
        (("model", "tuned", "--output", "o", "--arm", "imm"), "--arm: given with two models"),
        (("run", "--tasks", "more.jsonl"), "--tasks: given with a run"),
        (("run", "--arm", "im"), "no arm 'im' (did you mean 'imm'?), expected one of vanilla, imm"),
        (("run", "--path", "1"), "'1', expected a whole number from 2"),
        (("run", "--path", "3", "--beyond", "0.5"), "path: ends at 0.5, expected 1 to 10"),
        (("run", "--importance", "fisher"), "invalid choice: 'fisher'"),
        (("run", "--output", "more.jsonl"), "more.jsonl is a file"),
        (("run", "--variations", "more.jsonl"), "none of 4 ids is that of a trained question"),
        (("run", "--variations", "builtin:reverse_words"), "'text', expected 'number' as test"),
    ],
)
def test_wrong_input_is_one_line(refused, argv, says):
    assert says in refused(("analyze", *argv))


def test_a_damaged_run_is_named(place, refused):
    metrics = place / "run/metrics.jsonl"
    base = metrics.read_text().splitlines(keepends=True)[0]
    metrics.write_text(base)
    assert "no round of this run is finished" in refused(("analyze", "run"))
    metrics.write_text('{"seed": 0, "round": 1, "arm": "imm"}\n')
    assert "metrics.jsonl: expected the results of a run" in refused(("analyze", "run"))
    metrics.unlink()
    assert "run: holds no metrics.jsonl yet" in refused(("analyze", "run"))
