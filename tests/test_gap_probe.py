"""The gap of a run's models on their own samples, against the run's record and plain NumPy."""

import json
import shutil

import jax
import numpy as np
import pytest
import yaml

from imm_jax import checkpoints, gap_probe
from imm_jax.analysis.gap import gap_interval, generation_verification_gap
from imm_jax.config import RunConfig, load_config
from imm_jax.files import read_jsonl, write_jsonl
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from imm_jax.models.load import load_model
from imm_jax.models.tokenizer import load_tokenizer
from imm_jax.rounds.run import load_tasks, open_bench, run
from imm_jax.rounds.stages import Stages
from imm_jax.run_folder import Place, read_run
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.engine import generate
from imm_jax.settings import build
from imm_jax.training.batching import Sequence
from imm_jax.training.config import TrainingConfig
from imm_jax.training.fit import fit
from tests.compiling import optimisations

pytestmark = pytest.mark.slow

VERIFY = """Here is a question and a proposed solution. Is the solution right?

The question is: {question}

The proposed solution is: {solution}

Check the solution step by step. Then say "The answer is correct." or "The answer is incorrect.\""""
VERDICTS = (" The answer is correct.", " The answer is incorrect.")
PAIRS = [(1, 1), (1, 2), (2, 1), (2, 2)]
QUESTIONS, SAMPLES = len(PAIRS), 4


def question(a: int, b: int) -> str:
    return f"{a} and {b}?"


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """A model that says sums, right or one too many, and which of them it takes as right."""
    config = tiny_config("llama", max_position_embeddings=512)
    model, encode, sequences = Decoder(config), tiny_tokenizer.encode, []
    for a, b in PAIRS:
        for said in (a + b, a + b + 1):
            solution = f"The answer is {said}."
            asked = VERIFY.format(question=question(a, b), solution=solution)
            verdict = VERDICTS[(said != a + b) ^ ((a, b) == (2, 2))]  # there it is mistaken
            for text, answer in ((question(a, b), f" {solution}"), (asked, verdict)):
                prompt = encode(f"Question: {text}\nAnswer:")
                sequences.append(Sequence((*prompt, *encode(answer), 0), len(prompt)))
    training = TrainingConfig(learning_rate=5e-3, epochs=80, batch_size=8, remat=False)
    params = jax.tree.map(np.asarray, random_params(config))
    with optimisations(True):
        params, _ = fit(model, params, sequences, training, seed=0)
    folder = tmp_path_factory.mktemp("taught") / "model"
    save_model(folder, model, params, tokenizer=tiny_tokenizer)
    return folder


@pytest.fixture(scope="module")
def whole(taught, tmp_path_factory):
    """A run of two rounds by the rule ``correct``, one by ``self_verify``, and their files."""
    folder = tmp_path_factory.mktemp("whole")
    for name, pairs in (("train", PAIRS), ("test", [(1, 3)])):
        rows = [{"id": f"{a}+{b}", "question": question(a, b), "answer": a + b} for a, b in pairs]
        write_jsonl(folder / f"{name}.jsonl", rows)
    settings = {
        "model": str(taught),
        "data": {"in_domain": f"jsonl:train={folder}/train.jsonl,test={folder}/test.jsonl",
                 "sample_style": "plain", "evaluate_style": "plain"},
        "samples": SAMPLES,
        "sampling": {"temperature": 1.0, "max_new_tokens": 16, "batch_size": 16},
        "evaluation": {"max_new_tokens": 16},
        "training": {"learning_rate": 1e-4, "epochs": 1, "batch_size": 4, "remat": False},
        "rounds": 2,
        "block": 5,
    }  # fmt: skip
    judged = settings | {"rounds": 1, "select": {"rule": "self_verify", "judge_samples": 3}}
    for name, plain in (("run", settings), ("judged", judged)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain))
        run(build(RunConfig, plain, name), folder / name)
    return folder


def analysed(folder) -> dict:
    return json.loads((folder / "analysis.json").read_text())["verification"]


