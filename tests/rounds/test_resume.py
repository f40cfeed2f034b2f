"""A run that is stopped, damaged or asked for more goes on to the same result."""

import itertools
import logging
import shutil
from pathlib import Path

import pytest

from imm_jax.errors import InputError, Interrupted
from imm_jax.files import read_jsonl
from imm_jax.rounds.output import METRICS, locate
from imm_jax.rounds.run import run
from tests.answering import results_of


def test_another_model_or_other_questions_are_not_taken_up(settings, tmp_path):
    """They lie at the same paths, so the settings do not tell."""
    plain = settings.plain
    train = Path(plain["data"]["in_domain"].split("train=")[1].split(",")[0])
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(train.with_name(name), tmp_path / name)
    shutil.copytree(plain["model"], tmp_path / "model")
    task = f"jsonl:train={tmp_path}/train.jsonl,test={tmp_path}/test.jsonl"
    data = plain["data"] | {"in_domain": task, "out_of_domain": []}
    config = settings(model=str(tmp_path / "model"), data=data, rounds=1)
    rows = run(config, tmp_path / "run")
    record, metrics = ((tmp_path / "run" / name).read_bytes() for name in ("run.json", METRICS))

    weights = tmp_path / "model/model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-4] + bytes(4))
    with pytest.raises(InputError, match=r"run: .*model, the model, has another fingerprint now"):
        run(config, tmp_path / "run")
    weights.write_bytes(before)
    questions = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(questions.replace("apples", "pears"))
    with pytest.raises(InputError, match=r"run: task test has other questions now"):
        run(config, tmp_path / "run")
    (tmp_path / "train.jsonl").write_text(questions)
    assert (tmp_path / "run" / METRICS).read_bytes() == metrics
    assert run(config, tmp_path / "run") == rows
    assert (tmp_path / "run/run.json").read_bytes() == record


def test_finished_rounds_stay_in_the_metrics_of_a_run_taken_up_again(whole, settings, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    asked = []
    stop = lambda: asked.append(len(read_jsonl(tmp_path / "run" / METRICS))) or len(asked) > 2
    shutil.rmtree(tmp_path / "run/seed-0/round-2/imm")
    with pytest.raises(Interrupted):
        run(settings(keep="all"), tmp_path / "run", should_stop=stop)
    assert asked and set(asked) == {5}


@pytest.mark.parametrize("keep", ["all", "last"])
def test_more_rounds_and_seeds_end_as_if_asked_for_at_once(
    keep, whole, settings, tmp_path, result_files, caplog
):
    longer = {"keep": keep, "rounds": 2, "seeds": [0, 3]}
    run(settings(**longer), tmp_path / "at_once")
    run(settings(keep=keep, rounds=1), tmp_path / "run")
    with caplog.at_level(logging.INFO, "imm_jax"):
        run(settings(**longer), tmp_path / "run")
    assert f"{tmp_path}/run: goes on, 3 of 10 results are there" in caplog.messages
    assert result_files(tmp_path / "run") == result_files(tmp_path / "at_once")
    for name in ("config.yaml", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "at_once" / name).read_bytes()
    with pytest.raises(InputError, match="holds a run with other settings: rounds \\(2 there, 1"):
        run(settings(keep=keep, rounds=1), tmp_path / "run")
    with pytest.raises(InputError, match="holds a run with other settings: seeds "):
        run(settings(**longer | {"seeds": [3, 0]}), tmp_path / "run")


def test_a_runs_folder_is_gone_on_with(whole, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole[0], "mine")
    shutil.rmtree("mine/seed-0/round-2/imm/model")
    assert results_of(run("mine")) == results_of(whole[1])
    assert run("mine/config.yaml") == run(Path("mine")) and not Path("runs").exists()
    assert locate("a/b.yaml") == (Path("a/b.yaml"), Path("runs/b"))
    assert locate("b.yaml", smoke=True)[1] == Path("runs/b-smoke")
    Path("empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no config.yaml, expected a run's folder"):
        run("empty")
    Path("config.yaml").write_text("")
    assert locate("config.yaml")[1] == Path("runs/config")  # no run's


def test_a_finished_run_is_read_not_done_again(whole, settings, result_files, caplog):
    folder, rows = whole
    before = result_files(folder)
    with caplog.at_level(logging.INFO, "imm_jax"):
        assert run(settings(keep="all"), folder) == rows
    assert result_files(folder) == before


@pytest.mark.parametrize(
    "damage", ["samples", "selected", "scores", "model", "all models", "metrics"]
)
def test_damaged_results_are_named_and_made_again(
    damage, whole, settings, result_files, tmp_path, caplog
):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    expected, last = result_files(folder), folder / "seed-0/round-2/imm"
    shutil.rmtree(folder / "model")
    named = "model"
    if damage == "samples":
        (last / "samples/00001.jsonl").write_text('{"id": "1+')
        named = "00001.jsonl:1"
    elif damage == "selected":
        (last / "selected.jsonl").unlink()
    elif damage == "scores":
        (last / "scores.json").write_text("{")
        named = "scores.json"
    elif damage == "metrics":
        (folder / "metrics.jsonl").write_text("x")
    else:
        rounds = (1, 2) if damage == "all models" else (2,)
        for t in rounds:
            data = [
                path
                for path in (folder / f"seed-0/round-{t}/imm/model").rglob("*")
                if path.is_file() and path.stat().st_size > 1000
            ]
            largest = max(data, key=lambda path: path.stat().st_size)
            content = bytearray(largest.read_bytes())
            content[len(content) // 2] ^= 1
            largest.write_bytes(content)
        if damage == "all models":
            shutil.rmtree(folder / "seed-0/round-2/imm/tuned")
            shutil.rmtree(folder / "seed-0/round-1/shared/tuned")
        named = str(folder / "seed-0/round-2/imm/model")
    with caplog.at_level(logging.WARNING, "imm_jax"):
        rows = run(settings(keep="all"), folder)
    assert results_of(rows) == results_of(whole[1])
    assert result_files(folder) == expected
    if damage not in ("selected", "metrics"):
        assert named in caplog.text and "made again" in caplog.text


def test_a_stop_is_polite_and_the_next_call_goes_on(settings, whole, result_files, tmp_path):
    folder = tmp_path / "run"
    for patience in (1, 5, 12, 20):
        asked = itertools.count()
        stop = lambda asked=asked, patience=patience: next(asked) >= patience
        with pytest.raises(Interrupted):
            run(settings(keep="all"), folder, should_stop=stop)
    rows = run(settings(keep="all"), folder)
    assert results_of(rows) == results_of(whole[1])
    assert result_files(folder) == result_files(whole[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 1}, r"rounds \(2 there, 1 now\)"),
        ({"arms": {"imm": {"weight": 0.3}}}, r"arms.vanilla .*arms.imm.weight \(0.5 there, 0.3"),
    ],
)
def test_other_settings_are_refused_by_name(changes, message, whole, settings, result_files):
    before = result_files(whole[0])
    with pytest.raises(InputError, match=message):
        run(settings(keep="all", **changes), whole[0])
    assert result_files(whole[0]) == before
