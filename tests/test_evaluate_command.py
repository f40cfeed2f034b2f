"""``imm-jax evaluate``: a row a task, in words or by likelihood, and one line for a wrong name."""

import json
from pathlib import Path

import numpy as np
import pytest

from imm_jax.cli import main
from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.load import load_model
from imm_jax.models.tokenizer import load_tokenizer
from tests.answering import save_answering, write_questions

PLAIN = ("--style", "plain", "--max-new-tokens", "16", "--batch-size", "16")
GREEDY = (*PLAIN, "--temperature", "0")


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
    # All of three are right, which a bootstrap would be sure of: Wilson's too.
    interval = [found["coin_flip"]["low"], found["coin_flip"]["high"]]
    assert found["coin_flip"]["pass_at_k_interval"] == {"1": interval, "2": interval}
    low, high = found["last_letters"]["pass_at_k_interval"]["2"]
    assert 0.25 < low < 0.75 < high <= 1
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


def test_evaluate_and_its_json(model, command, tmp_path):
    write_questions(tmp_path / "sums.jsonl", 8)
    write_questions(tmp_path / "few.jsonl", 3)
    argv = ("evaluate", model, "sums.jsonl", "few.jsonl", *GREEDY, "--output", "scores.json")
    table = [line.split() for line in command(*argv).splitlines()]
    assert table[0][0] == "task"
    assert [line[:2] for line in table[1:]] == [
        ["sums", "0.750"],
        ["few", "1.000"],
        ["mean", "0.875"],
    ]
    report = json.loads(Path("scores.json").read_text())
    scores = report["tasks"]
    assert list(scores) == ["sums", "few"] and report["mean"]["accuracy"] == 0.875
    assert scores["sums"]["accuracy"] == 0.75 and scores["sums"]["questions"] == 8
    assert scores["sums"]["truncated"] == 0 and scores["few"]["high"] == 1.0
    assert "majority" not in scores["sums"] and "comparison" not in report
    assert command(*argv, "--questions", "3").splitlines()[1].split()[4] == "3"


def test_without_shots_the_style_is_plain(model, command):
    argv = ("evaluate", model, "mine.jsonl", *GREEDY[2:], "--shots", "0")
    printed = command(*argv)
    assert printed == command(*argv, "--style", "plain")
    assert printed.splitlines()[1].split()[:2] == ["mine", "0.750"]


def test_evaluate_with_samples_and_another_model(model, command, tmp_path):
    """The other model never speaks; both answer the same questions."""
    write_questions(tmp_path / "sums.jsonl", 8)
    decoder, params = load_model(model)
    params["lm_head"]["kernel"] = np.zeros_like(params["lm_head"]["kernel"])
    save_model("mute", decoder, params, tokenizer=load_tokenizer(model))
    drawn = (*PLAIN, "--temperature", "0.5", "--samples", "3", "--seed", "5")
    argv = ("evaluate", model, "sums.jsonl", *drawn, "--output", "scores.json")
    printed = command(*argv, "--compare", "mute").splitlines()
    assert printed[0] == str(model) and printed[1].split()[6:9] == ["pass@2", "pass@3", "majority"]
    words = printed[2].split()
    assert [words[5], words[8], words[11]] == ["0.750", "0.750", "0.750"]
    report = json.loads(Path("scores.json").read_text())
    found = report["tasks"]["sums"]
    assert found["samples"] == 3 and found["pass_at_k"] == {"1": 0.75, "2": 0.75, "3": 0.75}
    assert found["majority"]["accuracy"] == 0.75
    low, high = found["pass_at_k_interval"]["3"]
    assert words[9:11] == [f"[{low:.3f},", f"{high:.3f}]"] and low < 0.75 < high
    assert report["compared_with"]["tasks"]["sums"]["accuracy"] == 0.0
    comparison = report["comparison"]["sums"]
    apart = {name: comparison.pop(name) for name in ("difference", "low", "high")}
    assert comparison == {"both": 0, "only_first": 6, "only_second": 0, "neither": 2,
                          "p_value": 2 / 64}  # fmt: skip
    assert apart == {"difference": 0.75, "low": low, "high": high}
    interval = [f"[+{low:.3f},", f"+{high:.3f}]"]
    assert printed[-1].split() == ["sums", "0", "6", "0", "2", "0.0312", "+0.750", *interval]


def test_evaluate_by_log_likelihood(model, command, tmp_path):
    rows = [
        {"id": name, "question": "What is 3 plus 4?", "choices": choices, "answer": "A"}
        for name, choices in (("a", ["The answer is 7", "4"]), ("b", ["8", "The answer is 7"]))
    ]
    Path("pick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ("evaluate", model, "pick.jsonl", "--style", "plain", "--scoring", "loglikelihood")
    table = command(*argv, "--output", "scores.json").splitlines()
    assert table[0].split()[-4:] == ["normalised", "95", "%", "interval"]
    report = json.loads(Path("scores.json").read_text())
    assert report["scoring"] == "loglikelihood"
    # It says "The answer is 7" whatever it is asked.
    found = report["tasks"]["pick"]
    assert found["accuracy"] == found["normalised"]["accuracy"] == 0.5
    assert found["questions"] == 2 and "truncated" not in found


def test_the_json_says_how_to_score_the_same_again(model, command):
    argv = ("evaluate", model, "mine.jsonl", *GREEDY, "--rule", "any", "--output", "scores.json")
    command(*argv)
    report = json.loads(Path("scores.json").read_text())
    assert report["style"].startswith("plain/") and report["shots"] == 8
    assert (report["rule"], report["samples"], report["seed"]) == ("any", 1, 0)
    assert report["sampling"]["temperature"] == 0 and report["sampling"]["max_new_tokens"] == 16
    assert report["model"]["source"] == model and report["model"]["fingerprint"]
    assert report["sources"] == {"mine": "jsonl:mine.jsonl"}
    # Who has the verdicts can compare with another model later.
    assert list(report["verdicts"]["mine"].values()).count(True) == 3
    before = report["questions"]["mine"]
    write_questions(Path("mine.jsonl"), 5)
    command(*argv)
    assert json.loads(Path("scores.json").read_text())["questions"]["mine"] != before


def test_what_cannot_be_read_is_counted_and_another_rule_reads_it(model, command):
    """The model says "The answer is 7": marked for a number, no option for a choice."""
    rows = [{"id": "a", "question": "What is 3 plus 4?", "choices": ["6", "8"], "answer": "A"}]
    Path("pick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = [row.split() for row in command("evaluate", model, "pick.jsonl", *GREEDY).splitlines()]
    assert table[0][-2:] == ["truncated", "unread"] and table[1][-1] == "1.000"
    table = [row.split() for row in command("evaluate", model, "mine.jsonl", *GREEDY).splitlines()]
    assert table[1][-1] == "0.000"


def test_samples_that_are_all_the_same_are_refused(model, capsys):
    assert main(["evaluate", model, "mine.jsonl", "--samples", "4"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: --samples: 4") and "--temperature above 0" in message
