"""Whole runs of a tiny model."""

import json

import jax
import numpy as np
import pytest

from imm_jax import checkpoints, write_report
from imm_jax.errors import Diverged, InputError
from imm_jax.files import read_jsonl
from imm_jax.models.load import load_model
from imm_jax.rounds.run import run
from imm_jax.rounds.select import from_rows
from tests.answering import results_of


def leaves(params) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_every_round_and_arm_has_its_figures(whole):
    folder, rows = whole
    places = [(row["round"], row["arm"]) for row in rows]
    assert places == [(0, "base"), (1, "vanilla"), (1, "imm"), (2, "vanilla"), (2, "imm")]
    assert read_jsonl(folder / "metrics.jsonl") == rows
    for row in rows[1:]:
        assert row["samples"] == 24 and 0 < row["kept"] <= row["correct"] <= 24
        answers = from_rows(
            read_jsonl(folder / f"seed-0/round-{row['round']}/{row['arm']}/answers/other.jsonl")
        )
        assert row["out_of_domain"] == np.mean([a.correct for a in answers])


def test_an_arm_that_finds_no_right_answer_any_more_does_not_end_the_run(
    settings, tmp_path, caplog
):
    """A step far too large: vanilla forgets everything, an arm that keeps the base does not."""
    training = settings.plain["training"] | {"learning_rate": 3.0}
    arms = {
        "vanilla": {"weight": 1.0, "drop_rate": 0.0},
        "half": {"weight": 0.5, "drop_rate": 0.0},
        "none": {"weight": 0.0, "drop_rate": 0.0},
    }
    config = settings(keep="all", rounds=3, arms=arms, training=training)
    rows = {(row["round"], row["arm"]): row for row in run(config, tmp_path / "run")}
    assert [rows[t, "vanilla"]["kept"] for t in (2, 3)] == [0, 0] < [rows[3, "none"]["kept"]] * 2
    assert "round 2 / vanilla: none of 24 samples passes the rule 'correct'" in caplog.text
    place = tmp_path / "run/seed-0"
    base = load_model(config.model)[1]
    first, second, third = (
        {arm: checkpoints.restore(place / f"round-{t}/{arm}/model", base) for arm in arms}
        for t in (1, 2, 3)
    )
    assert [rows[t, "half"]["kept"] for t in (2, 3)] == [0, 0]
    for before, after in ((first, second), (second, third)):
        for name, zero in leaves(base).items():
            was, now = (leaves(models["vanilla"])[name] for models in (before, after))
            assert np.array_equal(was, now)
            # theta_t is M_{t-1}, which is merged as in every round.
            was, now = (leaves(models["half"])[name] for models in (before, after))
            np.testing.assert_allclose(now, (np.float64(zero) + was) / 2, rtol=1e-5, atol=1e-6)
    assert results_of(run(config, tmp_path / "run")) == results_of(list(rows.values()))


def test_an_arm_that_diverges_does_not_end_the_run(settings, tmp_path, caplog):
    """A step so far that no logit is finite: there is nothing to go on from."""
    arms = {
        "none": {"weight": 0.0, "drop_rate": 0.0},
        "far": {"weight": 1e15, "drop_rate": 0.0},
    }
    config = settings(rounds=2, arms=arms)
    rows = run(config, tmp_path / "run")
    assert [(row["round"], row["arm"]) for row in rows] == [(0, "base"), (1, "none"), (2, "none")]
    says = "seed 0, far: no round 1 and none after it: prompt"
    assert [r.levelname for r in caplog.records if r.message.startswith(says)] == ["ERROR"]
    assert not (tmp_path / "run/model").exists()  # it would be far's
    assert (tmp_path / "run/seed-0/round-1/far/model").is_dir()
    assert results_of(run(config, tmp_path / "run")) == results_of(rows)
    write_report([tmp_path / "run"], tmp_path / "report.html")  # with the rounds that there are
    with pytest.raises(Diverged, match="every arm diverged in its first round"):
        run(settings(arms={"far": arms["far"]}), tmp_path / "alone")


