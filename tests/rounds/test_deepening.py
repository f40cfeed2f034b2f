"""Iterative deepening with a sampler made by hand, and in a run of a tiny model."""

import logging
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imm_jax.rounds.deepening as deepening
from imm_jax.config import RunConfig, load_config, save_config
from imm_jax.deepening_config import DeepeningConfig
from imm_jax.errors import InputError, Interrupted
from imm_jax.files import read_jsonl
from imm_jax.rounds.deepening import ask_deepening, budgets
from imm_jax.rounds.run import run
from imm_jax.sampling.config import SamplingConfig
from imm_jax.sampling.engine import generate
from imm_jax.sampling.text import Sample
from imm_jax.settings import build
from imm_jax.tasks.types import Example, Task
from tests.answering import results_of

WAIT = "Wait!"


@pytest.mark.parametrize(
    ("total", "initial", "gamma", "expected"),
    [
        (224, 32, 2.0, [32, 64, 128]),
        (256, 32, 2.0, [32, 64, 160]),
        (100, 32, 1.0, [32, 32, 36]),
        (100, 10, 1.5, [10, 15, 22, 53]),
        (40, 32, 2.0, [32, 8]),
        (128, 64, 2.0, [64, 64]),
        (40, 40, 2.0, [40]),
        (40, 64, 2.0, [40]),
        (96, 32, 2.0, [32, 64]),
        (300, 64, 1e308, [64, 236]),
    ],
)
def test_budgets_grow_geometrically(total, initial, gamma, expected):
    assert budgets(total, initial, gamma) == expected


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 90), st.floats(1, 5))
def test_budgets_use_all_there_is(total, initial, gamma):
    spans = budgets(total, initial, gamma)
    assert sum(spans) == total and min(spans) >= 1
    for k, span in enumerate(spans[:-1]):
        assert abs(span - initial * gamma**k) < 1 + 1e-6


class Sampler:
    """Says its lines, by id and sample; notes what it was asked."""

    def __init__(self, lines):
        self.lines, self.calls = lines, []

    def __call__(self, model, params, tokenizer, prompts, *, config, samples, ids, **settings):
        self.calls.append((list(zip(ids, prompts)), config.max_new_tokens))
        rows = []
        for name in ids:
            said = self.lines[name]
            said = said if isinstance(said, list) else [said]
            assert len(said) == samples
            rows.append([self.sample(text, config.max_new_tokens) for text in said])
        return rows

    def sample(self, text: str, limit: int) -> Sample:
        words = text.split()
        reason = "length" if text.endswith("…") else "stop"
        tokens = tuple(range(len(words)))
        assert len(tokens) <= limit
        return Sample(
            text=text.removesuffix("…"),
            tokens=tokens,
            logprobs=(-1.0,) * len(words),
            finish_reason=reason,
        )


TASK = Task(
    name="sums",
    train=(
        Example(id="a", question="What is 3 plus 4?", answer="7"),
        Example(id="b", question="What is 1 plus 1?", answer="2"),
    ),
    test=(),
)
LINES = {
    "a": [" The answer is 7.", " Three and…"],
    "b": [" No idea.", " The answer is 3."],
    # The second stretch.
    "a/1/1": " So the answer is 1…",  # cut in the middle of 12, say
    "b/0/1": " Let me see. The answer is 2.",
    "b/1/1": " It is still so: the answer is 3.",
    # The third.
    "a/1/2": " I do not know.",
    "b/1/2": " One and one. The answer is 2.",
}


def ask(monkeypatch, room=1000, **settings):
    sampler = Sampler(LINES)
    monkeypatch.setattr(deepening, "generate", sampler)
    answers = ask_deepening(
        SimpleNamespace(config=SimpleNamespace(max_position_embeddings=room)),
        None,
        lambda text, **_: {"input_ids": text.split()},
        TASK,
        TASK.train,
        deepening=DeepeningConfig(initial_budget=10, trigger=WAIT, **settings),
        style="plain",
        shots=0,
        sampling=SamplingConfig(max_new_tokens=80),
        samples=2,
        seed=0,
    )
    return sampler, {f"{answer.id}{answer.sample}": answer for answer in answers}


def test_what_is_unfinished_thinks_again(monkeypatch):
    sampler, answers = ask(monkeypatch)
    assert [limit for _, limit in sampler.calls] == [10, 20, 50]
    asked = [[name for name, _ in call] for call, _ in sampler.calls]
    assert asked == [["a", "b"], ["a/1/1", "b/0/1"], ["a/1/2"]]
    start = "Question: What is 3 plus 4?\nAnswer:"
    assert sampler.calls[1][0][0][1] == f"{start} Three and\n{WAIT}"
    assert sampler.calls[2][0][0][1] == f"{start} Three and\n{WAIT} So the answer is 1\n{WAIT}"
    assert list(answers) == ["a0", "a1", "b0", "b1"]
    assert answers["a0"].text == " The answer is 7." and answers["a0"].correct
    assert answers["b0"].text == f" No idea.\n{WAIT} Let me see. The answer is 2."
    assert answers["b0"].answer == "2" and answers["b0"].correct
    # Sampled words alone count: 2 and 7.
    assert answers["b0"].tokens == 9 and answers["b0"].logprob == -9.0
    # The newest answer that was stated, though it is no good.
    assert answers["a1"].answer == "1" and answers["a1"].finish_reason == "stop"
    # A wrong answer, well ended, is not looked at without the gold answers.
    assert answers["b1"].text == " The answer is 3." and not answers["b1"].correct


