import json
import logging
from pathlib import Path

import pytest

from imm_jax.errors import InputError
from imm_jax.tasks import make_task, make_tasks
from imm_jax.tasks.hub_sets import HUB_SETS, SUITES
from imm_jax.tasks.suites import expand


def write(path, *answers):
    rows = ({"question": f"{path.stem} {i}?", "answer": a} for i, a in enumerate(answers))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_suite_is_of_known_sets():
    for name, members in SUITES.items():
        assert set(members) <= set(HUB_SETS) and len(set(members)) == len(members)
        assert expand([f"suite:{name}"]) == [f"hub:{member}" for member in members]


def test_the_readme_names_every_set_and_suite():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for name in (*HUB_SETS, *SUITES):
        assert f"`{name}`" in readme, name


def test_a_suite_leaves_out_what_came_before():
    found = expand(["builtin:one_step", "suite:symbolic", "suite:out_of_domain"])
    assert found[:3] == ["builtin:one_step", "hub:last_letters", "hub:coin_flip"]
    assert len(found) == len(set(found)) == 1 + len(SUITES["out_of_domain"])
    # What a person writes twice stays, and is refused by its name later.
    assert expand(["a.jsonl", "a.jsonl"]) == ["a.jsonl", "a.jsonl"]


def test_a_folder_gives_the_files_it_has(tmp_path, caplog):
    write(tmp_path / "svamp.jsonl", 3, 4)
    write(tmp_path / "gsm8k_test.jsonl", "So.\n#### 5")
    write(tmp_path / "gsm8k_train.jsonl", "So.\n#### 6")
    write(tmp_path / "multiarith_train.jsonl", 7)  # no test questions: left out
    with caplog.at_level(logging.WARNING, logger="imm_jax"):
        tasks = make_tasks([f"suite:arithmetic,folder={tmp_path}"], test_size=1)
    assert [task.name for task in tasks] == ["gsm8k", "svamp"]
    assert [[e.answer for e in task.train] for task in tasks] == [["6"], []]
    assert [len(task.test) for task in tasks] == [1, 1]
    assert "left out" in caplog.text
    assert "single_eq, addsub, multiarith, aqua" in caplog.text


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            "suite:arithmetik",
            r"unknown suite 'arithmetik' \(did you mean 'arithmetic'\?\); known: ",
        ),
        ("suite:", "a name or path is missing after 'suite:'"),
        ("suite:symbolic,foldr=x", "unknown option 'foldr' .*'folder'"),
        ("suite:symbolic,folder=nowhere", "nowhere has no file last_letters.jsonl"),
        ("suite:symbolic,test=x", "unknown option 'test'"),
    ],
)
def test_suites_that_cannot_be_used(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        make_tasks(["builtin:one_step", spec], test_size=1)
    assert "\n" not in str(caught.value)


def test_a_suite_is_not_a_task():
    with pytest.raises(InputError, match="suite:symbolic: a suite is several tasks, expected one"):
        make_task("suite:symbolic")
    with pytest.raises(InputError, match="did you mean 'suite:arithmetic'"):
        make_task("arithmetic")
