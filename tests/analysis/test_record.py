"""The file of an analysis: what is kept, and when it is made again."""

import dataclasses
import json
from typing import NamedTuple

import numpy as np
import pytest

from imm_jax.analysis.record import Record, plain
from imm_jax.errors import InputError


def make(calls: list, value):
    def call():
        calls.append(value)
        return value

    return call


def test_results_are_kept_until_the_settings_change(tmp_path):
    calls: list = []
    for settings, value, expected in (
        ({"seed": (0, 1)}, 1, 1),
        ({"seed": [0, 1]}, 2, 1),  # the same settings, as JSON has them
        ({"seed": [0, 2]}, 3, 3),
    ):
        record = Record(tmp_path / "a.json")
        record.begin("path", settings)
        assert record.take("path", "0.5", make(calls, value)) == expected
    assert calls == [1, 3]
    record.begin("other", {})
    record.take("other", "x", make(calls, 4))
    stored = json.loads((tmp_path / "a.json").read_text())
    assert stored["path"] == {"settings": {"seed": [0, 2]}, "0.5": 3}
    assert stored["other"] == {"settings": {}, "x": 4}


def test_what_was_made_before_an_error_stays(tmp_path):
    record = Record(tmp_path / "a.json")
    record.begin("path", {})
    record.take("path", "0", lambda: 1.5)
    with pytest.raises(ZeroDivisionError):
        record.take("path", "1", lambda: 1 / 0)
    again = Record(tmp_path / "a.json")
    again.begin("path", {})
    assert again.take("path", "0", lambda: 2.5) == 1.5


class Pair(NamedTuple):
    one: float
    other: np.ndarray


@dataclasses.dataclass
class Holder:
    pair: Pair
    table: dict


def test_plain_is_json_without_loss():
    value = Holder(Pair(float("nan"), np.arange(2.0)), {2: np.float64(0.1), "x": (True, None)})
    expected = {"pair": {"one": None, "other": [0.0, 1.0]}, "table": {"2": 0.1, "x": [True, None]}}
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


@pytest.mark.parametrize("content", ["{", "[1]", '{"path": 3}', '{"path": {"0": 1}}', "\xff"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.json: not an analysis"):
        Record(tmp_path / "a.json")