def test_arms_share_the_first_rounds_samples_and_fine_tune(whole):
    folder, rows = whole
    first = folder / "seed-0/round-1"
    assert sorted(p.name for p in first.iterdir()) == ["imm", "shared", "vanilla"]
    assert not (first / "imm/samples").exists() and not (first / "vanilla/tuned").exists()
    assert rows[1]["kept"] == rows[2]["kept"]
    assert (folder / "seed-0/round-2/imm/samples").exists()


def test_models_are_what_the_formula_says(whole, taught):
    """vanilla: theta_t, bit for bit. imm: theta_0 + 0.5 * mask * (theta_t - theta_0) / 0.8."""
    folder, _ = whole
    _, base = load_model(taught)
    for t, arm in ((1, "shared"), (2, "vanilla")):
        tuned = checkpoints.restore(folder / f"seed-0/round-{t}/{arm}/tuned", base)
        model = checkpoints.restore(folder / f"seed-0/round-{t}/vanilla/model", base)
        jax.tree.map(np.testing.assert_array_equal, model, tuned)
    dropped = []
    for t, arm in ((1, "shared"), (2, "imm")):
        tuned = leaves(checkpoints.restore(folder / f"seed-0/round-{t}/{arm}/tuned", base))
        merged = leaves(checkpoints.restore(folder / f"seed-0/round-{t}/imm/model", base))
        for name, start in leaves(base).items():
            delta = np.float64(tuned[name]) - start
            kept = merged[name] != start
            moved = delta != 0
            np.testing.assert_allclose(
                merged[name], start + np.where(kept, 0.5 / 0.8 * delta, 0), rtol=0, atol=1e-6
            )
            dropped.append(1 - kept[moved].mean() if moved.sum() > 500 else np.nan)
    assert np.nanmean(dropped) == pytest.approx(0.2, abs=0.02)


def test_the_distance_is_the_norm_of_the_change(whole, taught):
    folder, rows = whole
    _, base = load_model(taught)
    model = leaves(checkpoints.restore(folder / "seed-0/round-2/imm/model", base))
    base = leaves(base)
    moved = sum(((np.float64(model[k]) - base[k]) ** 2).sum() for k in base)
    size = sum((np.float64(base[k]) ** 2).sum() for k in base)
    assert rows[-1]["distance"] == pytest.approx((moved / size) ** 0.5, rel=1e-4)


def test_the_final_model_is_the_last_arms(whole, taught):
    folder, _ = whole
    _, base = load_model(taught)
    model = checkpoints.restore(folder / "seed-0/round-2/imm/model", base)
    jax.tree.map(np.testing.assert_array_equal, load_model(folder / "model")[1], model)


def test_training_saw_the_selected_samples_alone(whole):
    folder, _ = whole
    shared = folder / "seed-0/round-1/shared"
    samples = [row for part in sorted(shared.glob("samples/*")) for row in read_jsonl(part)]
    selected = read_jsonl(shared / "selected.jsonl")
    assert len(samples) == 24 and len(list(shared.glob("samples/*"))) == 3
    texts = {(row["id"], " ".join(row["text"].split())) for row in samples if row["correct"]}
    assert {(row["id"], " ".join(row["text"].split())) for row in selected} == texts
    assert len(selected) == len(texts)
    stats = json.loads((shared / "training.json").read_text())
    assert stats["sequences"] == len(selected)


def test_old_models_are_deleted_unless_all_are_kept(settings, whole, tmp_path):
    rows = run(settings(keep="last", rounds=3, arms={"imm": {}}), tmp_path / "run")
    kept = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("manifest.json"))
    assert kept == ["run/seed-0/round-2/imm/model", "run/seed-0/round-3/imm/model"]
    assert rows[1]["in_domain"] == whole[1][2]["in_domain"]


def test_no_correct_sample_is_an_error(settings, tmp_path):
    sampling = {"temperature": 0.0, "max_new_tokens": 2, "batch_size": 16}
    with pytest.raises(InputError, match="none of 24 samples passes the rule 'correct'"):
        run(settings(sampling=sampling), tmp_path / "run")


