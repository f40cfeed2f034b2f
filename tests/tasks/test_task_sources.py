import json
import logging

import pytest

from imm_jax.errors import InputError
from imm_jax.tasks.answers import grade_all
from imm_jax.tasks.prompts import response_text
from imm_jax.tasks.shots import WORKED
from imm_jax.tasks.sources import make_task, parse_spec

PLAIN = {"question": "2 + 2?", "answer": "4"}
CHOICE = {"question": "Red?", "choices": ["grass", "blood"], "answer": "B"}
GSM8K = {"question": "Ducks?", "answer": "She has 16 - 3 = <<16-3=13>>13 eggs.\n#### 1,013"}


def write(folder, *rows, name="data.jsonl"):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_plain_rows(tmp_path):
    rows = [
        PLAIN,
        "",
        {"id": "b", "question": " Half? ", "answer": 0.5, "choices": None, "kind": "halves"},
        {"id": 7, "question": "Tenth?", "answer": "1/10", "solution": "The answer is 1/10."},
    ]
    task = make_task(str(write(tmp_path, *rows)))
    assert (task.name, task.answer_type, task.train) == ("data", "number", ())
    assert [e.id for e in task.test] == ["data-00000", "b", "7"]
    assert [e.answer for e in task.test] == ["4", "0.5", "1/10"]
    assert task.test[1].question == "Half?" and task.test[1].kind == "halves"
    assert task.shots == WORKED["number"]


def test_json_numbers_keep_their_digits(tmp_path):
    path = write(tmp_path, '{"question": "?", "answer": 0.1000000000000000055511151231257827}')
    assert make_task(str(path)).test[0].answer == "0.1000000000000000055511151231257827"


def test_choice_rows_by_letter_text_and_index(tmp_path):
    rows = [
        CHOICE,
        {**CHOICE, "answer": "b"},
        {**CHOICE, "answer": "Blood"},
        {**CHOICE, "answer": 1},
    ]
    task = make_task(str(write(tmp_path, *rows)))
    assert task.answer_type == "choice"
    assert [e.answer for e in task.test] == ["B"] * 4
    assert task.test[0].choices == ("grass", "blood")


def test_of_options_with_the_same_text_any_is_right(tmp_path):
    row = {"question": "Speed?", "choices": ["15", "6", "12", "6"], "answer": "D"}
    task = make_task(str(write(tmp_path, row)))
    [example] = task.test
    assert example.answer == "B"
    said = {" The answer is D.": True, " The answer is (B).": True, " The answer is 6.": True,
            " The answer is C.": False}  # fmt: skip
    grades = grade_all(task, [(example, text) for text in said])
    assert [grade.correct for grade in grades] == list(said.values())
    assert [grade.answer for grade in grades] == ["B", "B", "B", "C"]


def test_yes_or_no_rows(tmp_path):
    rows = [{"question": "Wet?", "answer": True}, {"question": "Dry?", "answer": False}]
    task = make_task(str(write(tmp_path, *rows)))
    assert task.answer_type == "choice"
    assert [(e.choices, e.answer) for e in task.test] == [(("Yes", "No"), a) for a in "AB"]


def test_multiples_of_a_third_that_went_through_a_float(tmp_path):
    rows = [{"question": f"{n}?", "answer": str(n / 3)} for n in (1, 2, 5, 100)]
    rows.append({"question": "tenth?", "answer": "0.1"})
    task = make_task(str(write(tmp_path, *rows)))
    assert [e.answer for e in task.test] == ["1/3", "2/3", "5/3", "100/3", "0.1"]
    assert grade_all(task, [(task.test[1], " The answer is 2/3.")])[0].correct


def test_gsm8k_rows(tmp_path):
    task = make_task(str(write(tmp_path, GSM8K)))
    (example,) = task.test
    assert example.answer == "1013"
    assert example.solution == "She has 16 - 3 = 13 eggs.\nThe answer is 1013."
    assert grade_all(task, [(example, response_text(example))])[0].correct


def test_math_rows(tmp_path):
    row = {"problem": "Solve.", "solution": r"So \boxed{\frac{1}{2}}.", "type": "Algebra"}
    task = make_task(str(write(tmp_path, row)))
    assert task.answer_type == "math"
    assert task.test[0].answer == r"\frac{1}{2}" and task.test[0].kind == "Algebra"
    assert task.test[0].solution.endswith("The answer is $\\frac{1}{2}$.")


