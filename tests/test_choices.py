"""Options ranked by log-likelihood, against plain log-softmax in float64."""

import dataclasses

import numpy as np
import pytest

from imm_jax.choices import ChoiceAnswer, ask_choices, choice_prompts, examine
from imm_jax.errors import InputError, Interrupted
from imm_jax.evaluation import ask
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from imm_jax.sampling.config import SamplingConfig
from imm_jax.tasks.types import Example, Task
from tests.plain_logits import log_softmax, logits_in

OPTIONS = (
    ("red", "twelve green apples in a box", "a trees"),
    ("42", "seven"),
    ("eggs", "egg", "eggs and trees", "seven"),
    ("seven apples", "21"),
)


def example(number: int, solution: str | None = None) -> Example:
    choices = OPTIONS[number % len(OPTIONS)]
    return Example(
        id=f"q{number}",
        question=f"What did Tom buy on day {number}?" + " Really?" * (number % 3),
        answer="AB"[number % 2],
        choices=choices,
        solution=solution,
    )


TASK = Task(
    name="buy",
    train=(),
    test=tuple(example(i) for i in range(6)),
    shots=(example(6, "Thinking. The answer is A."), example(7)),
    answer_type="choice",
)


def by_hand(logits_of, tokenizer, prompt: str, text: str) -> float:
    """The log-probability of ``text``'s tokens, one row at a time."""
    whole, start = tokenizer.encode(prompt + text), len(tokenizer.encode(prompt))
    logprobs = log_softmax(logits_of(whole))
    return sum(logprobs[i - 1, whole[i]] for i in range(start, len(whole)))


def prompt_of(question: Example, shots=()) -> str:
    def block(asked, answer):
        return f"Question: {asked.question}\nAnswer:{answer}"

    shown = [block(shot, " " + shot.choices["AB".index(shot.answer)]) for shot in shots]
    return "\n\n".join([*shown, block(question, "")])


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def bench(request, tiny_config, random_params, tiny_tokenizer):
    changes = {"final_logit_softcapping": 5.0} if request.param == "gemma3_text" else {}
    config = tiny_config(request.param, **changes)
    return Decoder(config), random_params(config), tiny_tokenizer


@pytest.mark.parametrize(("style", "shots"), [("plain", 0), ("few_shot", 2)])
def test_log_likelihoods_are_those_of_a_plain_forward_pass(bench, style, shots):
    model, params, tokenizer = bench
    logits_of = logits_in(model, params)
    answers = ask_choices(*bench, TASK, TASK.test, style=style, shots=shots, batch_size=5)
    assert [answer.id for answer in answers] == [question.id for question in TASK.test]
    for answer, question in zip(answers, TASK.test):
        prompt = prompt_of(question, TASK.shots[:shots])
        expected = [by_hand(logits_of, tokenizer, prompt, f" {o}") for o in question.choices]
        np.testing.assert_allclose(answer.logprobs, expected, atol=2e-4)
        assert answer.lengths == tuple(len(option) for option in question.choices)
        assert answer.gold == "AB".index(question.answer)


def test_batches_do_not_show(bench):
    one, two = (
        ask_choices(*bench, TASK, TASK.test, style="plain", batch_size=size) for size in (1, 64)
    )
    for a, b in zip(one, two):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_no_questions_have_no_answers(bench):
    assert ask_choices(*bench, TASK, (), style="plain") == []


def test_the_likeliest_option_is_the_answer():
    answer = ChoiceAnswer(id="q", logprobs=(-6.0, -5.0, -8.0), lengths=(4, 2, 8), gold=1)
    # Per character: -1.5, -2.5, -1.0.
    assert answer.correct and not answer.correct_normalised
    assert dataclasses.replace(answer, gold=2).correct_normalised
    tie = ChoiceAnswer(id="q", logprobs=(-1.0, -1.0), lengths=(1, 1), gold=0)
    assert tie.correct and not dataclasses.replace(tie, gold=1).correct


def test_prompts_name_no_options(tiny_tokenizer):
    [prompt] = choice_prompts(TASK, TASK.test[:1], "few_shot", 2, tiny_tokenizer)
    assert prompt.whole == prompt_of(TASK.test[0], TASK.shots)
    assert "(A)" not in prompt.whole and "The answer is" not in prompt.whole


