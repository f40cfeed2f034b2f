"""The commands, for real, on a tiny model."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from imm_jax.arguments import parse
from imm_jax.cli import main
from imm_jax.files import read_jsonl
from imm_jax.models.load import load_model
from imm_jax.tasks.prompts import STYLES, question_styles
from tests.answering import (
    ANSWER,
    results_of,
    run_settings,
    save_answering,
    snapshot,
)
from tests.processes import PATIENCE, start_command

COMMANDS = ("run", "generate", "evaluate", "analyze", "merge", "convert", "plan", "report")
SHORT = ("--max-new-tokens", "16", "--batch-size", "16")
PLAIN = ("--style", "plain", "--temperature", "0", *SHORT)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("model") / "model"
    return save_answering(folder, tiny_config, random_params, tiny_tokenizer)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working folder of its own; the command leaves the cache of compiled programs alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set")


@pytest.fixture(scope="module")
def run_yaml(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(run_settings(model, folder)))
    return folder / "tiny.yaml"


# --help and the command line itself


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_is_understood(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    example = capsys.readouterr().out.split("example:\n")[1].strip()
    words = shlex.split(example)
    assert words[:2] == ["imm-jax", name]
    assert parse(words[1:]).command == name


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"    {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize("name", ["generate", "evaluate", "analyze"])
def test_help_names_the_styles_that_are_taken(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    styles = ["raw (the prompt as it is)", *question_styles()] if name == "generate" else STYLES
    assert f"prompt style: {', '.join(styles)} (default: " in printed


@pytest.mark.parametrize(
    ("argv", "key", "expected"),
    [
        ("run c.yaml a=1 b=2", "overrides", ["a=1", "b=2"]),
        ("run --smoke c.yaml a=1 --output out b=2", "overrides", ["a=1", "b=2"]),
        ("run c.yaml --output out a=1 --smoke b=2", "overrides", ["a=1", "b=2"]),
        ("generate m --style chat why --seed 1 'how so'", "prompts", ["why", "how so"]),
        ("generate --style chat m why", "prompts", ["why"]),
        ("evaluate m --questions 3 t1 --shots 2 t2", "tasks", ["t1", "t2"]),
    ],
)
def test_words_may_stand_between_options(argv, key, expected):
    assert getattr(parse(shlex.split(argv)), key) == expected


def test_the_command_is_installed():
    done = subprocess.run(
        [Path(sys.executable).parent / "imm-jax", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "Iterative Model Merging" in done.stdout


# run


def test_run_and_run_again(run_yaml, model, command, monkeypatch):
    import imm_jax.evaluation
    import imm_jax.rounds.tools

    shutil.copy(run_yaml, "tiny.yaml")
    printed = command("run", "tiny.yaml", "data.shots=4", "--output", "out", "seeds=[3]")
    stored = yaml.safe_load(Path("out/config.yaml").read_text())
    assert stored["seeds"] == [3] and stored["data"]["shots"] == 4
    rows = read_jsonl("out/metrics.jsonl")
    assert [(row["round"], row["arm"]) for row in rows] == [(0, "base"), (1, "vanilla"), (1, "imm")]
    # The model says 7, which answers three of four questions.
    assert rows[0]["in_domain"] == 0.75 and rows[0]["seed"] == 3
    table = printed.splitlines()
    assert table[0].split()[:4] == ["round", "arm", "ID", "OOD"] and len(table) == 7
    assert "0.750 [" in table[2] and "base" in table[2]
    assert "out/plot.png" in printed and "out/model" in printed
    assert Path("out/plot.png").read_bytes().startswith(b"\x89PNG")
    tuned = load_model("out/model")[1]
    assert not np.array_equal(tuned["lm_head"]["kernel"], load_model(model)[1]["lm_head"]["kernel"])

    # A finished run: nothing is sampled or trained, nothing changes.
    def again(*args, **kwargs):
        raise AssertionError("work was done again")

    monkeypatch.setattr(imm_jax.evaluation, "generate", again)
    monkeypatch.setattr(imm_jax.rounds.tools, "fit", again)
    before, start = snapshot(Path("out")), time.process_time()
    argv = ("run", "--output", "out", "tiny.yaml", "data.shots=4", "seeds=[3]")
    assert command(*argv) == printed
    after = snapshot(Path("out"))
    assert {name for name in before if before[name] != after[name]} <= {"plot.png"}
    assert before.keys() == after.keys() and time.process_time() - start < 10


def rows_of(config) -> list[dict]:
    """As many rows as a run has."""
    places = [(0, "base"), *((t + 1, arm) for t in range(config.rounds) for arm in config.arms)]
    return [
        {"seed": seed, "round": t, "arm": arm, "in_domain": None, "distance": 0.0}
        for seed in config.seeds
        for t, arm in places
    ]


def test_a_run_without_the_rounds_of_an_arm_shows_the_others_and_says_so(
    run_yaml, capsys, monkeypatch
):
    import imm_jax.rounds.run

    monkeypatch.setattr(imm_jax.rounds.run, "run", lambda config, *_, **__: rows_of(config)[:-2])
    assert main(["run", str(run_yaml), "rounds=3", "seeds=[0, 1]"]) == 2
    printed = capsys.readouterr()
    assert "    3  vanilla" in printed.out and "runs/tiny/plot.png" in printed.out
    assert "model:" not in printed.out
    assert "error: runs/tiny: 2 of 14 rows are missing, of arms that diverged" in printed.err


@pytest.mark.parametrize(
    ("words", "folder", "samples"), [((), "runs/tiny", 2), (("--smoke",), "runs/tiny-smoke", 3)]
)
def test_where_a_run_goes_and_what_smoke_changes(
    words, folder, samples, run_yaml, command, monkeypatch
):
    import imm_jax.config
    import imm_jax.rounds.run

    def record(config, output, **_):
        called.append((config, output))
        return rows_of(config)

    called = []
    monkeypatch.setattr(imm_jax.rounds.run, "run", record)
    monkeypatch.setitem(imm_jax.config.SMOKE, "samples", 3)
    printed = command("run", run_yaml, *words, "rounds=7")
    config, output = called[0]
    assert output == Path(folder) and f"{folder}/plot.png" in printed
    assert (config.rounds, config.samples) == (7, samples)


@pytest.mark.slow
def test_signals_stop_politely_and_the_same_command_goes_on(run_yaml, tmp_path):
    settings = yaml.safe_load(run_yaml.read_text()) | {"rounds": 2, "block": 2}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(settings))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    def start(output):
        argv = ["run", str(tmp_path / "two.yaml"), "--output", str(output)]
        return start_command(argv, tmp_path / "log", cache=tmp_path / "xla")

    def ended(process) -> tuple[int, str]:
        process.join(PATIENCE)
        return process.exitcode, (tmp_path / "log.err").read_text()

    code, errors = ended(start(whole))
    assert code == 0, errors
    for number, sign, code in (
        (signal.SIGTERM, "seed-0/round-1/shared/samples", 143),
        (signal.SIGINT, "seed-0/round-1/shared/selected.jsonl", 130),
        (signal.SIGTERM, "seed-0/round-1/vanilla/model", 143),
    ):
        process = start(stopped)
        limit = time.monotonic() + PATIENCE
        while not (stopped / sign).exists():
            assert process.is_alive() and time.monotonic() < limit
            time.sleep(0.002)
        os.kill(process.pid, number)
        found, errors = ended(process)
        assert found == code, errors
        assert "stopping at the next step" in errors and "Traceback" not in errors
        assert errors.splitlines()[-1].endswith("the same command goes on from here")
        assert not (stopped / "model").exists()
    code, errors = ended(start(stopped))
    assert code == 0, errors
    one, other = snapshot(whole), snapshot(stopped)
    assert one["model/model.safetensors"] == other["model/model.safetensors"]
    one, other = (read_jsonl(folder / "metrics.jsonl") for folder in (whole, stopped))
    assert results_of(one) == results_of(other)


# generate


def test_generate_prints_the_answer(model, command):
    assert command("generate", model, "What is 3 plus 4?", *PLAIN) == ANSWER.strip() + "\n"


def test_generate_from_a_file_to_a_file(model, command):
    Path("prompts.txt").write_text("What is 2 plus 5?\n\nWhat is 9 minus 2?\n")
    argv = ("generate", model, "--file", "prompts.txt", "--output", "out/answers.jsonl")
    assert "6 samples" in command(*argv, "And 7?", *PLAIN, "--samples", "2")
    rows = read_jsonl("out/answers.jsonl")
    prompts = ["And 7?", "What is 2 plus 5?", "What is 9 minus 2?"]
    assert [(row["prompt"], row["sample"]) for row in rows] == [
        (prompt, sample) for prompt in prompts for sample in (0, 1)
    ]
    for row in rows:
        assert row["text"] == ANSWER and row["finish_reason"] == "stop"
        assert len(row["logprobs"]) == len(row["tokens"]) and max(row["logprobs"]) <= 0


def test_generate_is_seeded(model, command):
    argv = ("generate", model, "What is 3 plus 4?", "Answer:", "--temperature", "9", *SHORT)
    one = command(*argv, "--seed", "1")
    assert one.count("[Answer:]") == 1
    assert command(*argv, "--seed", "1") == one
    assert command(*argv, "--seed", "2") != one


def test_generate_stops_where_told(model, command):
    argv = ("generate", model, "Answer:", "--temperature", "0", *SHORT)
    assert command(*argv, "--stop", "is") == "The answer\n"
