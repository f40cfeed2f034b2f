"""The example that searches merge weights over depth, for real, on tiny models."""

import json

import numpy as np
import pytest

from experiments.search_layer_weights import main
from imm_jax.files import read_jsonl
from imm_jax.models.decoder import Decoder
from imm_jax.models.huggingface.saving import save_model
from tests.answering import params_of, save_answering, write_questions

OPTIONS = "--points 2 --budget 9 --population 4 --seed 3 --questions 8 --test-questions 4"
OPTIONS += " --style plain --max-new-tokens 16 --batch-size 16"


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_config, random_params, tiny_tokenizer):
    """Models of which only the second answers, which any weight above 0 takes over; questions."""
    folder = tmp_path_factory.mktemp("search")
    config = tiny_config("llama", tie_word_embeddings=False, max_position_embeddings=128)
    params = params_of(config, random_params, tiny_tokenizer)
    params["lm_head"]["kernel"] = np.zeros_like(params["lm_head"]["kernel"])
    save_model(folder / "base", Decoder(config), params, tokenizer=tiny_tokenizer)
    save_answering(folder / "tuned", tiny_config, random_params, tiny_tokenizer)
    train = write_questions(folder / "train.jsonl", 8)
    test = write_questions(folder / "test.jsonl", 4, 20)
    return [str(folder / "base"), str(folder / "tuned"), f"jsonl:train={train},test={test}"]


def test_the_result_says_what_was_found_and_how(words, tmp_path, capsys):
    output = tmp_path / "out"
    command = [*words, "--output", str(output), *OPTIONS.split()]
    assert main(command) == 0
    result = json.loads((output / "result.json").read_text())
    assert result["config"]["seed"] == 3 and words[1] in result["command"]
    assert result["merges_scored"] == 8 == len(read_jsonl(output / "search.jsonl")) - 1
    # three of four questions have the answer 7
    accuracy = lambda name: [result["scores"][name][s]["accuracy"] for s in ("validation", "test")]
    assert accuracy("0") == [0, 0]
    assert accuracy("0.5") == accuracy("1") == accuracy("found") == [0.75, 0.75]
    low = result["scores"]["found"]["test"]["low"]
    assert 0 < low < 0.75 and result["scores"]["found"]["validation"]["questions"] == 8
    found = [*result["weights"]["over_depth"], result["weights"]["outside_layers"]]
    assert len(found) == 3 and all(0 <= weight <= 1 for weight in found)
    assert "0.750 [" in capsys.readouterr().out

    record = (output / "search.jsonl").read_bytes()
    (output / "result.json").unlink()
    assert main(command) == 0
    assert (output / "search.jsonl").read_bytes() == record
    assert json.loads((output / "result.json").read_text()) == result
    assert main([*command, "--seed", "4"]) == 2
    assert "seed (3 there, 4 here)" in capsys.readouterr().err


WRONG = {
    "nothing": ([], "required: base, tuned, task, --output"),
    "model": (["missing"], "missing: no such folder or file"),
    "task": ([None, None, "builtin:one_stp"], "did you mean 'one_step'"),
    "no training questions": ([None, None, "{test}"], "no training questions"),
    "points": ([None, None, None, "--points", "0"], "--points: 0, expected at least 1"),
    "whole": ([None, None, None, "--budget", "many"], "argument --budget: invalid int"),
    "budget": ([None, None, None, "--budget", "3"], "budget is 3, expected a whole number from 4"),
    "style": ([None, None, None, "--style", "plane"], "did you mean 'plain'"),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_one_line(words, tmp_path, capsys, change, message):
    test = words[2].rpartition("=")[2]
    argv = [
        words[i] if i >= len(change) or change[i] is None else change[i].format(test=test)
        for i in range(3)
    ]
    rest = [*OPTIONS.split(), "--output", str(tmp_path / "out"), *change[3:]]
    assert main([*argv, *rest] if change else []) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ") and message in errors[-1]
    assert not (tmp_path / "out").exists()
