"""Our model in lm-evaluation-harness, against its own ``hf`` model on the same checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imm_jax.errors import InputError
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from tests.processes import PATIENCE

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from imm_jax.harness import HarnessLM

# What test_choices.py compares with where lm-eval is not installed: make_golden's, as JSON.
GOLDEN = Path(__file__).parent / "golden" / "lm_eval_scores.json"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LONG = "Tom has 7 apples and buys 12 more. " * 20  # more tokens than the context has
PAIRS = [
    ("Question: what is 3 times 14?\nAnswer:", " 42"),
    ("Question: what is 3 times 14?\nAnswer:", " seven apples in a box"),
    ("Question: what is 3 times 14?\nAnswer: ", "42"),  # the space goes to the continuation
    ("", "There are 15 trees."),
    ("Tom", " has 7 apples"),
    (LONG, " The answer is 19."),
    ("The answ", "er is 19."),
]
TEXTS = ["Sam reads 9 pages on Monday.", LONG, "7"]
PROMPTS = [
    ("Question: what is 3 times 14?\nAnswer:", {"until": ["\n"], "max_gen_toks": 12}),
    ("Tom has", {"until": ["the", "a"], "max_gen_toks": 12}),
    ("Sam reads", {"until": ["a", "the"], "max_gen_toks": 12, "do_sample": False}),
    (LONG, {"until": [], "max_gen_toks": 12, "temperature": 0.0}),
    ("Each box", {"max_gen_toks": 12}),
]


def make_golden(theirs) -> list[dict]:
    """What ``hf`` says of token ids, half of them what the model itself would write."""
    import torch

    rows = []
    for context, _ in PROMPTS[:3]:
        ids = theirs.tok_encode(context)
        told = theirs.model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)
        for tail in (told[0, len(ids) :].tolist(), theirs.tok_encode(" The answer is 42.")):
            [(total, greedy)] = theirs._loglikelihood_tokens([(None, ids, tail)])
            rows.append(
                {"context": ids, "text": tail, "logprob": round(total, 5), "greedy": greedy}
            )
    return rows


def requests(kind: str, rows) -> list[Instance]:
    return [Instance(kind, {}, row, i) for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    path = tmp_path_factory.mktemp("model") / "model"
    config = tiny_config("llama", max_position_embeddings=96)
    tiny_tokenizer.chat_template = TEMPLATE
    save_model(path, Decoder(config), random_params(config), tokenizer=tiny_tokenizer)
    tiny_tokenizer.chat_template = None
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return HarnessLM(pretrained=str(folder), batch_size=4)


@pytest.fixture(scope="module")
def theirs(folder):
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


@pytest.mark.parity
def test_loglikelihoods_are_those_of_hf(ours, theirs):
    asked = requests("loglikelihood", PAIRS)
    found, expected = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, theirs))
    assert [a for a, _ in found] == pytest.approx([b for b, _ in expected], abs=1e-4)
    assert [a for _, a in found] == [b for _, b in expected]


@pytest.mark.parity
def test_recorded_scores_are_those_of_hf(theirs):
    recorded, found = json.loads(GOLDEN.read_text()), make_golden(theirs)
    totals = [row.pop("logprob") for row in found]
    assert totals == pytest.approx([row.pop("logprob") for row in recorded], abs=1e-4)
    assert found == recorded and {row["greedy"] for row in found} == {True, False}


@pytest.mark.parity
def test_rolling_loglikelihoods_are_those_of_hf(ours, theirs):
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    found, expected = (
        model.loglikelihood_rolling(asked, disable_tqdm=True) for model in (ours, theirs)
    )
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-4)


@pytest.mark.parity
def test_greedy_generations_are_those_of_hf(ours, theirs):
    asked = requests("generate_until", PROMPTS)
    found, expected = (model.generate_until(asked, disable_tqdm=True) for model in (ours, theirs))
    assert found == expected
    assert len(set(found)) == len(PROMPTS)


@pytest.mark.parity
def test_conversations_and_names_are_those_of_hf(ours, theirs):
    told = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer"}]
    for rows, start in ((told[:1], True), (told, False)):
        assert ours.apply_chat_template(rows, start) == theirs.apply_chat_template(rows, start)
    assert ours.chat_template(True) == theirs.chat_template(True) == TEMPLATE
    for name in ("eot_token_id", "prefix_token_id", "max_length", "max_gen_toks"):
        assert getattr(ours, name) == getattr(theirs, name)
    for text in ("Tom has", "<|endoftext|>Tom has", ""):
        assert ours.tok_encode(text) == theirs.tok_encode(text)


@pytest.mark.slow
def test_a_task_through_the_harness_command(folder, tmp_path):
    """Its own command line with our model: a task of two questions from a file."""
    rows = [{"q": "3 plus 4?", "options": ["7", "eggs"], "gold": 0}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\ndoc_to_text: 'Question: {{q}} Answer:'\n"
        "doc_to_choice: '{{options}}'\ndoc_to_target: gold\n"
    )
    argv = ["--model", "imm_jax", "--model_args", f"pretrained={folder}", "--tasks", "sums"]
    done = subprocess.run(
        [sys.executable, "-m", "imm_jax.harness", "run", *argv, "--include_path", str(tmp_path),
         "--output_path", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=PATIENCE,
        env=os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    [path] = (tmp_path / "out").rglob("results*.json")
    found = json.loads(path.read_text())["results"]["sums"]
    assert found["acc,none"] in (0.0, 1.0) and found["sample_len"] == 2


def test_sampling_settings_reach_the_sampler(ours):
    asked = [("Tom has", {"max_gen_toks": 12, "do_sample": True, "temperature": 5.0})] * 2
    one, two = ours.generate_until(requests("generate_until", asked))
    assert one != two  # the same question asked twice is drawn twice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "generation setting 'num_beams' is not supported"),
        ({"max_gen_toks": 96}, "max_gen_toks: 96, expected less than the context of 96"),
        ({"temperature": -1.0}, "temperature: -1.0, expected 0"),
    ],
)
def test_generation_settings_that_cannot_be_used(ours, settings, message):
    with pytest.raises(InputError, match=message):
        ours.generate_until(requests("generate_until", [("Tom has", settings)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected either pretrained="),
        ({"pretrained": "x", "batch_size": 0}, "batch_size: 0, expected at least 1"),
        ({"pretrained": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_models_that_cannot_be_had(settings, message):
    with pytest.raises(InputError, match=message):
        HarnessLM(**settings)


def test_a_text_longer_than_the_context_is_not_scored(ours):
    with pytest.raises(InputError, match="tokens to score, expected at most the context of 96"):
        ours.loglikelihood(requests("loglikelihood", [("Tom", LONG)]))
