"""Traces of a run: which there are, what is in them, and what stands in their way."""

import gzip
import json

import jax
import pytest

from imm_jax.errors import InputError
from imm_jax.rounds.profile import STEPS, Profile
from imm_jax.rounds.run import run


def read(folder):
    """The events of the one trace in ``folder``."""
    [trace] = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    assert list(trace.parent.glob("*.xplane.pb"))
    return json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def regions(folder) -> int:
    """How many steps of the stage of its name a trace holds."""
    return sum(event.get("name") == folder.name for event in read(folder))


def test_each_stage_is_traced_once_and_named(settings, tmp_path):
    run(settings(), tmp_path / "run", profile=tmp_path / "traces")
    found = sorted((tmp_path / "traces").iterdir())
    assert [path.name for path in found] == ["evaluate", "fit", "merge", "sample"]
    for folder in found:
        assert regions(folder) == (1 if folder.name == "merge" else STEPS)
        # What XLA ran inside stands beside them.
        assert any("hlo_op" in event.get("args", {}) for event in read(folder))


def test_a_fine_tune_of_one_update_is_traced(settings, tmp_path, caplog):
    training = settings.plain["training"] | {"epochs": 1, "batch_size": 64}
    with caplog.at_level("INFO", "imm_jax"):
        run(settings(training=training, rounds=1), tmp_path / "run", profile=tmp_path / "traces")
    assert regions(tmp_path / "traces/fit") == 1
    assert any("hlo_op" in event.get("args", {}) for event in read(tmp_path / "traces/fit"))
    assert f"{tmp_path}/traces/fit: a trace of the first step, which may compile" in caplog.text


def test_a_trace_of_the_first_step_makes_way_for_one_of_later_steps(tmp_path):
    """Of the same round or the next, because the first step compiles; others' traces stay."""
    profile, older = Profile(tmp_path), tmp_path / "fit/plugins/profile/older"
    older.mkdir(parents=True)
    counts = []
    for steps in (1, 2, 1):  # in each of three rounds
        for _ in range(steps):
            profile.step("fit")
        profile.stop("fit")
        counts.append(regions(tmp_path / "fit"))
    assert counts == [1, 2, 2] and older.is_dir()


def test_a_disk_that_is_full_ends_tracing_not_the_run(tmp_path, monkeypatch, caplog):
    profile, ends = Profile(tmp_path), jax.profiler.stop_trace

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    for _ in range(5):
        profile.step("fit")
    profile.stop("fit")
    assert profile.whole("merge", lambda: 3) == 3
    assert caplog.text.count("could not be written") == 1
    ends()


def test_a_folder_that_cannot_be_written_is_refused_at_once(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"profile: .*/file/traces cannot be written, for .*/file"):
        run(settings(), tmp_path / "run", profile=tmp_path / "file/traces")
    assert not (tmp_path / "run").exists()
