"""Distillation: another model draws the samples, once for all arms."""

import itertools
import json

import jax
import pytest

from imm_jax.errors import Interrupted
from imm_jax.files import read_jsonl
from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.load import load_model
from imm_jax.models.tokenizer import load_tokenizer
from imm_jax.rounds import tools
from imm_jax.rounds.costs import read_costs
from imm_jax.rounds.run import run
from tests.answering import results_of

ARMS = {
    "vanilla": {"weight": 1.0, "drop_rate": 0.0},
    "imm": {},
    "afresh": {"weight": 1.0, "drop_rate": 0.0, "start_from": "base"},
    "afresh_half": {"start_from": "base"},
}


@pytest.fixture(scope="module")
def distilled(settings, taught, tmp_path_factory):
    """``distilled(**changes)``: ``taught`` teaches a student that is never right by itself."""
    student = tmp_path_factory.mktemp("student") / "model"
    model, params = load_model(taught)
    blank = jax.tree.map(lambda x: x / 100, jax.device_get(params))
    save_model(student, model, blank, tokenizer=load_tokenizer(taught))
    same = {"model": str(student), "teacher": str(taught), "arms": ARMS, "keep": "all"}
    return lambda **changes: settings(**(same | changes))


@pytest.fixture(scope="module")
def counted(distilled, tmp_path_factory):
    """A run of all arms, its rows, the questions put to the teacher and the seeds of fine-tunes."""
    asked, fits = [], []

    def ask(model, params, tokenizer, task, questions, **settings):
        asked.extend(question.id for question in questions)
        return was_ask(model, params, tokenizer, task, questions, **settings)

    def fit(*args, seed, **settings):
        fits.append(seed)
        return was_fit(*args, seed=seed, **settings)

    was_ask, was_fit = tools.ask, tools.fit
    folder = tmp_path_factory.mktemp("counted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tools, "ask", ask)
        patch.setattr(tools, "fit", fit)
        rows = run(distilled(), folder)
    return folder, rows, asked, fits


def arm_of(files: dict[str, bytes], arm: str) -> dict[str, bytes]:
    """Of a run's files those of one arm, as if it shared nothing."""
    return {
        name.replace(f"/{part}/", "/"): content
        for part in ("shared", arm)
        for name, content in files.items()
        if f"/{part}/" in name
    }


def test_a_teacher_draws_the_samples(counted, settings, taught, tmp_path):
    folder, rows, _, _ = counted
    alone = run(settings(model=str(taught), rounds=1, arms={"imm": {}}), tmp_path / "run")
    for name in ("samples/00000.jsonl", "selected.jsonl"):  # as taught alone drew and kept them
        place = f"seed-0/round-1/shared/{name}"
        assert read_jsonl(folder / place) == read_jsonl(tmp_path / "run" / place)
    assert alone[0]["in_domain"] > 0 == rows[0]["in_domain"] < rows[1]["distance"]
    record = json.loads((folder / "run.json").read_text())
    assert record["teacher"] != record["model"]


def test_it_draws_once_a_round(counted):
    """12 questions a round; fine-tunes from the original are one, those from merged models two."""
    folder, rows, asked, fits = counted
    assert len(asked) == 2 * len(set(asked)) == 24
    assert fits == [1, 2, 2, 2]
    second = {row["arm"]: row["stages"] for row in rows if row["round"] == 2}
    for stage, shared in (("sample", list(ARMS)), ("fit", ["afresh", "afresh_half"])):
        seconds = [second[arm][stage] for arm in shared]
        assert seconds[0]["seconds"] > 0 and seconds == seconds[:1] * len(seconds)
    costs = {path.name: read_costs(path) for path in (folder / "seed-0/round-2").iterdir()}
    kept = {name: round(cost["fit"].seconds, 3) for name, cost in costs.items() if "fit" in cost}
    assert kept == {
        place: second[arm]["fit"]["seconds"]
        for place, arm in (("vanilla", "vanilla"), ("imm", "imm"), ("shared", "afresh"))
    }
    assert {path.name for path in (folder / "seed-0/round-2/imm").glob("*.jsonl")} == {
        "selected.jsonl"
    }


@pytest.mark.parametrize("arm", ["imm", "afresh_half"])
def test_an_arm_alone_comes_to_the_same(arm, counted, distilled, result_files, tmp_path):
    folder, rows, _, _ = counted
    alone = run(distilled(arms={arm: ARMS[arm]}), tmp_path / "run")
    assert results_of(alone) == results_of([r for r in rows if r["arm"] in ("base", arm)])
    expected, found = result_files(folder), result_files(tmp_path / "run")
    assert arm_of(found, arm).items() <= arm_of(expected, arm).items()
    assert sum(name.count("samples/") for name in arm_of(found, arm)) == 2 * 3


def test_a_run_that_was_stopped_goes_on(counted, distilled, result_files, tmp_path):
    folder, stops, rows = tmp_path / "run", 0, None
    while rows is None:
        asked = itertools.count()
        stop = lambda asked=asked, patience=9 + stops: next(asked) >= patience
        try:
            rows = run(distilled(), folder, should_stop=stop)
        except Interrupted:
            stops += 1
    assert stops >= 5
    assert results_of(rows) == results_of(counted[1])
    assert result_files(folder) == result_files(counted[0])
