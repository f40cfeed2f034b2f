"""Traces of a run: which there are, what is in them, and what stands in their way."""

import gzip
import json

import pytest

from imm_jax.errors import InputError
from imm_jax.rounds.profile import STEPS
from imm_jax.rounds.run import run


def test_each_stage_is_traced_once_and_named(settings, tmp_path):
    run(settings(), tmp_path / "run", profile=tmp_path / "traces")
    found = sorted(path.name for path in (tmp_path / "traces").iterdir())
    assert found == ["evaluate", "fit", "merge", "sample"]
    for stage in found:
        [trace] = (tmp_path / "traces" / stage).glob("plugins/profile/*/perfetto_trace.json.gz")
        assert list(trace.parent.glob("*.xplane.pb"))
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        regions = [event for event in events if event.get("name") == stage]
        assert len(regions) == (1 if stage == "merge" else STEPS)
        # What XLA ran inside stands beside them.
        assert any("hlo_op" in event.get("args", {}) for event in events)


def test_a_folder_that_cannot_be_written_is_refused_at_once(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"profile: .*/file/traces cannot be written, for .*/file"):
        run(settings(), tmp_path / "run", profile=tmp_path / "file/traces")
    assert not (tmp_path / "run").exists()
