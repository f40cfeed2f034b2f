"""What the benchmarks decide before and after they measure."""

import argparse
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a benchmark as its command does: its folder comes first."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def parse(bench, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_output(parser)
    return parser.parse_args(words)


def test_figures_go_to_results_and_replace_none_unasked(script, monkeypatch, tmp_path, capsys):
    bench = script("bench")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    path = bench.result_path(parse(bench), "train-cpu")
    assert path == tmp_path / "train-cpu.json"
    bench.write_report(path, {"figures": 1})
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        bench.result_path(parse(bench), "train-cpu")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "results/train-cpu.json exists" in said
    assert bench.result_path(parse(bench, "--force"), "train-cpu") == path
    other = bench.result_path(parse(bench, "--output", "other.json"), "train-cpu")
    assert other == Path("other.json")


def test_jax_leaves_memory_of_a_gpu_to_the_peer(script):
    bench = script("bench")
    assert bench.jax_environment("gpu")["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert bench.jax_environment("cpu") == {"JAX_PLATFORMS": "cpu"}


def updates(*seconds: float):
    """A worker's updates, and how many were made."""
    left = list(seconds)
    return (lambda: {"seconds": left.pop(0)}), left


@pytest.mark.parametrize(
    "device, fastest, expected, made",
    [
        ("cpu", 2.0, {"seconds": 2.0}, 2),
        ("cpu", 1.0, {"seconds": 4.0, "cold": True}, 1),
        ("gpu", 1.0, {"seconds": 1.0}, 4),
    ],
)
def test_a_trial_warms_up_and_leaves_what_is_hopeless(script, device, fastest, expected, made):
    update, left = updates(4.0, 2.0, 1.5, 1.0)
    assert script("train").trial(update, device, fastest) == expected
    assert len(left) == 4 - made


class Side:
    """A worker that counts its updates and notes when it begins and ends."""

    def __init__(self, name: str, log: list[str]):
        self.name, self.log, self.made, self.ready = name, log, 0, {"side": name}
        log.append(f"{name} begins")

    def ask(self) -> dict:
        self.made += 1
        return {"update": self.made}

    def close(self) -> None:
        self.log.append(f"{self.name} ends")


@pytest.mark.parametrize(
    "device, counted, log",
    [
        ("cpu", [4, 6], ["a begins", "b begins", "a ends", "b ends"]),
        ("gpu", [4, 5, 6, 7, 8] * 2, ["a begins", "a ends", "b begins", "b ends"] * 2),
    ],
)
def test_turns_alternate_and_on_a_gpu_one_side_lives_at_a_time(script, device, counted, log):
    noted: list[str] = []
    sides = {name: lambda name=name: Side(name, noted) for name in "ab"}
    found, ready = script("train").take_turns(sides, device, runs=2)
    assert noted == log
    assert ready == {"a": {"side": "a"}, "b": {"side": "b"}}
    assert [[answer["update"] for answer in found[name]] for name in "ab"] == [counted] * 2


def test_the_limit_of_a_round_is_that_of_its_stages(script):
    limits = script("round").limit_seconds(
        {"original": 20, "sample": 30, "fit": 60}, {"original": 10.0, "sample": 10.0, "fit": 20.0}
    )
    assert limits == {"original": 2.0, "sample": 3.0, "fit": 3.0, "round": 6.0, "total": 8.0}


def test_what_keeps_llama_cpp_out_is_said(script, tmp_path):
    why = script("sample").why_no_llama
    assert "no --llama-python" in why(None)
    assert "No such file" in why(str(tmp_path / "python"))