@pytest.mark.parametrize("boxed", [r"$\boxed 2$", r"\boxed 2$", r"$\fbox{2}$"])
def test_boxes_as_a_few_solutions_of_math_have_them(boxed, tmp_path):
    row = {"problem": "Solve.", "solution": f"Thus, the answer is {boxed}.", "type": "Algebra"}
    task = make_task(str(write(tmp_path, row)))
    (example,) = task.test
    assert example.answer == "2"
    assert grade_all(task, [(example, response_text(example))])[0].correct


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PLAIN).encode() + b"\r\n")
    assert len(make_task(str(path)).test) == 1


def test_both_splits_name_and_type(tmp_path):
    train = write(tmp_path, PLAIN, {"question": "3?", "answer": "3"}, name="a.jsonl")
    test = write(tmp_path, {"question": "5?", "answer": "5"}, name="b.jsonl")
    task = make_task(f"jsonl:train={train},test={test},type=text,name=sums")
    assert (task.name, task.answer_type) == ("sums", "text")
    assert [e.id for e in task.train] == ["train/a-00000", "train/a-00001"]
    assert [e.id for e in task.test] == ["b-00000"]
    assert str(test) in task.source and str(train) in task.source


def test_equal_ids_in_both_files_do_not_clash(tmp_path):
    train = write(tmp_path, {**PLAIN, "id": "1"}, name="a.jsonl")
    test = write(tmp_path, {"id": "1", "question": "5?", "answer": "5"}, name="b.jsonl")
    task = make_task(f"jsonl:train={train},test={test}")
    assert {e.id for e in task.train + task.test} == {"train/1", "1"}


def test_a_question_in_both_splits_is_warned_about(tmp_path, caplog):
    path = write(tmp_path, PLAIN)
    with caplog.at_level(logging.WARNING, logger="imm_jax"):
        make_task(f"jsonl:train={path},test={path}")
    assert "1 questions are in both splits" in caplog.text


def test_sizes_choose_by_seed_and_larger_ones_only_add(tmp_path):
    rows = [{"question": f"{n}?", "answer": n} for n in range(200)]
    spec = str(write(tmp_path, *rows))
    few = make_task(spec, seed=1, test_size=20).test
    more = make_task(spec, seed=1, test_size=50).test
    assert len(few) == 20 and {e.id for e in few} < {e.id for e in more}
    assert [e.id for e in more] == sorted(e.id for e in more)
    assert few != make_task(spec, seed=2, test_size=20).test
    assert len(make_task(spec, test_size=5000).test) == 200
    assert make_task(spec, test_size=0).test == ()


BAD_ROWS = [
    ("{", "not valid JSON"),
    ("[1]", "expected a JSON object, found list"),
    ('"text"', "expected a JSON object, found str"),
    ('{"question": "?", "answer": NaN}', "NaN is not a number"),
    ("[" * 100_000, "not valid JSON"),
    ({"answer": "4"}, "'question' is missing, found 'answer'"),
    ({"question": "?"}, "'answer' is missing or empty, found 'question'"),
    ({}, "'question' is missing, found no keys"),
    ({"question": "?", "answer": None}, "'answer' is missing or empty"),
    ({"question": "", "answer": "4"}, "'question' is empty"),
    ({"question": 5, "answer": "4"}, "'question' should be text, found int"),
    ({"question": "?", "answer": ["4"]}, "'answer' should be text, found list"),
    ({"question": "?", "answer": True}, "form 'yes or no' after rows of form 'question and"),
    ({"question": "?", "answer": "  "}, "'answer' is empty"),
    ({"question": "?", "answer": "4", "id": [1]}, "'id' should be text or a whole number"),
    ({"question": "?", "answer": "4", "id": "same"}, "'same' was used before, at .*data.jsonl:1"),
    ({"question": "?", "answer": "4", "solution": 3}, "'solution' should be text"),
    (CHOICE, "form 'choices' after rows of form 'question and answer'"),
    (GSM8K, "form 'gsm8k' after rows of form 'question and answer'"),
]
BAD_CHOICES = [
    ({**CHOICE, "answer": "C"}, "'C' is not among the choices: expected a letter from A to B"),
    ({**CHOICE, "answer": "red"}, "'red' is not among the choices"),
    ({**CHOICE, "answer": 2}, "2 is not among the choices"),
    ({**CHOICE, "answer": True}, "'answer' should be text, found bool"),
    ({**CHOICE, "choices": "grass"}, "'choices' should be a list of texts, found str"),
    ({**CHOICE, "choices": ["grass"]}, "'choices' should have 2 to 26 options, found 1"),
    ({**CHOICE, "choices": ["grass", None]}, "found None in it"),
    ({**CHOICE, "choices": ["x", "x"], "answer": "x"}, "'x' is several of the choices"),
    (PLAIN, "form 'question and answer' after rows of form 'choices'"),
]
BAD_GSM8K = [
    ({"question": "?", "answer": "So it is.\n#### many"}, "expected a number after '####'"),
    ({"question": "?", "answer": "So it is."}, "form 'question and answer' after rows of form"),
]


