"""A finished run's folder, written by hand."""

import dataclasses
import shutil

import pytest

from imm_jax import analyses
from imm_jax.analysis.gap import generation_verification_gap
from imm_jax.analysis.record import Record
from imm_jax.config import ArmConfig, RunConfig, save_config
from imm_jax.errors import InputError
from imm_jax.files import write_jsonl
from imm_jax.run_folder import Place, read_run
from imm_jax.settings import build
from tests.rounds.samples import names, samples

# The gap of round 1: two of four samples of a are right and both are kept, none of b.
GAP = {"generated": 0.25, "verified": 0.5, "gap": 0.25, "relative": 1 / 3, "kept_questions": 0.5}


@pytest.fixture
def folder(tmp_path):
    """Two rounds of two arms; everything is kept of round 2 alone."""
    arms = {"vanilla": {"weight": 1.0, "drop_rate": 0.0}, "imm": {}}
    settings = {"model": "m", "data": {"in_domain": "t"}, "arms": arms, "samples": 4}
    settings["select"] = {"rule": "majority_vote"}
    save_config(build(RunConfig, settings, "test"), tmp_path / "config.yaml")
    drawn = {
        "round-1/shared": samples(a="AAxy", b="xxyz"),
        "round-2/vanilla": samples(a="AAAA", b="xxxx"),
        "round-2/imm": samples(a="AAAx", b="xxyz"),
    }
    for part, answers in drawn.items():
        rows = [dataclasses.asdict(answer) for answer in answers]
        place = tmp_path / "seed-3" / part
        write_jsonl(place / "samples/00000.jsonl", rows[:4])
        write_jsonl(place / "samples/00001.jsonl", rows[4:])
        write_jsonl(place / "selected.jsonl", [row for row in rows if row["correct"]])
    for part in ("round-2/vanilla/model", "round-2/vanilla/tuned", "round-2/imm/model"):
        (tmp_path / "seed-3" / part).mkdir(parents=True)
    scores = {"tasks": {}, "in_domain": None, "out_of_domain": None}
    metrics = [{"seed": 3, "round": 0, "arm": "base"} | scores]
    metrics += [
        {"seed": 3, "round": t, "arm": arm, "verification": GAP} | scores
        for t in (1, 2)
        for arm in arms
    ]
    write_jsonl(tmp_path / "metrics.jsonl", metrics)
    return tmp_path


def test_what_is_there(folder):
    run = read_run(folder)
    assert run.places() == [Place(3, t, arm) for t in (1, 2) for arm in ("vanilla", "imm")]
    drawn = names(run.samples(Place(3, 1, "imm")))
    assert " ".join(drawn) == "a0 a1 a2 a3 b0 b1 b2 b3"
    assert run.samples(Place(3, 1, "imm")) == run.samples(Place(3, 1, "vanilla"))
    assert names(run.selected(Place(3, 2, "imm"))) == ["a0", "a1", "a2"]
    assert run.trained_on(Place(3, 2, "imm")) == {"a"}
    assert run.models(Place(3, 1, "imm")) == {}
    # Vanilla's model is its fine-tuned one.
    assert run.models(Place(3, 2, "vanilla")) == {"model": folder / "seed-3/round-2/vanilla/model"}
    assert not run.merges("vanilla") and run.merges("imm")
    for schedule, merges in (((1.0, 0.5), True), ((1.0, 1.0), False)):
        arms = {"last": ArmConfig(weight=1.0, drop_rate=0.0, schedule=schedule)}
        scheduled = dataclasses.replace(run, config=dataclasses.replace(run.config, arms=arms))
        assert scheduled.merges("last") == merges


def test_arms_share_a_teachers_samples_in_later_rounds(folder):
    """One arm's selection and fine-tune lie with the samples, the other's in its own folder."""
    second = folder / "seed-3/round-2"
    (second / "vanilla").rename(second / "shared")
    shutil.rmtree(second / "imm/samples")
    run, imm, vanilla = read_run(folder), Place(3, 2, "imm"), Place(3, 2, "vanilla")
    assert run.samples(imm) == run.samples(vanilla)
    assert names(run.selected(vanilla)) == ["a0", "a1", "a2", "a3"]
    assert names(run.selected(imm)) == ["a0", "a1", "a2"]
    assert run.models(imm) == {"model": second / "imm/model"}  # the fine-tune is another's
    (second / "imm/selected.jsonl").unlink()
    assert run.models(imm)["tuned"] == second / "shared/tuned"


def test_diversity_collapse_and_gap(folder):
    record = Record(folder / "analysis.json")
    rows = analyses.put_diversity(record, read_run(folder), "text")
    found = {(row["round"], row["arm"]): row for row in rows}
    assert found[1, "vanilla"]["correct"] == found[1, "imm"]["correct"] == 2
    assert found[2, "vanilla"]["answer_entropy"] == 0 < found[2, "imm"]["answer_entropy"]
    assert found[2, "imm"]["pass_at_k"] == {"1": 3 / 8, "2": 0.5, "4": 0.5}
    collapsed = {
        (row["arm"], row["figure"]): row["rounds"]
        for row in Record(folder / "analysis.json").sections["collapse"]["rows"]
    }
    assert (
        collapsed["vanilla", "answer_entropy"] == 2 and collapsed["imm", "answer_entropy"] is None
    )
    gaps = record.sections["gap"]
    assert gaps["settings"] == {"rule": "majority_vote"} and len(gaps["rows"]) == 4
    assert gaps["rows"][0] == {"seed": 3, "round": 1, "arm": "vanilla"} | GAP
    # The figures that the run has stored are those of its files.
    run, place = read_run(folder), Place(3, 1, "imm")
    counted = generation_verification_gap(run.samples(place), run.selected(place))
    assert counted._asdict() == pytest.approx(GAP)


def test_samples_that_are_gone_are_named(folder):
    for path in (folder / "seed-3/round-2/imm/samples").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"round-2/imm/samples: no samples there"):
        read_run(folder).samples(Place(3, 2, "imm"))