def test_what_is_wrong_thinks_again(monkeypatch):
    sampler, answers = ask(monkeypatch, retry="wrong")
    asked = [[name for name, _ in call] for call, _ in sampler.calls]
    assert asked == [["a", "b"], ["a/1/1", "b/0/1", "b/1/1"], ["a/1/2", "b/1/2"]]
    # The answer is the last attempt's, not the first that the text states.
    assert answers["b1"].text.count("The answer is") == 2 and answers["b1"].answer == "2"
    assert answers["b1"].correct


def test_what_fills_the_context_stays_as_it_is(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "imm_jax"):
        sampler, answers = ask(monkeypatch, room=40)
    assert [[name for name, _ in call] for call, _ in sampler.calls][1:] == [["a/1/1", "b/0/1"], []]
    assert answers["a1"].text == f" Three and\n{WAIT} So the answer is 1"
    assert answers["a1"].finish_reason == "length"
    assert "1 samples fill the context" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial_budget": 0}, "iterative_deepening.initial_budget: 0, expected at least 1"),
        ({"gamma": 0.5}, "iterative_deepening.gamma: 0.5, expected at least 1"),
        ({"gamma": float("nan")}, "iterative_deepening.gamma: nan, expected at least 1"),
        ({"trigger": " "}, "iterative_deepening.trigger: ' ', expected a sentence"),
        ({"retry": "all"}, "iterative_deepening.retry: 'all' is not valid"),
        ({"initial_budget": 24}, "initial_budget: 24, expected less than sampling.max_new_tokens"),
        ({"budget": 24}, "unknown key iterative_deepening.budget"),
    ],
)
def test_wrong_settings_are_refused(change, message, settings):
    plain = settings.plain | {"iterative_deepening": change}
    with pytest.raises(InputError, match=message):
        build(RunConfig, plain, "test")


def test_gold_answers_are_for_rules_that_read_them(settings, tmp_path):
    config = settings(
        iterative_deepening={"initial_budget": 8, "retry": "wrong"}, select={"rule": "finished"}
    )
    with pytest.raises(InputError, match=r"retry: .wrong. reads the gold answers.*'finished'"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_smoke_run_has_a_budget_that_fits(settings, tmp_path):
    save_config(
        settings(iterative_deepening={}, sampling={"max_new_tokens": 256}), tmp_path / "run.yaml"
    )
    config = load_config(tmp_path / "run.yaml", smoke=True)
    assert config.iterative_deepening.initial_budget < config.sampling.max_new_tokens


DEEP = {"initial_budget": 16, "trigger": "Wait!", "retry": "wrong"}
LONG = {"temperature": 1.0, "max_new_tokens": 48, "batch_size": 16}


@pytest.fixture(scope="module")
def deep(settings, tmp_path_factory):
    """A run with deepening: its settings, folder, rows and samples."""
    config = settings(rounds=1, arms={"imm": {}}, sampling=LONG, iterative_deepening=DEEP)
    folder = tmp_path_factory.mktemp("deep") / "run"
    rows = run(config, folder)
    return config, folder, rows, read_samples(folder)


def read_samples(folder) -> list[dict]:
    blocks = sorted((folder / "seed-0/round-1/shared/samples").iterdir())
    return [row for block in blocks for row in read_jsonl(block)]


def test_later_stretches_are_in_the_samples(deep):
    _, folder, rows, samples = deep
    again = [row for row in samples if "\nWait!" in row["text"]]
    assert rows[1]["samples"] == len(samples) == 24 and 0 < len(again) < 24
    assert 16 < max(row["tokens"] for row in samples) <= 48
    kept = read_jsonl(folder / "seed-0/round-1/shared/selected.jsonl")
    assert all(row in samples and row["correct"] for row in kept)


def test_a_run_cut_off_in_a_later_stretch_ends_the_same(deep, result_files, tmp_path, monkeypatch):
    config, folder, rows, _ = deep
    cuts = iter((1, 2))

    def cut_off(*args, label, **settings):
        if label.endswith("again") and next(cuts, 0) == 2:
            raise Interrupted("cut")
        return generate(*args, label=label, **settings)

    monkeypatch.setattr(deepening, "generate", cut_off)
    with pytest.raises(Interrupted, match="cut"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run/seed-0/round-1/shared/selected.jsonl").exists()
    assert results_of(run(config, tmp_path / "run")) == results_of(rows)
    assert result_files(tmp_path / "run") == result_files(folder)


def test_what_is_right_at_the_first_look_is_what_plain_sampling_gives(deep, settings, tmp_path):
    *_, samples = deep
    run(settings(rounds=1, arms={"imm": {}}, sampling=LONG), tmp_path / "plain")
    plain = {(row["id"], row["sample"]): row for row in read_samples(tmp_path / "plain")}
    once = [row for row in samples if "Wait!" not in row["text"]]
    assert once and all(row["text"] == plain[row["id"], row["sample"]]["text"] for row in once)
