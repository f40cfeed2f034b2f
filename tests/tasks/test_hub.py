import json
import sys
import time
import types

import numpy as np
import pytest

from imm_jax.errors import InputError
from imm_jax.tasks import hub
from imm_jax.tasks.answers import grade_all
from imm_jax.tasks.hub_sets import HUB_SETS
from imm_jax.tasks.prompts import response_text
from imm_jax.tasks.sources import make_task

LABELLED = {"text": ["mars", "venus"], "label": ["1", "2"]}
# What each named set's rows look like on the hub, as its card shows them, and the gold answer.
ROWS = {
    "gsm8k": ({"question": "Q?", "answer": "5 * 2 = <<5*2=10>>10\n#### 10"}, "10"),
    "math": (
        {"problem": "P", "level": "Level 5", "solution": r"\boxed{2}", "type": "Algebra"},
        "2",
    ),
    "math500": (
        {
            "problem": "P",
            "solution": r"\boxed{(3, \frac{\pi}{2})}",
            "answer": r"(3, \frac{\pi}{2})",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        },
        r"(3, \frac{\pi}{2})",
    ),
    "commonsense_qa": (
        {
            "id": "1afa",
            "question": "Q?",
            "question_concept": "punishing",
            "choices": {"label": ["A", "B"], "text": ["ignore", "enforce"]},
            "answerKey": "A",
        },
        "A",
    ),
    "arc_easy": ({"id": "M1", "question": "Q?", "choices": LABELLED, "answerKey": "2"}, "B"),
    "arc_challenge": ({"id": "M1", "question": "Q?", "choices": LABELLED, "answerKey": "1"}, "A"),
    "openbookqa": (
        {"id": "7-980", "question_stem": "Q", "choices": LABELLED, "answerKey": "2"},
        "B",
    ),
    "mmlu": ({"question": "Q", "subject": "x", "choices": ["4", "2", "1", "0"], "answer": 2}, "C"),
    "svamp": (
        {"ID": "chal-1", "Body": "He had 9.", "Question": "Now?", "Answer": "145.0", "Type": "Sum"},
        "145",
    ),
    "multiarith": ({"question": " How many?", "final_ans": "39"}, "39"),
    "addsub": ({"iIndex": 3, "sQuestion": "How many?", "lSolutions": [4.5]}, "4.5"),
    "single_eq": (
        {"iIndex": 0, "sQuestion": "Part?", "lSolutions": [0.6666666666666666]},
        "2/3",
    ),
    "aqua": (
        {
            "question": "How much?",
            "options": ["A)21", "B)21.5", "C)22", "D)22.5", "E)23"],
            "rationale": "Sum it up. Answer: C",
            "correct": "C",
        },
        "C",
    ),
    "strategy_qa": ({"qid": "872c", "question": "Can it?", "answer": False, "facts": "F"}, "B"),
    "logiqa": (
        {
            "context": "All are.",
            "query": "So?",
            "options": ["w", "x", "y", "z"],
            "correct_option": 3,
        },
        "D",
    ),
    "date_understanding": (
        {"input": "What date?", "target_scores": {"05/01/2021": 1, "02/23/2021": 0}},
        None,  # the options are put in another order
    ),
    "object_tracking": (
        {"input": "Alice has the", "target_scores": {"red ball.": 0, "blue ball.": 1}},
        None,
    ),
    "coin_flip": ({"question": "Still heads up?", "answer": "no"}, "no"),
    "last_letters": ({"question": "Last letters of A B?", "answer": "ab"}, "ab"),
}


@pytest.fixture
def loads(monkeypatch, tmp_path):
    """Replaces the network: records the calls, and gives rows of the set asked for."""
    import datasets

    calls = []

    def load(path, config, *, split, revision):
        calls.append((path, config, split, revision))
        name = next(n for n, s in HUB_SETS.items() if (s.path, s.config) == (path, config))
        return [ROWS[name][0]]

    def fetch(url, **_):
        calls.append((url,))
        [(name, known)] = [(n, s) for n, s in HUB_SETS.items() if s.url == url]
        rows = [ROWS[name][0]]
        path = tmp_path / "fetched.json"
        path.write_text(json.dumps({known.field: rows} if known.field else rows))
        return str(path)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.utils.file_utils, "cached_path", fetch)
    monkeypatch.setattr(hub, "_reachable", lambda *_: True)
    return calls


@pytest.mark.parametrize("name", list(HUB_SETS))
def test_named_sets_are_read(name, loads):
    task = make_task(f"hub:{name}", train_size=0)
    known, [example] = HUB_SETS[name], task.test
    if known.url:
        assert loads == [(known.url,)] and known.url in task.source
    else:
        assert loads == [(known.path, known.config, known.test, known.revision)]
        assert (known.revision or "main") in task.source
    row, gold = ROWS[name]
    if gold is None:
        [right] = [text for text, score in row["target_scores"].items() if score]
        assert set(example.choices) == set(row["target_scores"])
        assert example.choices["AB".index(example.answer)] == right
    else:
        assert example.answer == gold
    if task.answer_type != "math":
        assert grade_all(task, [(example, response_text(example))])[0].correct


