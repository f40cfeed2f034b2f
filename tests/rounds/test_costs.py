"""What stages cost: recorded where they are done, kept over a resume, apart from the results."""

import json
import shutil
import time

import pytest

from imm_jax.errors import Interrupted
from imm_jax.files import read_jsonl
from imm_jax.rounds import costs
from imm_jax.rounds.costs import Meter, stage_figures
from imm_jax.rounds.run import run
from tests.rounds.conftest import question

PEAK = 1e9
UNKNOWN = {"seconds": None, "tokens": None, "tokens_per_second": None, "mfu": None}


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """A round of two arms, its rows, and the seconds it took."""
    folder, start = tmp_path_factory.mktemp("costs") / "run", time.monotonic()
    rows = run(settings(rounds=1, keep="all"), folder, peak_flops=PEAK)
    return folder, rows, time.monotonic() - start


def jsonl(folder, pattern):
    return [row for path in sorted(folder.glob(pattern)) for row in read_jsonl(path)]


def test_every_stage_has_its_seconds(whole):
    folder, (base, vanilla, imm), seconds = whole
    shared = ("sample", "select", "fit")
    assert list(base["stages"]) == ["evaluate"] and list(imm["stages"]) == [
        *shared,
        "merge",
        "evaluate",
    ]
    assert all(vanilla["stages"][name] == imm["stages"][name] for name in shared)
    parts = [base["stages"]["evaluate"], *vanilla["stages"].values()]
    parts += [imm["stages"][name] for name in ("merge", "evaluate")]
    assert all(part["seconds"] > 0 for part in parts if part != vanilla["stages"]["select"])
    assert sum(part["seconds"] for part in parts) < seconds
    assert "stages" not in json.loads((folder / "seed-0/round-1/imm/scores.json").read_text())


def test_tokens_are_those_of_the_files(whole):
    folder, (_, _, imm), _ = whole
    first = folder / "seed-0/round-1"
    training = json.loads((first / "shared/training.json").read_text())
    expected = {
        "sample": sum(row["tokens"] for row in jsonl(first, "shared/samples/*")),
        "select": None,
        "fit": training["input_tokens"],
        "merge": None,
        "evaluate": sum(row["tokens"] for row in jsonl(first, "imm/answers/*")),
    }
    for name, tokens in expected.items():
        stage = imm["stages"][name]
        assert stage["tokens"] == tokens
        if tokens is None:
            assert stage["tokens_per_second"] is None and stage["mfu"] is None
        else:
            speed, rounding = stage["tokens_per_second"], 0.00051  # seconds have three decimals
            assert speed * stage["seconds"] == pytest.approx(tokens, abs=speed * rounding)


def test_mfu_is_what_counting_token_by_token_gives(whole, tiny_config, tiny_tokenizer):
    """2 FLOPs a weight and token, 4 H E a key attended to; three times that in training."""
    folder, (_, _, imm), _ = whole
    c = tiny_config("llama")
    attention = c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)
    weights = c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
    head = c.vocab_size * c.hidden_size

    def flops(positions, scored):
        keys = 4 * c.num_attention_heads * c.head_dim * c.num_hidden_layers
        return sum(2 * weights + keys * position for position in positions) + 2 * head * scored

    def encode(name):  # "train/3+4"
        asked = question(*name.removeprefix("train/").split("+"))
        return tiny_tokenizer.encode(f"Question: {asked}\nAnswer:")

    first = folder / "seed-0/round-1"
    samples = jsonl(first, "shared/samples/*")
    prompts = {row["id"]: encode(row["id"]) for row in samples}
    shared = 0
    while len({tuple(tokens[: shared + 1]) for tokens in prompts.values()}) == 1:
        shared += 1
    total = flops(range(shared), 0) * 3  # blocks of five questions: three calls of the sampler
    total += sum(flops(range(shared, len(tokens)), 0) for tokens in prompts.values())
    for row in samples:
        begin = len(prompts[row["id"]])
        total += flops(range(begin, begin + row["tokens"]), row["tokens"])
    trained = 0
    for row in jsonl(first, "shared/selected.jsonl"):
        prompt = encode(row["id"])
        response = tiny_tokenizer.encode(" " + row["text"].strip())
        trained += 2 * 3 * flops(range(len(prompt) + len(response)), len(response) + 1)  # 2 epochs
    for name, expected in (("sample", total), ("fit", trained)):
        stage = imm["stages"][name]
        assert stage["mfu"] * stage["seconds"] * PEAK == pytest.approx(expected, rel=0.02), name


def test_what_is_read_back_keeps_its_cost(whole, settings, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    (folder / "seed-0/round-1/imm/scores.json").unlink()
    before, after = whole[1][2]["stages"], run(settings(rounds=1, keep="all"), folder)[2]["stages"]
    for name in ("sample", "select", "fit", "merge"):
        assert after[name] == before[name]
    # The answers are read, the scores made: more seconds, no more tokens, on a CPU without a peak.
    assert after["evaluate"]["seconds"] >= before["evaluate"]["seconds"]
    assert after["evaluate"]["tokens"] == before["evaluate"]["tokens"]
    assert after["evaluate"]["mfu"] is None


def test_a_fine_tune_taken_up_again_has_no_speed(settings, tmp_path):
    cut = lambda: any((tmp_path / "run").rglob("step_*"))
    with pytest.raises(Interrupted):
        run(settings(rounds=1), tmp_path / "run", should_stop=cut)
    stage = run(settings(rounds=1), tmp_path / "run", peak_flops=PEAK)[1]["stages"]["fit"]
    assert stage["seconds"] > 0 and {**stage, "seconds": None} == UNKNOWN


@pytest.mark.parametrize("content", ["{", '{"sample": 3}', '{"sample": {"hours": 1}}', "[]"])
def test_costs_that_cannot_be_read_are_not_known(content, tmp_path, caplog):
    (tmp_path / costs.FILE).write_text(content)
    assert stage_figures(tmp_path, ["sample"]) == {"sample": UNKNOWN}
    assert str(tmp_path / costs.FILE) in caplog.text


def test_a_stage_inside_another_stops_its_clock(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(costs.time, "monotonic", lambda: now[0])

    def work(seconds):
        now[0] += seconds

    meter = Meter(peak=100.0)
    with meter.measure(tmp_path, "evaluate"):
        work(1)
        with meter.measure(tmp_path, "merge"):
            work(2)
            meter.keep()
        work(4)
        meter.count(tokens=10, flops=50)
        meter.keep()
        work(8)
    with meter.measure(tmp_path, "merge"):
        work(16)  # all of it was there, so nothing is kept
    with meter.measure(tmp_path, "evaluate"):
        work(7)
        meter.count(tokens=30, flops=250)
        meter.keep()
    assert stage_figures(tmp_path, ["merge", "evaluate"]) == {
        "merge": {**UNKNOWN, "seconds": 2.0},
        "evaluate": {"seconds": 20.0, "tokens": 40, "tokens_per_second": 2.0, "mfu": 0.15},
    }