@pytest.mark.parametrize(
    "first, bad, message",
    [({**PLAIN, "id": "same"}, *case) for case in BAD_ROWS]
    + [(CHOICE, *case) for case in BAD_CHOICES]
    + [(GSM8K, *case) for case in BAD_GSM8K],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, first, bad, message):
    path = write(tmp_path, first, "", bad)
    with pytest.raises(InputError, match=message) as caught:
        make_task(str(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(PLAIN).encode() + b'\n{"question": "\xff", "answer": "1"}\n')
    with pytest.raises(InputError, match=r"data.jsonl:2: not UTF-8 text \(byte 15"):
        make_task(str(path))


def test_an_answer_that_is_no_number_where_numbers_are_asked_for(tmp_path):
    path = write(tmp_path, PLAIN, {"question": "?", "answer": "many"})
    assert make_task(str(path)).answer_type == "text"
    with pytest.raises(InputError, match=r":2: expected a number as the answer, found 'many'"):
        make_task(f"jsonl:{path},type=number")


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"data.jsonl: the file is empty"):
        make_task(str(path))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("builtin:one_stpe", "unknown built-in task 'one_stpe' .*'one_step'"),
        ("one_step", "did you mean 'builtin:one_step'"),
        ("gsm8k", "did you mean 'hub:gsm8k'"),
        ("bultin:two_step", "did you mean 'builtin:two_step'"),
        ("hub:gsm9k", "unknown hub data set 'gsm9k' .*'gsm8k'"),
        ("hub:gsm8k,tset=train", "unknown option 'tset' .*'test'"),
        ("hub:gsm8k,test=a,test=b", "'test' is given twice"),
        ("jsonl:a.jsonl,test=b.jsonl", "the test file is given twice"),
        ("jsonl:a.jsonl,type=numbr", "unknown answer type 'numbr' .*'number'"),
        ("jsonl:a.jsonl,type=reasoning_gym", "'reasoning_gym' need its own task"),
        ("builtin:", "a name or path is missing"),
        ("jsonl:", "a name or path is missing"),
        ("", "a task should be text"),
        ("missing.jsonl", "missing.jsonl: cannot be read"),
        ("zzz", "unknown task 'zzz'; expected builtin:NAME"),
    ],
)
def test_specs_that_cannot_be_used(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        make_task(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [-1, 2.5, True, "10"])
def test_sizes_that_cannot_be_used(size):
    with pytest.raises(InputError, match=r"test_size should be a whole number"):
        make_task("builtin:one_step", test_size=size)


def test_a_folder_is_not_a_file(tmp_path):
    folder = tmp_path / "x.jsonl"
    folder.mkdir()
    with pytest.raises(InputError, match=r"x.jsonl: cannot be read"):
        make_task(str(folder))


def test_parse_spec():
    assert parse_spec(" hub:a/b,test=x,type=math ") == ("hub", "a/b", {"test": "x", "type": "math"})
    assert parse_spec("dir,1/a.jsonl") == ("jsonl", "dir,1/a.jsonl", {})


def test_builtin_sizes_name_and_record():
    task = make_task("builtin:one_step,name=id", seed=3, train_size=4, test_size=2)
    assert (task.name, len(task.train), len(task.test)) == ("id", 4, 2)
    assert "seed 3" in task.source and "version" in task.source
