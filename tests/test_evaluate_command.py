"""``imm-jax evaluate`` on suites: a row a task, and one line for a wrong name."""

import json
from pathlib import Path

import pytest

from imm_jax.cli import main
from tests.answering import save_answering, write_questions

PLAIN = ("--style", "plain", "--max-new-tokens", "16", "--batch-size", "16")


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("model") / "model"
    return str(save_answering(folder, tiny_config, random_params, tiny_tokenizer))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set")
    write_questions(Path("last_letters.jsonl"), 8)
    write_questions(Path("coin_flip.jsonl"), 3)
    write_questions(Path("mine.jsonl"), 4)


def test_a_suite_and_a_file(model, capsys):
    sampled = ("--temperature", "0.5", "--samples", "2", "--output", "scores.json")
    assert main(["evaluate", model, "suite:symbolic,folder=.", "mine.jsonl", *PLAIN, *sampled]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [
        ["last_letters", "0.750"],
        ["coin_flip", "1.000"],
        ["mine", "0.750"],
        ["mean", "0.833"],
    ]
    found = json.loads(Path("scores.json").read_text())["tasks"]
    assert found["last_letters"]["questions"] == 8 and found["coin_flip"]["samples"] == 2
    assert found["coin_flip"]["pass_at_k"] == {"1": 1.0, "2": 1.0}
    assert found["last_letters"]["majority"]["accuracy"] == 0.75
    # Wilson's interval of 3 of 3.
    assert found["coin_flip"]["low"] == pytest.approx(3 / (3 + 1.959964**2), abs=1e-4)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["mine.jsonl", "suite:symbolik"], "unknown suite 'symbolik' (did you mean 'symbolic'?)"),
        (["suite:symbolic,folder=no"], "no has no file last_letters.jsonl"),
        (["suite:symbolic,folder=.", "coin_flip.jsonl"], "two tasks are named coin_flip"),
        (["symbolic"], "unknown task 'symbolic' (did you mean 'suite:symbolic'?)"),
    ],
)
def test_one_wrong_name_is_one_line(tasks, message, model, capsys):
    assert main(["evaluate", model, *tasks, *PLAIN]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and not printed.out
