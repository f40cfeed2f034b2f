"""Every selection rule in a run of a tiny model."""

import pytest

from imm_jax.analysis.gap import gap_interval, generation_verification_gap
from imm_jax.files import read_jsonl
from imm_jax.rounds.run import run
from imm_jax.rounds.select import RULES, from_rows, select
from imm_jax.select_config import SelectConfig
from tests.answering import results_of

# The tiny model's verdicts are babble, so every share of them has to do.
SETTINGS = {rule: {"rule": rule} for rule in RULES}
for rule in RULES:
    if {"judge", "scorer"} & set(RULES[rule].needs):
        SETTINGS[rule] |= {"min_share": 0.0, "judge_samples": 1}


@pytest.mark.parametrize("rule", RULES)
def test_it_runs(rule, settings, tmp_path, monkeypatch):
    config = settings(rounds=1, arms={"imm": {}}, select=SETTINGS[rule])
    rows = run(config, tmp_path / "run")
    shared = tmp_path / "run/seed-0/round-1/shared"
    samples = [row for part in sorted(shared.glob("samples/*")) for row in read_jsonl(part)]
    kept = read_jsonl(shared / "selected.jsonl")
    assert rows[1]["kept"] == len(kept) and len(samples) == rows[1]["samples"] == 24
    assert all(row in samples for row in kept)
    if RULES[rule].gold:
        assert "verification" not in rows[1]
    else:
        right = sum(row["correct"] for row in samples) / 24
        assert rows[1]["verification"]["generated"] == pytest.approx(right)
    if not RULES[rule].needs:
        assert from_rows(kept) == select(from_rows(samples), SelectConfig(rule=rule))


@pytest.mark.parametrize(
    "thinning", [{"samples_per_question": 1}, {"duplicates": "equations"}, {"balance": True}]
)
def test_the_gap_is_of_all_that_pass(thinning, settings, tmp_path):
    """Not of those that are left to train on."""
    config = settings(rounds=1, samples=3, arms={"imm": {}}, select={"rule": "finished"} | thinning)
    rows = run(config, tmp_path / "run")
    shared = tmp_path / "run/seed-0/round-1/shared"
    parts = sorted(shared.glob("samples/*"))
    samples = from_rows([row for part in parts for row in read_jsonl(part)])
    passed = [s for s in samples if s.finish_reason != "length" and s.answer is not None]
    assert 0 < rows[1]["kept"] < len(passed)
    expected = generation_verification_gap(samples, passed)._asdict()
    expected |= gap_interval(samples, passed)._asdict()
    assert rows[1]["verification"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "asks", "holds"),
    [("self_verify", "generate", "said"), ("n_critics", "ask_choices", "logprobs")],
)
def test_verdicts_survive_a_cut(rule, asks, holds, settings, tmp_path, monkeypatch):
    import imm_jax.rounds.judge

    config = settings(rounds=1, arms={"imm": {}}, select=SETTINGS[rule])
    rows = run(config, tmp_path / "run")
    shared = tmp_path / "run/seed-0/round-1/shared"
    blocks = sorted(shared.glob("judge/*"))
    assert len(blocks) > 1 and all(row[holds] for block in blocks for row in read_jsonl(block))
    selected = (shared / "selected.jsonl").read_bytes()
    (shared / "selected.jsonl").unlink()
    monkeypatch.delattr(imm_jax.rounds.judge, asks)
    assert results_of(run(config, tmp_path / "run")) == results_of(rows)
    assert (shared / "selected.jsonl").read_bytes() == selected
