"""Arms beside the original and vanilla, on answers written by hand."""

import dataclasses

import pytest

from experiments.differences import differences, draw, line, main
from imm_jax.analysis.outcome import Run
from imm_jax.errors import InputError

VANILLA = {"weight": 1.0, "drop_rate": 0.0, "start_from": "merged"}
TASKS = ("practised", "other", "third")


def make_run(
    name: str, arms: dict[str, list[str]], *, seeds=(0, 1), tasks=TASKS, t: int = 2
) -> Run:
    """A run whose arms answer each task as a string of 0 and 1 says, whatever the seed."""

    def answers(right: list[str]) -> dict:
        return {
            task: [{"id": f"q{i}", "correct": mark == "1"} for i, mark in enumerate(marks)]
            for task, marks in zip(tasks, right)
        }

    rows = [{"seed": 0, "round": 0, "arm": "base", "tasks": dict.fromkeys(tasks)}]
    found = {(seed, 0, "base"): answers(["0101", "0011", "1000"]) for seed in seeds}
    for arm, right in arms.items():
        rows += [{"seed": s, "round": t, "arm": arm, "tasks": dict.fromkeys(tasks)} for s in seeds]
        found |= {(seed, t, arm): answers(right) for seed in seeds}
    settings = {arm: VANILLA if arm == "vanilla" else VANILLA | {"weight": 0.5} for arm in arms}
    config = {"arms": settings, "seeds": list(seeds), "rounds": t}
    return Run(name=name, config=config, record={}, rows=rows, answers=found, questions={})


PRACTISED = {"vanilla": ["1111", "0001", "0000"], "imm": ["0111", "0011", "1100"]}


def test_accuracies_and_differences_are_those_of_the_answers():
    vanilla, imm = differences([make_run("main", PRACTISED)], 2)["arms"]
    assert (vanilla["arm"], imm["arm"]) == ("vanilla", "imm")
    assert vanilla["from_vanilla"] is None and imm["seeds"] == [0, 1]
    found = imm["from_original"]
    assert (found["in_domain"]["first"], found["in_domain"]["second"]) == (0.75, 0.5)
    assert found["out_of_domain"]["difference"] == pytest.approx((0.5 + 0.5) / 2 - (0.5 + 0.25) / 2)
    assert found["third"]["difference"] == 0.25
    assert imm["from_vanilla"]["in_domain"]["difference"] == -0.25
    assert imm["from_vanilla"]["out_of_domain"]["difference"] == pytest.approx(0.5 - 0.125)


def test_a_run_without_other_tasks_is_drawn(tmp_path):
    from matplotlib import pyplot

    found = differences([make_run("main", PRACTISED, tasks=("practised",))], 2)
    assert found["arms"][1]["from_original"]["out_of_domain"] is None
    axis = draw(pyplot, found).axes[0]
    assert axis.get_legend_handles_labels()[1] == ["in domain"]
    assert "OOD" not in line(found["arms"][1])


def test_another_runs_arms_stand_beside_this_ones_vanilla_on_the_seeds_of_both():
    more = make_run("more", {"half": ["1101", "0011", "1000"]}, seeds=(1, 2))
    *_, half = differences([make_run("main", PRACTISED), more], 2)["arms"]
    assert (half["run"], half["seeds"]) == ("more", [1, 2])
    assert half["from_original"]["in_domain"]["seeds"] == 2
    assert half["from_vanilla"]["in_domain"]["seeds"] == 1
    assert half["from_vanilla"]["in_domain"]["difference"] == -0.25


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    run = make_run("main", PRACTISED)
    with pytest.raises(InputError, match="its tasks are not those of main"):
        differences([run, make_run("more", PRACTISED, tasks=("practised", "else", "third"))], 2)
    with pytest.raises(InputError, match="more: another run has an arm vanilla too"):
        differences([run, make_run("more", PRACTISED)], 2)
    other = dataclasses.replace(run, name="more", record={"tasks": {"practised": "seed 2"}})
    with pytest.raises(InputError, match="more: its questions are not those of main"):
        differences([run, other], 2)
    with pytest.raises(InputError, match="main: no arm has finished round 3"):
        differences([run], 3)
    assert main([str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "is not a folder" in capsys.readouterr().err and not list(tmp_path.iterdir())
