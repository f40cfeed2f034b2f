"""A search on disk: cut off anywhere, it goes on to the same result, to the bit."""

import fcntl
import json

import numpy as np
import pytest

from imm_jax.errors import InputError, Interrupted
from imm_jax.merging import Interval, search
from imm_jax.merging.search_record import keep

SPACE = {"x": Interval(0, 1), "y": Interval(-2.0, shape=(2,))}
SETTINGS = {"budget": 24, "population": 6, "seed": 4, "about": {"model": "tiny"}}
CENTRE = np.float32(0.3)


def hill(w):
    """Smooth, but not a number where ``y[1]`` is low."""
    score = -((w["x"] - CENTRE) ** 2) - ((w["y"] - CENTRE) ** 2).sum()
    return score + 0 * (w["y"][1] + 1.8) ** 0.5


def assert_same(one, other):
    for name in ("candidates", "scores"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype == np.float64 and a.tobytes() == b.tobytes()
    assert one.score == other.score
    assert all(np.array_equal(one.weights[k], other.weights[k]) for k in one.weights)


@pytest.fixture(scope="module", params=[False, True], ids=["one by one", "batched"])
def whole(request, tmp_path_factory):
    """A search that was never cut off, its record, and its mode."""
    path = tmp_path_factory.mktemp("search") / "deep" / "whole.jsonl"
    found = search(hill, SPACE, path=path, batched=request.param, **SETTINGS)
    assert np.isinf(found.scores).any() and len(found.scores) == 24
    return found, path.read_bytes(), request.param


def test_a_record_holds_what_was_scored(whole):
    found, data, _ = whole
    header, *rows = map(json.loads, data.splitlines())
    assert header["search"]["seed"] == 4 and header["search"]["about"] == {"model": "tiny"}
    drawn = np.array([row["candidate"] for row in rows])
    within = np.clip(drawn, [0, -2, -2], [1, np.inf, np.inf])
    assert not np.array_equal(drawn, within)
    np.testing.assert_array_equal(within, found.candidates)
    scores = [-np.inf if row["score"] is None else row["score"] for row in rows]
    np.testing.assert_array_equal(scores, found.scores)


@pytest.mark.parametrize("lines, extra", [(0, 0), (0, 17), (1, 0), (1, 9), (3, 0), (7, 0), (16, 30),
                                          (24, -1), (25, 0)])  # fmt: skip
def test_a_search_cut_off_at_any_byte_goes_on_to_the_same_bits(whole, tmp_path, lines, extra):
    found, data, batched = whole
    ends = [0, *(i + 1 for i, byte in enumerate(data) if byte == ord("\n"))]
    path = tmp_path / "cut.jsonl"
    path.write_bytes(data[: ends[lines] + extra])
    scored = []

    def objective(w):
        scored.append(None)
        return hill(w)

    again = search(objective, SPACE, path=path, batched=batched, **SETTINGS)
    assert_same(again, found)
    assert path.read_bytes() == data
    there = max(0, lines - 1 + min(extra, 0))
    # one trace of a batched search scores all candidates
    assert len(scored) == (min(24 - there, 1) if batched else 24 - there)


def test_a_search_stopped_or_broken_again_and_again_ends_as_one_that_was_not(whole, tmp_path):
    found, data, batched = whole
    path, asked, calls = tmp_path / "stopped.jsonl", [], []

    def stop():
        asked.append(None)
        return len(asked) % 4 == 0

    def objective(w):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return hill(w)

    stopped = []
    for _ in range(20):
        try:
            again = search(
                objective, SPACE, path=path, batched=batched, should_stop=stop, **SETTINGS
            )
            break
        except (Interrupted, KeyboardInterrupt) as error:
            stopped.append(str(error))
    assert_same(again, found)
    assert path.read_bytes() == data
    assert len(stopped) >= 1 and all(s == "" or "stopped after" in s for s in stopped)
    assert "of 24 scores" in stopped[-1]


def test_a_larger_budget_goes_on_and_a_smaller_one_takes_the_beginning(whole, tmp_path):
    found, data, batched = whole
    path = tmp_path / "grow.jsonl"
    small, large = (SETTINGS | {"budget": budget} for budget in (13, 24))
    first = search(hill, SPACE, path=path, batched=batched, **small)
    np.testing.assert_array_equal(first.candidates, found.candidates[:12])
    assert_same(search(hill, SPACE, path=path, batched=batched, **large), found)
    assert path.read_bytes() == data
    assert_same(search(hill, SPACE, path=path, batched=batched, **small), first)


def test_the_record_decides_where_another_machine_would_have_drawn_otherwise(whole, tmp_path):
    found, data, batched = whole
    lines = data.splitlines(keepends=True)
    # as if its linear algebra had come to something else
    row = {"candidate": [0.75, 0.0, 0.0], "score": -0.01}
    path = tmp_path / "moved.jsonl"
    path.write_bytes(lines[0] + json.dumps(row).encode() + b"\n" + b"".join(lines[2:9]))
    again = search(hill, SPACE, path=path, batched=batched, **SETTINGS)
    assert again.candidates[0].tolist() == row["candidate"] and again.scores[0] == -0.01
    np.testing.assert_array_equal(again.candidates[1:6], found.candidates[1:6])
    assert not np.array_equal(again.candidates[8:], found.candidates[8:])


CHANGES = {
    "seed": {"seed": 5},
    "population": {"population": 8},
    "about": {"about": {"model": "large"}},
    "space": {"space": SPACE | {"x": Interval(0, 2)}},
    "start": {"initial": {"x": 0.4, "y": np.zeros(2)}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_search_is_refused_by_name(whole, tmp_path, name):
    path = tmp_path / "other.jsonl"
    path.write_bytes(whole[1])
    call = {"space": SPACE} | SETTINGS | CHANGES[name]
    with pytest.raises(InputError, match=rf"other.jsonl: .*other settings:.*{name} \(") as error:
        search(hill, path=path, **call)
    assert "\n" not in str(error.value) and path.read_bytes() == whole[1]


@pytest.mark.parametrize(
    "text", ["no record", "[1]\n", '{"search": 3}\n', "{}", "\n", '"search"\n']
)
def test_a_file_that_is_no_record_is_left_alone(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=r"notes.txt: holds no search"):
        search(hill, SPACE, path=path, **SETTINGS)
    assert path.read_text() == text


ROW = {"candidate": [0.1, 0.2, 0.3], "score": 1.0}
DAMAGED = [
    {"score": 1.0},
    {"candidate": [0, 0, 0]},
    ROW | {"score": "1"},
    ROW | {"score": True},
    ROW | {"candidate": [0.1, 0.2]},
    ROW | {"candidate": [0.1, None, 0.2]},
]


@pytest.mark.parametrize("row", [json.dumps(row) for row in DAMAGED] + ['{"candidate": [', "3"])
def test_a_damaged_line_is_named(whole, tmp_path, row):
    path = tmp_path / "damaged.jsonl"
    head = b"".join(whole[1].splitlines(keepends=True)[:3])
    path.write_bytes(head + row.encode() + b"\n")
    with pytest.raises(InputError, match=r"damaged.jsonl:4: ") as error:
        search(hill, SPACE, path=path, **SETTINGS)
    assert "\n" not in str(error.value)


def test_two_processes_do_not_write_one_record(tmp_path):
    path = tmp_path / "busy.jsonl"
    with open(path, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with (
            pytest.raises(InputError, match=r"busy.jsonl: another process"),
            keep(path, {}, 3),
        ):
            pass
    assert path.read_bytes() == b""