def test_what_is_refused(bench):
    free = Example(id="x", question="What?", answer="7")
    number = Task(name="sums", train=(), test=(free,), answer_type="number")
    with pytest.raises(InputError, match="task sums: its questions have no options to score"):
        ask_choices(*bench, number, number.test, style="plain")
    long = dataclasses.replace(TASK.test[0], question="day " * 300)
    with pytest.raises(InputError, match=r"task buy: a question with an option has .* at most the"):
        ask_choices(*bench, TASK, [long], style="plain")
    with pytest.raises(Interrupted):
        ask_choices(*bench, TASK, TASK.test, style="plain", should_stop=lambda: True)


def test_the_question_whose_logits_are_not_finite_is_named(
    tiny_config, random_params, tiny_tokenizer
):
    """A token that one question alone has is broken, so that all others can be scored."""
    config = tiny_config("llama", tie_word_embeddings=False)
    params = random_params(config)
    [broken] = tiny_tokenizer.encode("Z")
    params["embed"]["embedding"][broken] = np.nan
    others = TASK.test[:3]
    asked = Decoder(config), params, tiny_tokenizer, TASK
    found = ask_choices(*asked, others, style="plain", batch_size=2)
    assert np.isfinite([logprob for answer in found for logprob in answer.logprobs]).all()
    odd = dataclasses.replace(TASK.test[3], question="What did Zoe buy?")
    expected = "task buy, question q3: the model gives logits that are not finite"
    with pytest.raises(InputError, match=expected):
        ask_choices(*asked, [*others, odd], style="plain", batch_size=2)


@pytest.mark.parity
def test_log_likelihoods_are_those_of_transformers(bench, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, params, tokenizer = bench
    save_model(tmp_path / "model", model, params, tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")

    def logits_of(tokens):
        with torch.no_grad():
            return theirs(torch.tensor([tokens])).logits[0].double().numpy()

    for answer, question in zip(
        ask_choices(*bench, TASK, TASK.test, style="few_shot", shots=2), TASK.test
    ):
        prompt = prompt_of(question, TASK.shots)
        expected = [by_hand(logits_of, tokenizer, prompt, f" {o}") for o in question.choices]
        np.testing.assert_allclose(answer.logprobs, expected, atol=1e-3)


@pytest.mark.parametrize("scoring", ["loglikelihood", "generate"])
def test_a_run_ranks_options_where_it_is_told_to(bench, scoring):
    model, params, tokenizer = bench
    logits_of = logits_in(model, params)
    settings = {"style": "few_shot", "shots": 2}
    how = {"sampling": SamplingConfig(temperature=0.0, max_new_tokens=4), "seed": 0}
    asked = model, params, tokenizer, TASK, TASK.test
    answers = examine(*asked, scoring=scoring, rule="first", **how, **settings)
    assert [answer.id for answer in answers] == [question.id for question in TASK.test]
    if scoring == "generate":
        assert answers == ask(*asked, samples=1, rule="first", **how, **settings)
        return
    for answer, question in zip(answers, TASK.test):
        prompt = prompt_of(question, TASK.shots)
        found = [by_hand(logits_of, tokenizer, prompt, f" {o}") for o in question.choices]
        best = int(np.argmax(found))
        assert (answer.text, answer.answer) == (question.choices[best], "ABCD"[best])
        assert answer.correct == (answer.answer == question.answer) and answer.tokens == 0
        np.testing.assert_allclose(answer.logprob, found[best], atol=1e-4)


def test_questions_without_options_are_answered_in_words(bench):
    model, params, tokenizer = bench
    plain = tuple(
        dataclasses.replace(question, choices=None, answer="7", solution="The answer is 7.")
        for question in TASK.test
    )
    task = dataclasses.replace(TASK, test=plain, shots=(), answer_type="number")
    how = {
        "sampling": SamplingConfig(temperature=0.0, max_new_tokens=4),
        "seed": 0,
        "rule": "first",
    }
    asked = model, params, tokenizer, task, plain
    answers = examine(*asked, scoring="loglikelihood", style="plain", shots=0, **how)
    assert answers == ask(*asked, samples=1, style="plain", shots=0, **how)