def shares(samples: list[dict], approved: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """For each question the share of right samples, and that among the approved ones."""
    names = np.array([row["id"] for row in samples])
    right = np.array([row["correct"] for row in samples], float)
    approved = np.array(approved)
    drawn, chosen = [], []
    for name in dict.fromkeys(names):
        own = names == name
        drawn.append(right[own].mean())
        kept = own & approved
        chosen.append(right[kept].mean() if kept.any() else drawn[-1])
    return np.array(drawn), np.array(chosen)


def greedy_verdicts(model, params, tokenizer, texts: dict, samples: list[dict]) -> list[bool]:
    """What the model says of each sample, asked in a prompt written here."""
    asked = [
        VERIFY.format(question=texts[row["id"]], solution=row["text"].strip()) for row in samples
    ]
    prompts = [f"Question: {text}\nAnswer:" for text in asked]
    config = SamplingConfig(temperature=0.0, max_new_tokens=16, batch_size=16)
    said = generate(model, params, tokenizer, prompts, config=config)
    return [one.text.rstrip().endswith("answer is correct.") for [one] in said]


def test_what_a_run_of_self_verification_records(whole, tmp_path):
    """The same samples, model, settings and random key give the figures of ``metrics.jsonl``."""
    found, config = read_run(whole / "judged"), load_config(whole / "judged.yaml")
    bench, read, _ = open_bench(config.model, None, config, load_tasks(config), lambda: False)
    place = Place(0, 1, "imm")
    samples = found.samples(place)
    key = jax.random.fold_in(jax.random.key(0), 1)
    kept = gap_probe.verified(config, bench, read, key, Stages(tmp_path), samples, "round 1")
    assert 0 < len(kept) < len(samples)
    recorded = found.row(place)["verification"]
    counted = generation_verification_gap(samples, kept)._asdict()
    assert counted | gap_interval(samples, kept)._asdict() == recorded
    assert recorded["gap"] != 0


def test_each_rounds_model_judges_what_it_sampled(place, taught, command, monkeypatch):
    shutil.rmtree(place / "run/seed-0/round-1/vanilla/model")  # as a longer run does
    printed = command("analyze", "run", "--importance", "--gap")
    section = analysed(place / "run")
    measured = [(row["round"], row["arm"]) for row in section["rows"]]
    assert measured == [(1, "vanilla"), (1, "imm"), (2, "imm")]
    assert section["missing"] == [{"seed": 0, "round": 2, "arm": "vanilla"}]
    assert "round 2, vanilla, seed 0: not measured, for the model that sampled is" in printed

    model, base = load_model(taught)
    tokenizer = load_tokenizer(taught)
    texts = {e.id: e.question for e in load_tasks(load_config(place / "run.yaml"))[0].train}
    rng = np.random.default_rng(7)
    for row in section["rows"]:
        at = place / f"run/seed-0/round-{row['round']}"
        at /= "shared/samples" if row["round"] == 1 else "imm/samples"
        samples = [line for file in sorted(at.iterdir()) for line in read_jsonl(file)]
        params = base
        if row["round"] == 2:
            params = checkpoints.restore(place / "run/seed-0/round-1/imm/model")
        approved = greedy_verdicts(model, params, tokenizer, texts, samples)
        assert (row["samples"], row["approved"]) == (QUESTIONS * SAMPLES, sum(approved))
        assert 0 < sum(approved) < len(samples)
        drawn, chosen = shares(samples, approved)
        gain, left = chosen - drawn, 1 - drawn
        assert row["generated"] == pytest.approx(drawn.mean())
        assert row["gap"] == pytest.approx(gain.mean())
        assert row["relative"] == pytest.approx(gain.mean() / left.mean())
        again = rng.integers(0, QUESTIONS, (20_000, QUESTIONS))
        gaps, rest = gain[again].mean(axis=1), left[again].mean(axis=1)
        for name, found in (("", gaps), ("relative_", gaps / np.maximum(rest, 1e-9))):
            bounds = np.quantile(found, [0.025, 0.975])
            ends = row[f"{name}low"], row[f"{name}high"]
            assert ends == pytest.approx(bounds, abs=0.03)
        assert f"{row['gap']:.3f} [{row['low']:.2f}, {row['high']:.2f}]" in printed

    assert abs(section["rows"][0]["gap"]) > 0.1

    # Once more: what the models said is read, not asked for.
    monkeypatch.setattr("imm_jax.rounds.judge.generate", None)
    assert command("analyze", "run", "--importance", "--gap") == printed
    assert analysed(place / "run") == section
    command("report", "run")
    page = (place / "run/report.html").read_text()
    assert "Gap of models that verify their own samples" in page
    assert "Not measured, for the model is not kept: round 2." in page


def test_fewer_questions(place, command):
    command("analyze", "run", "--importance", "--gap", "--questions", "3")
    rows = analysed(place / "run")["rows"]
    assert {row["samples"] for row in rows} == {3 * SAMPLES}


def test_a_teacher_judges_what_it_sampled(place, taught, command):
    """Of every round, whatever models the run keeps; this one never says a word."""
    shutil.rmtree(place / "run/seed-0/round-1/vanilla/model")
    model, params = load_model(taught)
    params["final_norm"]["scale"] = np.zeros_like(params["final_norm"]["scale"])
    save_model(place / "mute", model, params, tokenizer=load_tokenizer(taught))
    settings = yaml.safe_load((place / "run/config.yaml").read_text())
    (place / "run/config.yaml").write_text(yaml.safe_dump(settings | {"teacher": "mute"}))
    command("analyze", "run", "--importance", "--gap")
    section = analysed(place / "run")
    assert section["missing"] == [] and len(section["rows"]) == 4
    assert {(row["approved"], row["gap"]) for row in section["rows"]} == {(0, 0)}


def test_wrong_input_is_one_line(place, refused, taught):
    two = ("analyze", str(taught), str(taught), "--output", "o", "--gap")
    assert refused(two) == "--gap: given with two models, expected a run's folder"
    record = json.loads((place / "run/run.json").read_text())
    record["questions"]["test"] = "another"
    (place / "run/run.json").write_text(json.dumps(record))
    assert "--gap: task test has other questions now" in refused(("analyze", "run", "--gap"))
