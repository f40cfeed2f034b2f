"""Accuracy, its interval, and graded answers of a tiny model."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.stats import binomtest

from imm_jax.errors import InputError
from imm_jax.evaluation import Answer, ask, evaluate, score
from imm_jax.models.decoder import Decoder
from imm_jax.sampling.config import SamplingConfig
from imm_jax.statistics import wilson_interval
from imm_jax.tasks import make_task
from tests.answering import ANSWER, params_of, write_questions

GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=16, batch_size=16)


@pytest.fixture(scope="module")
def bench(tiny_config, random_params, tiny_tokenizer):
    config = tiny_config("llama", tie_word_embeddings=False, max_position_embeddings=128)
    params = jax.tree.map(np.asarray, params_of(config, random_params, tiny_tokenizer))
    return Decoder(config), params, tiny_tokenizer


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return [
        make_task(str(write_questions(folder / f"{name}.jsonl", count)))
        for name, count in (("sums", 8), ("few", 3))
    ]


def answer(question: str, sample: int, correct: bool, reason: str = "stop") -> Answer:
    return Answer(
        id=question,
        sample=sample,
        text="",
        answer=None,
        correct=correct,
        tokens=1,
        logprob=0.0,
        finish_reason=reason,
    )


def test_score_counts_samples_and_its_interval_questions():
    answers = [
        answer("a", 0, True),
        answer("a", 1, True, "length"),
        answer("b", 0, False),
        answer("b", 1, True),
    ]
    found = score(answers)
    assert (found.accuracy, found.questions, found.truncated) == (0.75, 2, 0.25)
    # Two independent trials, however many samples of each: a wide interval.
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.75, 2))


def test_evaluate(bench, tasks):
    scores = evaluate(*bench, tasks, style="plain", sampling=GREEDY)
    assert list(scores) == ["sums", "few"]
    assert scores["sums"].accuracy == 0.75 and scores["sums"].questions == 8
    assert scores["few"].accuracy == 1.0 and scores["few"].truncated == 0
    low, high = binomtest(6, 8).proportion_ci(method="wilson")
    assert (scores["sums"].low, scores["sums"].high) == pytest.approx((low, high))


def test_evaluate_says_what_was_cut(bench, tasks):
    short = dataclasses.replace(GREEDY, max_new_tokens=3)
    found = evaluate(*bench, tasks[1:], style="plain", sampling=short)["few"]
    assert (found.accuracy, found.truncated) == (0.0, 1.0)


def test_ask_keeps_the_order_and_every_sample(bench, tasks):
    model, params, tokenizer = bench
    questions = tasks[0].test[::-1]
    answers = ask(
        *bench, tasks[0], questions, style="plain", shots=0, sampling=GREEDY, samples=2, seed=0
    )
    assert [(a.id, a.sample) for a in answers] == [(q.id, s) for q in questions for s in (0, 1)]
    gold = {q.id: q.answer for q in questions}
    length = len(tokenizer.encode(ANSWER)) + 1  # and the end
    for a in answers:
        assert a.text == ANSWER and a.answer == "7" and a.tokens == length
        assert a.correct == (gold[a.id] == "7")
        assert a.finish_reason == "stop"
    # The log-probability of the sum: the model's own, over the tokens of the answer.
    prompt = tokenizer.encode(f"Question: {questions[0].question}\nAnswer:")
    tokens = [*prompt, *tokenizer.encode(ANSWER), 0]
    logits = np.asarray(model.apply({"params": params}, np.array([tokens])))[0].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = sum(logprobs[i - 1, tokens[i]] for i in range(len(prompt), len(tokens)))
    assert answers[0].logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "plan"}, r"unknown prompt style 'plan' \(did you mean 'plain'\?\)"),
        ({"rule": "frist"}, r"rule: 'frist' is unknown \(did you mean 'first'\?\)"),
        ({"samples": 0}, "samples: 0, expected at least 1"),
        ({"shots": -1}, "shots: -1, expected at least 0"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(changes, message, bench, tasks, monkeypatch):
    import imm_jax.evaluation

    monkeypatch.delattr(imm_jax.evaluation, "generate")
    with pytest.raises(InputError, match=message):
        evaluate(*bench, tasks, **{"style": "plain"} | changes)


def test_tasks_need_questions_and_names(bench, tasks):
    empty = dataclasses.replace(tasks[0], test=())
    with pytest.raises(InputError, match="task sums has no test questions"):
        evaluate(*bench, [empty], style="plain")
    with pytest.raises(InputError, match="two tasks are named sums"):
        evaluate(*bench, [tasks[0], tasks[1], tasks[0]], style="plain")
