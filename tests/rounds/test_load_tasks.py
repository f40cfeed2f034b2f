"""Suites in a run's settings."""

import pytest

from imm_jax.config import DataConfig, RunConfig
from imm_jax.errors import InputError
from imm_jax.rounds.run import load_tasks
from tests.answering import write_questions


def test_a_suite_is_its_tasks_out_of_domain_and_refused_in_domain(tmp_path):
    for name in ("last_letters", "coin_flip"):
        write_questions(tmp_path / f"{name}.jsonl", 3)
    suite = f"suite:symbolic,folder={tmp_path}"
    data = DataConfig(
        in_domain="builtin:one_step",
        out_of_domain=(suite, "builtin:two_step"),
        train_questions=4,
        test_questions=2,
    )
    tasks = load_tasks(RunConfig(model="m", data=data))
    assert [task.name for task in tasks] == ["one_step", "last_letters", "coin_flip", "two_step"]
    assert [len(task.test) for task in tasks] == [2] * 4
    with pytest.raises(InputError, match="a suite is several tasks, expected one"):
        load_tasks(RunConfig(model="m", data=DataConfig(in_domain=suite)))