def test_several_seeds_share_the_questions_and_differ_in_samples(settings, tmp_path):
    rows = run(settings(rounds=1, seeds=[0, 1], arms={"imm": {}}), tmp_path / "run")
    assert [(row["seed"], row["round"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    first, second = (
        read_jsonl(tmp_path / f"run/seed-{seed}/round-1/shared/samples/00000.jsonl")
        for seed in (0, 1)
    )
    assert [row["id"] for row in first] == [row["id"] for row in second]
    assert [row["text"] for row in first] != [row["text"] for row in second]


def test_variants_of_the_method(settings, whole, taught, tmp_path):
    """``start_from: base`` fits theta_0 on new data; ``merge_with: previous`` anchors at M_1."""
    arms = {
        "afresh": {"weight": 1.0, "drop_rate": 0.0, "start_from": "base"},
        "previous": {"weight": 0.5, "drop_rate": 0.0, "merge_with": "previous"},
    }
    folder = tmp_path / "run"
    run(settings(keep="all", arms=arms), folder)
    _, base = load_model(taught)

    def stored(t, name):
        return leaves(checkpoints.restore(folder / f"seed-0/round-{t}/{name}", base))

    first, tuned = stored(1, "previous/model"), stored(2, "previous/tuned")
    for name, merged in stored(2, "previous/model").items():
        middle = (np.float64(first[name]) + tuned[name]) / 2
        np.testing.assert_allclose(merged, middle, rtol=0, atol=1e-6)
    # One fit from theta_0 moves less far than two fits in a row.
    start = leaves(base)

    def distance(tree):
        return sum(((np.float64(tree[k]) - start[k]) ** 2).sum() for k in start) ** 0.5

    vanilla = checkpoints.restore(whole[0] / "seed-0/round-2/vanilla/model", base)
    assert distance(stored(2, "afresh/model")) < distance(leaves(vanilla))


def test_a_layer_mask_keeps_the_base_where_it_is_zero(settings, whole, taught, tmp_path):
    """Layer 1 alone moves, by half of what the fine-tune of the other run moved it."""
    arms = {"masked": {"weight": [0.0, 0.5, 0.0], "outside": 0.0, "drop_rate": 0.0}}
    run(settings(rounds=1, arms=arms, keep="all"), tmp_path / "run")
    _, base = load_model(taught)
    base, tuned, masked = (
        leaves(tree)
        for tree in (
            base,
            checkpoints.restore(whole[0] / "seed-0/round-1/shared/tuned", base),
            checkpoints.restore(tmp_path / "run/seed-0/round-1/masked/model", base),
        )
    )
    for name, start in base.items():
        expected = np.array(start)
        if "layers" in name:
            expected[1] += 0.5 * (tuned[name][1] - start[1])
        np.testing.assert_allclose(masked[name], expected, rtol=0, atol=1e-6)
        assert "layers" in name or np.array_equal(masked[name], start)


def test_adapters_fold_into_the_same_merge(settings, taught, tmp_path):
    """What comes out of a fine-tune with adapters is a whole model, changed where they were."""
    training = {"learning_rate": 1e-2, "epochs": 2, "batch_size": 4, "micro_batch_size": 4}
    training |= {"remat": False, "lora": {"rank": 2, "targets": ["layers/mlp"]}}
    arms = {"half": {"weight": 0.5, "drop_rate": 0.0}}
    folder = tmp_path / "run"
    [_, row] = run(settings(keep="all", rounds=1, arms=arms, training=training), folder)
    _, base = load_model(taught)
    start = leaves(base)
    tuned, merged = (
        leaves(checkpoints.restore(folder / f"seed-0/round-1/{name}", base))
        for name in ("shared/tuned", "half/model")
    )
    for name, old in start.items():
        if "mlp" in name and "kernel" in name:
            ranks = np.linalg.matrix_rank(np.float64(tuned[name]) - old, tol=1e-4)
            assert (ranks == 2).all()
            middle = (np.float64(old) + tuned[name]) / 2
            np.testing.assert_allclose(merged[name], middle, rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(tuned[name], old)
    assert row["kept"] > 0
    assert json.loads((folder / "seed-0/round-1/shared/training.json").read_text())["skipped"] == 0
