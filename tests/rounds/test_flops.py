"""Options that are ranked: their operations, beside a count token by token."""

import json

import pytest

from imm_jax.models.decoder import Decoder
from imm_jax.rounds.bench import Bench, check_prompts
from imm_jax.rounds.flops import asking_flops, fit_flops, ranking_flops
from imm_jax.rounds.run import load_tasks
from imm_jax.training.batching import Sequence
from imm_jax.training.config import TrainingConfig


def by_token(config, rows) -> int:
    """2 FLOPs a weight and token, 4 H E a key attended to; what rows begin with alike runs once."""
    c = config
    attention = c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)
    weights = c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
    head = c.vocab_size * c.hidden_size
    keys = 4 * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    prompts = {tokens[: seam - 1] for tokens, seam in rows}
    shared = min(map(len, prompts))
    while len({prompt[:shared] for prompt in prompts}) > 1:
        shared -= 1
    places = list(range(shared))
    for prompt in prompts:
        places += range(shared, len(prompt))
    for tokens, seam in rows:
        places += range(seam - 1, len(tokens) - 1)
    scored = sum(len(tokens) - seam for tokens, seam in rows)
    return sum(2 * weights + keys * place for place in places) + 2 * head * scored


def test_ranking_counts_prompts_once_and_texts_each(tiny_config):
    config = tiny_config("llama")
    first, second = tuple(range(40)), (*range(30), 90, 91, 92)
    rows = [((*first, 7, 8, 9), 40), ((*first, 7), 40), ((*second, 5, 6), 33), ((*second, 4), 33)]
    # Means of contexts are halves of lengths: off by half a key a token.
    assert ranking_flops(config, rows) == pytest.approx(by_token(config, rows), rel=0.01)
    alone = [((*first, 7, 8, 9), 40)]
    assert ranking_flops(config, alone) == pytest.approx(by_token(config, alone), rel=0.01)


def test_a_fine_tune_counts_what_is_left_of_a_sequence_at_the_models_context(tiny_config):
    whole, left = Sequence(tuple(range(40)), 4), Sequence(tuple(range(24)), 4)
    config = tiny_config("llama", max_position_embeddings=24)
    counts = [fit_flops(config, [one], TrainingConfig(), scored=20) for one in (whole, left)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("scoring", ["loglikelihood", "generate"])
def test_a_runs_ranking_is_counted(settings, tmp_path, tiny_config, tiny_tokenizer, scoring):
    options = ["none", "three of them", "all"]
    asked = [{"question": f"Which is {i}?", "choices": options, "answer": "B"} for i in range(3)]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    data = settings.plain["data"] | {"out_of_domain": [str(path)]}
    evaluation = settings.plain["evaluation"] | {"scoring": scoring}
    config, tiny = settings(data=data, evaluation=evaluation), tiny_config("llama")
    tasks = tuple(load_tasks(config))
    bench = Bench(config, Decoder(tiny), tiny_tokenizer, tasks, lambda: False)
    prompts = check_prompts(bench)["choices", "test"]
    if scoring == "generate":
        assert prompts.ranking is None
        return
    questions = [tiny_tokenizer.encode(f"Question: Which is {i}?\nAnswer:") for i in range(3)]
    rows = [
        ((*question, *tiny_tokenizer.encode(f" {text}")), len(question))
        for question in questions
        for text in options
    ]
    answered = [{"id": question.id, "tokens": 0} for question in tasks[1].test]
    counted = asking_flops(tiny, prompts, answered)
    assert counted == pytest.approx(by_token(tiny, rows), rel=0.02)