def test_options_come_without_their_letters_and_questions_with_their_context(loads):
    aqua, logiqa = (make_task(f"hub:{name}", train_size=0).test[0] for name in ("aqua", "logiqa"))
    assert aqua.choices == ("21", "21.5", "22", "22.5", "23")
    assert aqua.solution == "Sum it up. Answer: C\nThe answer is C."
    assert logiqa.question == "All are.\nSo?" and logiqa.choices == ("w", "x", "y", "z")
    assert make_task("hub:strategy_qa", train_size=0).test[0].choices == ("Yes", "No")


def test_options_with_scores_are_shuffled_by_the_question(loads, monkeypatch):
    """In the file the right option comes first."""
    rows = [
        {"input": f"Day {n}?", "target_scores": {"right": 1, "wrong": 0, "no": 0}}
        for n in range(60)
    ]
    monkeypatch.setattr(hub, "_read_file", lambda *_: rows)
    first, again = (make_task("hub:date_understanding").test for _ in range(2))
    assert first == again
    counts = [sum(example.answer == letter for example in first) for letter in "ABC"]
    assert min(counts) >= 10
    assert all(example.choices["ABC".index(example.answer)] == "right" for example in first)


def test_revision_and_splits_can_be_chosen(loads):
    task = make_task("hub:gsm8k,revision=abc,test=train,train=")
    assert loads == [("openai/gsm8k", "main", "train", "abc")]
    assert task.train == () and "revision abc" in task.source
    with pytest.raises(InputError, match="hub:addsub: revision= is of no use"):
        make_task("hub:addsub,revision=abc")


BAD = {
    "aqua": ({"correct": "F"}, "the answer 'F' is not among the options"),
    "logiqa": ({"correct_option": 4}, "the answer 4 is not among the 4 choices"),
    "object_tracking": ({"target_scores": {"a": 1, "b": 1}}, "should give one option the score 1"),
    "addsub": ({"lSolutions": [1, 2]}, "should be a list of one number"),
    "multiarith": ({"final_ans": "many"}, "expected a number as 'final_ans', found 'many'"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_rows_that_cannot_be_used(name, loads, monkeypatch):
    changes, message = BAD[name]
    monkeypatch.setitem(ROWS, name, ({**ROWS[name][0], **changes}, ""))
    with pytest.raises(InputError, match=r"\[test\]\[0\]: .*" + message):
        make_task(f"hub:{name}", train_size=0)


def test_a_bad_row_is_named(loads, monkeypatch):
    monkeypatch.setitem(ROWS, "arc_easy", ({**ROWS["arc_easy"][0], "answerKey": "7"}, ""))
    with pytest.raises(InputError, match=r"ai2_arc \(ARC-Easy\)\[test\]\[0\]: the answer '7'"):
        make_task("hub:arc_easy", train_size=0)


def test_an_unreachable_hub_is_one_clear_line_within_seconds(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    before = (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"openai/gsm8k.*the hub cannot be reached") as caught:
        make_task("hub:gsm8k")
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 10
    assert before == (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)


def test_a_file_that_was_fetched_before_needs_no_network(monkeypatch, tmp_path):
    import datasets
    from datasets.utils.file_utils import hash_url_to_filename

    monkeypatch.setattr(hub, "_reachable", lambda *_: False)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path)
    with pytest.raises(InputError, match=r"AddSub.json, .*githubusercontent.com cannot be reached"):
        make_task("hub:addsub")
    cached = tmp_path / hash_url_to_filename(HUB_SETS["addsub"].url, etag=None)
    cached.write_text(json.dumps([ROWS["addsub"][0]]))
    assert make_task("hub:addsub").test[0].answer == "4.5"


def test_tfds_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'imm-jax\[tfds\]'"):
        make_task("tfds:ai2_arc")


def test_tfds_rows_are_numpy_and_bytes(monkeypatch):
    row = {
        "answerKey": np.int64(1),
        "choices": {"label": [np.int64(0), np.int64(1)], "text": np.array([b"x \xc3\xa9", b"y"])},
        "id": b"i4",
        "question": b"q4",
    }
    fake = types.ModuleType("tensorflow_datasets")
    fake.data_source = lambda name, split: {"train": [row], "test": [row, {**row, "id": b"5"}]}[
        split
    ]
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    task = make_task("tfds:ai2_arc/ARC-Easy")
    assert [e.id for e in task.test] == ["i4", "5"] and task.train[0].id == "train/i4"
    assert task.test[0].choices == ("x é", "y") and task.test[0].answer == "B"
    with pytest.raises(InputError, match=r"tfds:ai2_arc, split 'validation': KeyError"):
        make_task("tfds:ai2_arc,test=validation")
