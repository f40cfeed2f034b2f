"""``imm-jax report`` on the folder of a run that a tiny model made, whole, cut off and spoilt."""

import json
import shutil

import pytest
import yaml

from imm_jax.analysis.report import page
from imm_jax.cli import main
from imm_jax.config import RunConfig
from imm_jax.report_data import read_report
from imm_jax.rounds.run import run
from imm_jax.settings import build
from tests.answering import run_settings, save_answering, snapshot


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A folder with a finished run in ``out`` and the questions it asked."""
    folder = tmp_path_factory.mktemp("whole")
    model = save_answering(folder / "model", tiny_config, random_params, tiny_tokenizer)
    run(build(RunConfig, run_settings(model, folder), "test"), folder / "out")
    return folder


def test_the_page_is_beside_the_results(place, capsys):
    assert main(["report", "out"]) == 0
    assert capsys.readouterr().out == "out/report.html\n"
    text = (place / "out/report.html").read_text(encoding="utf-8")
    assert "What is 20 plus -13?" in text and "Right answer: <strong>7</strong>" in text
    assert text.count("<article") == 8 and "not finished" not in text
    assert "imm&#39;s out-of-domain accuracy after round 1 is not distinguishable from" in text
    # The run goes on as before.
    before = snapshot(place / "out")
    assert main(["report", "out", "--output", "deep/page.html", "--examples", "1"]) == 0
    assert (place / "deep/page.html").read_text().count("<article") == 2
    assert snapshot(place / "out") == before


def test_what_is_read_is_what_the_run_wrote(place):
    found = read_report("out")
    rows = [json.loads(line) for line in (place / "out/metrics.jsonl").read_text().splitlines()]
    assert found.rows == rows and found.last == 1 and len(rows) == found.expected == 3
    assert set(found.answers) == {(0, 0, "base"), (0, 1, "vanilla"), (0, 1, "imm")}
    for row in rows:
        answers = found.answers[row["seed"], row["round"], row["arm"]]
        for task, score in row["tasks"].items():
            right = [answer["correct"] for answer in answers[task]]
            assert sum(right) / len(right) == score["accuracy"]
            assert {answer["id"] for answer in answers[task]} == set(found.questions[task])
    assert found.notes == () and found.analysis == {}
    assert found.config == yaml.safe_load((place / "out/config.yaml").read_text())
    assert found.record["tasks"].keys() == found.questions.keys()


def test_a_run_that_was_cut_off(place, capsys):
    lines = (place / "out/metrics.jsonl").read_text().splitlines(keepends=True)
    (place / "out/metrics.jsonl").write_text("".join(lines[:2]))
    shutil.rmtree(place / "out/seed-0/round-1/imm")
    assert main(["report", "out"]) == 0
    text = (place / "out/report.html").read_text()
    assert "not finished: 2 of 3 results" in text and "nothing to compare yet" in text


def test_questions_that_are_no_longer_the_same(place):
    """Their answers stand without them, and the page says so."""
    run_record = json.loads((place / "out/run.json").read_text())
    run_record["tasks"]["other"] = "another file"
    (place / "out/run.json").write_text(json.dumps(run_record))
    found = read_report("out")
    assert "other" not in found.questions and len(found.questions) == 1
    assert found.notes == ("The questions of other are no longer those of the run.",)
    (place / "out/run.json").unlink()
    config = (place / "out/config.yaml").read_text().replace("other.jsonl", "gone.jsonl")
    (place / "out/config.yaml").write_text(config)
    found = read_report("out")
    assert found.questions == {} and "could not be read again" in page([found])


@pytest.mark.parametrize(
    ("spoil", "argv", "message"),
    [
        (None, ["nowhere"], "nowhere: is not a folder, expected that of a run"),
        (None, ["train.jsonl"], "train.jsonl: is not a folder, expected that of a run"),
        (None, ["model"], "model: holds no config.yaml, expected the folder of a run"),
        (None, ["out", "nowhere"], "nowhere: is not a folder"),
        (None, ["out", "--output", "model"], "model: is a folder, expected a file"),
        (None, ["out", "--examples", "-1"], "'-1', expected a whole number from 0"),
        (None, [], "the following arguments are required: RUN"),
        (("metrics.jsonl", None), ["out"], "out: holds no metrics.jsonl yet"),
        (("metrics.jsonl", ""), ["out"], "out/metrics.jsonl: expected the results of a run"),
        (("metrics.jsonl", '{"seed": 0}'), ["out"], "metrics.jsonl: expected the results of a run"),
        (("metrics.jsonl", "{"), ["out"], "out/metrics.jsonl:1: not valid JSON"),
        (("config.yaml", "model: ["), ["out"], "out/config.yaml"),
        (("config.yaml", "model: m"), ["out"], "out/config.yaml: data: missing"),
        (("run.json", "{"), ["out"], "out/run.json: not valid JSON"),
        (("run.json", "[]"), ["out"], "out/run.json: expected a JSON object, found list"),
        (("base/answers/other.jsonl", "{"), ["out"], "answers/other.jsonl:1: not valid JSON"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spoil, argv, message, place, refused):
    if spoil is not None:
        name, text = spoil
        path = place / "out" / name
        path.unlink() if text is None else path.write_text(text)
    assert message in refused(["report", *argv])
